"""Writes a converted folder as a whole or not at all, and replaces an earlier one if asked to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sam3lite_convert.checkpoint.place import JSON_LIMIT
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import check_space, resolved, umask
from sam3lite_convert.hub.licences import LICENCE_NAME
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import read_small
from sam3lite_convert.seen import NOTHING, Seen, look
from sam3lite_convert.swap import changed, check_movable, check_same, put_in_place, sync_folder
from sam3lite_convert.working_places import finished_name, working_place

# What a converted folder may hold; --overwrite replaces a folder only if it holds nothing else but licence files
# and graphs that its receipt lists.
OWN_FILES = re.compile(
    r"(model(-\d{5}-of-\d{5})?|text_projection)\.safetensors|model\.safetensors\.index\.json|(?:config|conversion|"
    r"fingerprint|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab|"
    r"added_tokens)\.json|merges\.txt|README\.md|\.gitattributes"
)


@dataclass(frozen=True)
class Destination:
    """Where a folder is to be written. ``final``: its place, with links followed once; ``earlier``: what stood there
    then, which alone may be replaced."""

    final: Path
    earlier: Seen

    def check_same(self, now: Destination) -> None:
        """Raises CannotRun ("output_changed") if it was another place or something else stood there ``now``."""
        if now.final != self.final:
            raise changed(self.final, f"its name leads to {now.final} now")
        if now.earlier.itself is not None:  # else the place became free
            check_same(self.final, self.earlier, now.earlier)


def check_destination(folder: Path, overwrite: bool, checkpoint: Path, nbytes: int) -> Destination:
    """What stands where the output folder will be, and may be replaced. ``nbytes``: the size of the output.

    Raises CannotRun, before anything is written, if the output folder must not be replaced or has no space.
    """
    final = resolved(folder)
    earlier = _look(final)
    if folder.exists() and not folder.is_dir():
        raise CannotRun(f"{folder} is a file; --output must be a folder", "output_is_a_file")
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    if present and not overwrite:
        raise CannotRun(
            f"{folder} exists and was not changed. Replace it with --overwrite, or choose another folder "
            "with --output DIR.",
            "output_exists",
        )
    if folder.is_dir() and (final == Path.cwd() or os.path.ismount(folder)):
        raise CannotRun(
            f"{folder} is the working directory or a mount point and cannot be replaced. Choose a folder inside it "
            "with --output.",
            "output_not_replaceable",
        )
    listed = _listed(folder)
    ours = [p for p in present if p.is_file() and (OWN_FILES.fullmatch(finished_name(p)) or p.name in listed)]
    foreign = [p.name for p in present if p not in ours]
    if not any(p.name == RECEIPT_NAME for p in present):
        foreign = [p.name for p in present]  # without a receipt, another program wrote it
    if foreign:
        raise CannotRun(
            f"{folder} holds files that were not written by this tool ({', '.join(foreign[:4])}), so --overwrite does "
            "not replace it. Move them, or choose another folder with --output DIR.",
            "output_not_ours",
        )
    if final in checkpoint.resolve().parents and present:
        message = f"{checkpoint} is inside {folder}, which would be replaced; choose another --output DIR"
        raise CannotRun(message, "output_holds_input")
    check_space(folder.parent, nbytes, f"to write {folder}")
    check_movable(final, earlier)
    return Destination(final, earlier)


def _look(final: Path) -> Seen:
    try:
        return look(final)
    except OSError as fault:
        raise CannotRun(f"{final}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault


def _listed(folder: Path) -> set[str]:
    """The licence files and graphs that the folder's receipt lists. There may be others, of the user's own."""
    try:
        listed = parse_json(read_small(folder / RECEIPT_NAME, JSON_LIMIT))["beside"]
    except (CannotRun, ValueError, KeyError, TypeError):
        return set()
    names = listed if isinstance(listed, dict) else {}
    return {name for name in names if LICENCE_NAME.fullmatch(name) or name.endswith(GRAPH_SUFFIX)}


@contextmanager
def whole_folder(final: Path, earlier: Seen = NOTHING) -> Iterator[Path]:
    """A working folder beside ``final`` (with links followed) that is renamed to it at the end, or removed on an error.

    ``earlier``: what stood there when the run began; a folder is replaced, and on an error it is kept. Raises
    CannotRun if the file system reports an error ("cannot_write"), or if something else stands there at the end
    ("output_changed").
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = working_place(final, True, earlier)
        try:
            work.path.chmod(0o777 & ~umask())
            yield work.path
            sync_folder(work.path)
            put_in_place(work, earlier)
        finally:
            work.remove()
            work.close()
    except OSError as fault:
        raise CannotRun(f"{final}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
