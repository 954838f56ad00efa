"""The programs that load a converted folder. Each layout names one of them; the default is ``none``."""

from __future__ import annotations

from dataclasses import dataclass

from sam3lite_convert.records.receipt import LibraryName, LoaderName


@dataclass(frozen=True)
class Loader:
    """A program that loads a folder, and what it requires of the folder.

    name: its name in the table of a layout.
    targets: the tables of the tensors that it loads; its layouts must name them. Of a library also the table of its
        family's text encoder.
    library: the library that it belongs to; None for this project's own models and for ``none``.
    processor: whether it reads processor and tokenizer files.
    strips_text: whether the keys of a text encoder alone have no prefix; None if the layout decides.
    causal: whether config.json can say that the text encoder masks causally; None if the layout decides.

    ``convert/config.py``, ``convert/card.py`` and ``parity/candidates.py`` look up by its name how to write config.json
    and the line and the example that load the folder, and which encoder ``parity`` runs.
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
            targets=("targets-detector.ini",),
            library="transformers",
            processor=True,
            strips_text=True,
            causal=False,
        ),
        Loader(
            "packed_model",
            targets=("targets-detector.ini", "targets-text-packed.ini"),
            strips_text=False,
            causal=True,
        ),
        Loader("packed_encoder", targets=("targets-text-packed.ini",), strips_text=False, causal=True),
        Loader("none"),
    )
}
