"""Puts a finished folder or file in the place of an earlier one: what is taken out is checked before it is removed.

Between the look at the start of a run and its end, others may write to the place. So what stands there is taken out
first, under another name, and compared with what was seen at the start. It is removed if it is that, and put back if it
is not.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.opened import NO_WAIT
from sam3lite_convert.renames import exchange, move_to_free
from sam3lite_convert.seen import Seen, identity, look
from sam3lite_convert.working_places import WorkingPlace, discard, hold, visible, working_place

# A file system that cannot do it; the entries may be on disk or not, as everywhere without it.
_NO_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTTY,
}


def check_movable(final: Path, earlier: Seen) -> None:
    """Raises CannotRun, before anything is written, if the system would not let a folder take the place of the earlier
    one. Nothing is changed."""
    if not earlier.is_folder:
        return
    try:
        _try_rename(final, earlier)
    except OSError as fault:
        if fault.errno == errno.EBUSY:
            why = "it is a mount point, or in use by the system"
        elif fault.errno == errno.EXDEV:
            why = "it is part of an image (a lower layer of an overlay), and its file system does not rename it"
        else:
            raise CannotRun(f"{final}: {fault.strerror or fault}; nothing was written there", "cannot_write") from None
        raise CannotRun(
            f"{final} cannot be replaced: {why}. Choose a folder inside it, or another one, with --output",
            "output_not_replaceable",
        ) from None


def _try_rename(final: Path, earlier: Seen) -> None:
    """Rename the earlier folder to the name of a folder that is not empty: that fails whatever happens, and the reason
    that the system gives shows whether it would have done it. Raises OSError if not."""
    probe = working_place(final, True, earlier)
    try:
        with open(probe.path / "full", "wb"):
            pass
        try:
            os.rename(final, probe.path)
        except OSError as fault:
            if fault.errno == errno.EXDEV and earlier.is_empty_folder:
                return  # it is removed instead
            if fault.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            move_to_free(probe.path, final)
    finally:
        probe.remove()
        probe.close()


def put_in_place(work: WorkingPlace, earlier: Seen) -> None:
    """Rename the finished folder or file to its final name and remove ``earlier``, which stood there at the start.

    Raises CannotRun, with the new one not in place and what stands there untouched, if that is something else by now
    ("output_changed"), or if the system reports an error ("cannot_write"). If only the last step fails, writing the
    entry to disk, the message says that the new one is in place.
    """
    final = work.final
    # So that a run beside this one leaves it alone while it lies under another name.
    lock = hold(final)
    try:
        taken = _take_out(work, earlier)
        unsynced = None
        try:
            sync_folder(final.parent)
        except OSError as fault:
            unsynced = fault
        if taken is not None:
            discard(taken, earlier, final)
        if unsynced is not None:
            then = "run sam3lite verify on it" if final.is_dir() else "write it once more"
            raise CannotRun(
                f"{final} is written and in its place, but the system reports that it may not be on disk yet: "
                f"{unsynced.strerror or unsynced}. Check the disk, then {then}",
                "cannot_write",
            ) from unsynced
    finally:
        if lock is not None:
            os.close(lock)


def _take_out(work: WorkingPlace, earlier: Seen) -> Path | None:
    """Put the new one in place; returns where the earlier one lies now, and None if there is nothing to remove."""
    try:
        if earlier.itself is not None and not earlier.is_empty_folder:
            with suppress(FileNotFoundError):  # it was removed or moved away meanwhile: the place is free
                return _exchanged(work, earlier)
        move_to_free(work.path, work.final)
    except FileExistsError as fault:
        why = earlier.difference(look(work.final)) or "something else was there for a moment"
        raise changed(work.final, why) from fault
    return None


def _exchanged(work: WorkingPlace, earlier: Seen) -> Path:
    final, aside = work.final, work.path
    if not _swapped(work):
        return _aside(work, earlier)
    try:
        check_same(final, earlier, look(aside))
    except BaseException:
        _back(work)
        raise
    return aside


def _swapped(work: WorkingPlace) -> bool:
    try:
        return exchange(work.path, work.final)
    except BaseException:
        if identity(work.final) == work.number:  # ended just after it was done
            _back(work)
        raise


def _back(work: WorkingPlace) -> None:
    """Undo the exchange, unless somebody else took the new one out meanwhile."""
    if identity(work.final) != work.number:
        return
    try:
        exchange(work.path, work.final)
    except OSError as fault:
        kept = visible(work.final)
        os.rename(work.path, kept)
        raise CannotRun(
            f"{work.final}: {fault.strerror or fault}. The new one is in place; what stood there is kept: {kept}",
            "cannot_write",
        ) from fault


def _aside(work: WorkingPlace, earlier: Seen) -> Path:
    """The same in two steps, where names cannot be exchanged."""
    final, aside = work.final, work.aside
    try:
        os.rename(final, aside)
        check_same(final, earlier, look(aside))
        move_to_free(work.path, final)
    except BaseException as fault:
        if os.path.lexists(aside) and identity(final) != work.number:
            try:
                move_to_free(aside, final)
            except OSError:
                kept = visible(final)
                os.rename(aside, kept)
                raise CannotRun(
                    f"{final}: something else was put there meanwhile. What stood there before is kept: {kept}; "
                    "nothing was written",
                    "output_changed",
                ) from fault
        raise
    return aside


def check_same(final: Path, earlier: Seen, now: Seen) -> None:
    """Raises CannotRun ("output_changed") if what stands at a place is not what stood there when the run began."""
    why = earlier.difference(now)
    if why is not None:
        raise changed(final, why)


def changed(final: Path, why: str) -> CannotRun:
    """The error for a place where something else stands than when the run began; ``why``: how it differs."""
    return CannotRun(
        f"{final} changed during the run, so it was not replaced and is as it was found: {why}. Nothing was written "
        "there. Run it again, or choose another place with --output",
        "output_changed",
    )


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the file system can. Raises OSError if it reports an error."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, NO_WAIT)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as fault:
        if fault.errno not in _NO_SYNC:
            raise


def sync_file(handle: int) -> None:
    """Sync an open file to disk, where the file system can. Raises OSError if it reports an error."""
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in _NO_SYNC:
            raise
