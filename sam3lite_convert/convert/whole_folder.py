"""Writes a converted folder as a whole or not at all, and replaces an earlier one if asked to."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam3lite_convert.checkpoint.place import JSON_LIMIT
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import check_space, resolved, sibling_place, sync_folder, umask, working_place
from sam3lite_convert.hub.licences import LICENCE_NAME
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import read_small

# What a converted folder may hold; --overwrite replaces a folder only if it holds nothing else but licence files
# and graphs that its receipt lists.
OWN_FILES = re.compile(
    r"(model(-\d{5}-of-\d{5})?|text_projection)\.safetensors|model\.safetensors\.index\.json|(?:config|conversion|"
    r"fingerprint|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab|"
    r"added_tokens)\.json|merges\.txt|README\.md|\.gitattributes"
)


def check_destination(folder: Path, overwrite: bool, checkpoint: Path, nbytes: int) -> None:
    """Raises CannotRun, before anything is written, if the output folder must not be replaced or has no space.

    ``nbytes``: the size of the output.
    """
    final = resolved(folder)
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
    ours = [p for p in present if p.is_file() and (OWN_FILES.fullmatch(_finished_name(p.name)) or p.name in listed)]
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


def _listed(folder: Path) -> set[str]:
    """The licence files and graphs that the folder's receipt lists. There may be others, of the user's own."""
    try:
        listed = parse_json(read_small(folder / RECEIPT_NAME, JSON_LIMIT))["beside"]
    except (CannotRun, ValueError, KeyError, TypeError):
        return set()
    names = listed if isinstance(listed, dict) else {}
    return {name for name in names if LICENCE_NAME.fullmatch(name) or name.endswith(GRAPH_SUFFIX)}


def _finished_name(name: str) -> str:
    """The final name of a file that a killed run left unfinished; other names are returned as they are."""
    return re.sub(r"^\.(.+)\.partial-\w+$", r"\1", name)


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A working folder beside ``folder`` that is renamed to it at the end, or removed on an error.

    With ``overwrite`` a folder of that name is replaced; on an error it is kept. Raises CannotRun if the file
    system reports an error, or if the folder was created by something else in the meantime.
    """
    final = resolved(folder)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work, held = working_place(final, tempfile.mkdtemp)
        old = sibling_place(work, "old")
        work.chmod(0o777 & ~umask())
        try:
            yield work
            sync_folder(work)
            if not overwrite and final.is_dir() and any(final.iterdir()):
                raise CannotRun(
                    f"{folder} was created during the conversion; nothing was written to it",
                    "output_exists",
                )
            _swap(work, final, old)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if held is not None:
                os.close(held)
    except OSError as fault:
        raise CannotRun(f"{folder}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault


def _swap(work: Path, final: Path, old: Path) -> None:
    try:
        if final.exists():
            os.rename(final, old)
        os.rename(work, final)
    except BaseException:
        if old.exists() and not final.exists():
            os.rename(old, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)
