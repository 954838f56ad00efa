"""What loads a converted folder. A layout names one of these, or none."""

from __future__ import annotations

from dataclasses import dataclass

from sam3lite_convert.records.receipt import LibraryName, LoaderName


@dataclass(frozen=True)
class Loader:
    """A program that loads a folder, and what the folder has to hold for it.

    ``name``: as a layout's table has it. ``targets``: the tables of the tensors that it loads, which its layouts have
    to name. ``library``: the library that it belongs to, None for this project's own or none. ``processor``: whether
    it reads processor and tokenizer files. ``strips_text`` and ``causal``: whether a text encoder alone stands without
    its prefix, and whether config.json can say that the text encoder masks causally; None leaves that to the layout.

    By this name config.json, the loading example of the model card and the encoder of ``parity`` are found:
    ``convert/config.py``, ``convert/card.py``, ``parity/candidates.py``.
    """

    name: LoaderName
    targets: tuple[str, ...] = ()
    library: LibraryName | None = None
    processor: bool = False
    strips_text: bool | None = None
    causal: bool | None = None


LOADERS: dict[str, Loader] = {
    loader.name: loader
    for loader in (
        Loader(
            "transformers",
            targets=("targets-detector.ini", "targets-text-transformers.ini"),
            library="transformers",
            processor=True,
            strips_text=True,
            causal=False,
        ),
        Loader("packed_encoder", targets=("targets-text-packed.ini",), strips_text=False, causal=True),
        Loader("none"),
    )
}
