"""The stock call of the released library: its processor's tokenizer call and the model's ``get_text_features``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.processor_files import TOKENIZER_NAMES
from sam3lite_convert.convert.text_weights import cast, load_all
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.opened import check_regular, is_there
from sam3lite_convert.plan.families import Family

if TYPE_CHECKING:
    from transformers import BatchEncoding, Sam3LiteTextModel, Sam3Model

    from sam3lite_convert.records.record import JsonValue

T = TypeVar("T")

# Length the library's processor pads to, whatever the tokenizer says (transformers 5.6 to 5.23); it does not truncate.
STOCK_LENGTH = 32
# What the library may read of a folder beside the weights.
_TEXTS = (".json", ".txt", ".jinja", ".model")
_LONGEST_TEXT = 64 << 20  # bytes


class LibraryTokenizer(Protocol):
    """The part of the library's tokenizer interface that is used here."""

    @property
    def pad_token_id(self) -> int | None: ...

    def __call__(self, text: str, *, padding: str = ..., max_length: int = ...) -> BatchEncoding: ...


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the library.

    ``name``: description for messages and reports.
    ``made``: the library's object.
    ``pad``: the padding id.
    """

    name: str
    made: LibraryTokenizer
    pad: int

    def words(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt, neither cut nor padded. Raises CannotRun if the tokenizer fails on a prompt."""
        return [ids for ids, _ in self._each(prompts, self.made)]

    def stock(self, prompts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Ids and attention mask of each prompt, made as the library's processor makes them.

        Raises CannotRun if the tokenizer fails on a prompt.
        """
        return self._each(prompts, partial(self.made, padding="max_length", max_length=STOCK_LENGTH))

    def _each(self, prompts: Sequence[str], call: Callable[[str], BatchEncoding]) -> list[tuple[list[int], list[int]]]:
        out = []
        for prompt in prompts:
            made = _made(partial(call, prompt), f"{self.name}: ids of {prompt[:60]!r}")
            out.append((list(map(int, made.input_ids)), list(map(int, made.attention_mask))))
        return out


def own_tokenizer(folder: Path) -> bool:
    """Whether the folder holds tokenizer files of its own."""
    return any(is_there(folder / name) for name in TOKENIZER_NAMES)


def stock_tokenizer(folder: Folder | None = None) -> Tokenizer:
    """The folder's own tokenizer; CLIP's, built by the library, if the folder has none.

    Raises CannotRun if transformers or the extra ``prompts`` is not installed, or if the tokenizer files cannot be
    loaded.
    """
    AutoTokenizer, CLIPTokenizer = _library("AutoTokenizer", "CLIPTokenizer")
    if folder is not None and own_tokenizer(folder.path):
        _check_read(folder.path)
        # Without the last argument the library asks on the terminal whether to run code of the folder.
        made = _made(
            lambda: AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False),
            f"the tokenizer of {folder.path}",
        )
        return _padding(made, f"the tokenizer of {folder.path.name}")
    from sam3lite_convert.parity.as_used.clip_vocabulary import clip_vocabulary

    with tempfile.TemporaryDirectory() as place:
        for name, data in clip_vocabulary().items():
            (Path(place) / name).write_bytes(data)
        made = _made(lambda: CLIPTokenizer.from_pretrained(place), "CLIP's tokenizer")
    return _padding(made, "CLIP's tokenizer")


def _check_read(folder: Path) -> None:
    """Raises CannotRun if a file that the library may read beside the weights is no regular file of a sane size."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _TEXTS and is_there(path):
            check_regular(path, _LONGEST_TEXT)


def _padding(made: LibraryTokenizer, name: str) -> Tokenizer:
    """Raises CannotRun if the tokenizer has no padding id."""
    if made.pad_token_id is None:
        raise CannotRun(f"{name}: it has no padding id, so the processor cannot pad with it", "no_tokenizer")
    return Tokenizer(f"{name}, padding id {made.pad_token_id}", made, int(made.pad_token_id))


def _made(make: Callable[[], T], what: str) -> T:
    try:
        with _silence():
            return make()
    except Exception as fault:  # untrusted files: the library may raise anything
        said = str(fault).strip().splitlines() or [type(fault).__name__]
        raise CannotRun(f"{what}: the library failed: {said[0]}", "no_tokenizer") from fault


def _library(*names: str) -> list[Any]:
    try:
        import transformers

        return [getattr(transformers, name) for name in names]
    except (ImportError, AttributeError):
        raise CannotRun(
            "--as-used needs transformers 5.6 or later: pip install 'sam3lite-convert[transformers,prompts]'. Without "
            "--as-used, parity compares the weights alone.",
            "no_transformers",
        ) from None


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the library's warnings about lengths, whose effect is measured here."""
    import logging as levels

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(levels.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class Positions:
    """The text position table of the library's model.

    ``table``: (..., rows, width).
    ``resizes``: whether it is resized to other lengths; if not, its first rows are read, and none beyond.
    """

    def __init__(self, model: Any) -> None:
        text = model.text_encoder
        self.resizes = not hasattr(text, "text_model")
        if self.resizes:
            self._holder = text.embeddings.position_embedding
            self.table: Tensor = self._holder.position_embedding.data
        else:
            self.table = text.text_model.embeddings.position_embedding.weight.data

    @property
    def rows(self) -> int:
        """Its rows."""
        return int(self.table.shape[-2])

    def use(self, rows: int) -> None:
        """Use the first ``rows`` rows from now on. A table that is never resized stays: rows behind change nothing."""
        if self.resizes:
            self._holder.position_embedding = torch.nn.Parameter(self.table[:, :, :rows], requires_grad=False)

    def hold(self, length: int) -> bool:
        """Whether the library can read a sequence of this length."""
        return self.resizes or length <= self.rows


class StockModel:
    """The family's stock model with the weights of its text side; the rest has no weights and is not run.

    ``model``: the library's model.
    ``name``: the calls and the version of the library, for reports.
    ``default_attention``: the attention implementation that the library chose.
    ``positions``: its text position table.
    """

    def __init__(self, model: Sam3LiteTextModel | Sam3Model, name: str) -> None:
        self.model = model
        self.name = name
        self.default_attention = str(model.config._attn_implementation)
        self.positions = Positions(model)

    def use(self, attention: str, rows: int) -> None:
        """Use this attention implementation, and the first ``rows`` rows of the position table, from now on."""
        self.model.text_encoder.set_attn_implementation(attention)
        self.positions.use(rows)

    @torch.inference_mode()
    def features(self, ids: Tensor, mask: Tensor | None, attention: str, rows: int) -> Tensor | None:
        """The text features, (batch, sequence, output_dim); None if the library fails because there are more ids than
        rows. ``ids``, ``mask``: (batch, sequence)."""
        self.use(attention, rows)
        try:
            out: Tensor = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        except (ValueError, IndexError, RuntimeError):
            if self.positions.hold(ids.shape[1]):
                raise
            return None
        return out


def stock_model(
    family: Family, config: Mapping[str, JsonValue], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> StockModel:
    """Build the stock model around these weights.

    ``config``: ``text_config`` of the transformers layout.
    ``weights``: by target key; not copied.

    Raises CannotRun if transformers is not installed, UnsoundPlan if the text side does not get all of its weights.
    """
    Config, Model = _library(family.library.model_config, family.library.model)
    state = cast(weights, dtype)
    detector = {"hidden_size": state["text_projection.weight"].shape[0]}
    with _silence(), torch.device("meta"):
        model = Model(Config(text_config=dict(config), detr_encoder_config=detector))
    for name in ("text_encoder", "text_projection"):
        part = getattr(model, name)
        own = {k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")}
        load_all(part, own, f"{family.library.model}.{name}")
    model.requires_grad_(False)
    model.train(False)
    import transformers

    names = family.library
    called = f"{names.processor}'s tokenizer call and {names.model}.get_text_features"
    return StockModel(model, f"{called} (transformers {transformers.__version__})")
