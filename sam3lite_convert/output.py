"""Files that appear whole or not at all: a safetensors writer that streams, and the folder swap."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sam3lite_convert import dtypes
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan import Mapped
from sam3lite_convert.receipt import RECEIPT_NAME
from sam3lite_convert.streams import Advance, CastLoss, write_piece
from sam3lite_convert.summary import human_bytes

INDEX_NAME = "model.safetensors.index.json"
# What a converted folder may hold; --overwrite replaces a folder only if it holds nothing else.
OWN_FILES = re.compile(
    r"(model(-\d{5}-of-\d{5})?|text_projection)\.safetensors|model\.safetensors\.index\.json|(?:config|conversion|"
    r"generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab|"
    r"added_tokens)\.json|merges\.txt|README\.md|\.gitattributes"
)


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be: its name and its tensors in the order in which they are written."""

    name: str
    pieces: tuple[Mapped, ...]


def plan_shards(pieces: Sequence[Mapped], stem: str, limit: int | None) -> list[Shard]:
    """Cut the tensors into files of at most ``limit`` bytes of data (one tensor at least)."""
    groups: list[list[Mapped]] = [[]]
    filled = 0
    for piece in pieces:
        if limit and groups[-1] and filled + piece.out_nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += piece.out_nbytes
    if len(groups) == 1:
        return [Shard(f"{stem}.safetensors", tuple(_aligned(groups[0])))]
    total = len(groups)
    return [Shard(f"{stem}-{n:05d}-of-{total:05d}.safetensors", tuple(_aligned(g))) for n, g in enumerate(groups, 1)]


def _aligned(pieces: Sequence[Mapped]) -> list[Mapped]:
    # Widest elements first, as the safetensors library does it: every tensor is aligned to its width.
    return sorted(pieces, key=lambda p: (-dtypes.itemsize(p.dtype), p.key))


def safetensors_header(pieces: Sequence[Mapped]) -> bytes:
    """Length and JSON header of a safetensors file; metadata as transformers wants it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for piece in pieces:
        end = position + piece.out_nbytes
        header[piece.key] = {
            "dtype": dtypes.safetensors_code(piece.dtype),
            "shape": list(piece.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(folder: Path, shard: Shard, source: BinaryIO, advance: Advance, loss: CastLoss | None) -> None:
    """Stream one safetensors file and sync it."""
    with open(folder / shard.name, "wb") as out:
        header = safetensors_header(shard.pieces)
        _reserve(out, len(header) + sum(p.out_nbytes for p in shard.pieces))
        out.write(header)
        for piece in shard.pieces:
            write_piece(source, piece, out, advance, loss)
        out.flush()
        os.fsync(out.fileno())


def _reserve(out: BinaryIO, nbytes: int) -> None:
    """Ask for the space at once: no space shows before the first byte, and the copy is a third faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(out.fileno(), 0, nbytes)
        except OSError as fault:
            if fault.errno == errno.ENOSPC:
                raise  # file systems that cannot reserve are written to all the same


def write_whole(path: Path, data: bytes) -> None:
    """Write one file outside a converted folder, or into one that is there: it appears whole, or what was there
    stays. What a run that was killed left of it goes.

    Raises CannotRun where it cannot be written.
    """
    work, held = None, None
    try:
        if path.is_dir():
            raise CannotRun(f"{path} is a folder; name a file", "cannot_write")
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        work, held = _working_place(path, _new_file)
        with open(work, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        work.chmod(0o666 & ~_umask())
        os.replace(work, path)
    except OSError as fault:
        raise CannotRun(f"{path}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
    finally:
        if work is not None:
            work.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _new_file(prefix: str, dir: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=prefix, dir=dir)
    os.close(handle)
    return name


def write_text(path: Path, text: str) -> None:
    """Write and sync a small file."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def json_bytes(data: Any) -> bytes:
    """JSON, readable by people; the same data gives the same bytes."""
    return (json.dumps(data, indent=2) + "\n").encode()


def write_json(path: Path, data: Any) -> None:
    """Write and sync JSON."""
    write_text(path, json_bytes(data).decode())


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """The index that tells loaders which shard holds which tensor; none for a single file."""
    if len(shards) < 2:
        return
    weight_map = {p.key: s.name for s in shards for p in s.pieces}
    total = sum(p.out_nbytes for s in shards for p in s.pieces)
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def check_destination(folder: Path, overwrite: bool, checkpoint: Path, nbytes: int) -> None:
    """Raises CannotRun where the output may not or cannot go there, before anything is written."""
    final = resolved(folder)
    if folder.exists() and not folder.is_dir():
        raise CannotRun(f"{folder} is a file; --output names a folder", "output_is_a_file")
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    if present and not overwrite:
        raise CannotRun(
            f"{folder} exists and was kept as it is. Replace it with --overwrite, or name another folder with "
            "--output DIR.",
            "output_exists",
        )
    if folder.is_dir() and (final == Path.cwd() or os.path.ismount(folder)):
        raise CannotRun(
            f"{folder} is the working directory or a mount point; a conversion puts a new folder in the place of the "
            "old one, which is not possible there. Name a folder in it with --output.",
            "output_not_replaceable",
        )
    foreign = [p.name for p in present if not (OWN_FILES.fullmatch(_finished_name(p.name)) and p.is_file())]
    if not any(p.name == RECEIPT_NAME for p in present):
        foreign = [p.name for p in present]  # without the receipt it is somebody else's model
    if foreign:
        raise CannotRun(
            f"{folder} holds files that no conversion writes ({', '.join(foreign[:4])}), so --overwrite leaves it "
            "alone. Move them, or name another folder with --output DIR.",
            "output_not_ours",
        )
    if final in checkpoint.resolve().parents and present:
        message = f"{checkpoint} lies in {folder}, which would be replaced; name another --output DIR"
        raise CannotRun(message, "output_holds_input")
    check_space(folder.parent, nbytes, f"{folder} is to be written")


def _finished_name(name: str) -> str:
    """Of a file that a killed run left half written, the name that it would have had."""
    return re.sub(r"^\.(.+)\.partial-\w+$", r"\1", name)


def check_space(place: Path, nbytes: int, what: str) -> None:
    """Raises CannotRun where the disk that ``place`` (which need not exist) is on has less room."""
    free = shutil.disk_usage(_existing(place)).free
    if free < nbytes:
        needed = human_bytes(nbytes)
        raise CannotRun(f"no space: {what}, {needed}, and {human_bytes(free)} are free there", "no_space")


def same_disk(one: Path, other: Path) -> bool:
    """Whether two places, which need not exist, share their free space."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def resolved(path: Path) -> Path:
    """The place that a path leads to, links followed. Raises CannotRun for links that lead in a circle."""
    try:
        found = path.resolve()
    except RuntimeError:  # Python before 3.13
        found = path
    if found.is_symlink():
        raise CannotRun(f"{path}: its links lead in a circle", "links_in_a_circle")
    return found


def _existing(place: Path) -> Path:
    place = resolved(place)
    while not place.exists():
        place = place.parent
    return place


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A working folder beside ``folder`` that takes its name at the end, or vanishes on a fault.

    With ``overwrite`` a folder of that name is replaced; on a fault it is there as before. Raises
    CannotRun for faults of the file system, and for a folder that came there in the meantime.
    """
    final = resolved(folder)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work, held = _working_place(final, tempfile.mkdtemp)
        old = _beside(work, "old")
        work.chmod(0o777 & ~_umask())
        try:
            yield work
            _sync_folder(work)
            if not overwrite and final.is_dir() and any(final.iterdir()):
                raise CannotRun(f"{folder} came into being during the conversion and was kept", "output_exists")
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
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _working_place(final: Path, make: Callable[..., str]) -> tuple[Path, int | None]:
    """A new folder or file beside ``final``, and the lock on it."""
    for last in (False, False, True):
        # Unique also among containers, where every process has the same number.
        work = Path(make(prefix=f".{final.name}.partial-", dir=final.parent))
        held = _hold(work)
        if last or (held is not None and work.exists()):
            break
        # Another run has taken it for one that was left behind, or there are no locks here.
        _remove(work)
        if held is not None:
            os.close(held)
    return work, held


def _hold(work: Path) -> int | None:
    """A lock on a working folder or file, which goes with the process however it ends: it tells that of a run that
    is under way from one that was left behind. None where somebody else has it, or there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = None
    try:
        handle = os.open(work, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def clear_leftovers(folder: Path) -> None:
    """Remove what runs that were killed left beside ``folder``; one that was killed while it put a new folder in
    the place of an old one gets the old one back. Folders of runs that are under way stay."""
    final = resolved(folder)
    for work in _left(final, "partial"):
        held = _hold(work)
        if held is None:
            continue
        old = _beside(work, "old")
        try:
            if old.exists() and not final.exists():
                os.rename(old, final)
            _remove(work)
        except OSError:
            continue  # it is named among the notes of the plan
        finally:
            os.close(held)
    for old in _left(final, "old"):
        work = _beside(old, "partial")
        if final.exists() and not work.exists():  # it has become the final one
            shutil.rmtree(old, ignore_errors=True)


def _remove(work: Path) -> None:
    if work.is_dir():
        shutil.rmtree(work, ignore_errors=True)
    else:
        work.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Working folders, or files, that an interrupted run left beside ``folder``."""
    final = resolved(folder)
    return sorted([*_left(final, "partial"), *_left(final, "old")])


def _left(final: Path, kind: str) -> list[Path]:
    return sorted(final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"))


def _beside(place: Path, kind: str) -> Path:
    """Of a working folder, the place of the old one that it replaces, and the other way round."""
    return place.with_name(re.sub(r"\.(?:partial|old)-(\w+)$", rf".{kind}-\1", place.name))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
