"""A file that is put together from others: the position in it, which zipfile and the readers move."""

from __future__ import annotations

import io


class PositionedFile(io.RawIOBase):
    """Read from ``_position`` on, which a subclass moves as it reads. ``size``: in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start of the file")
        self._position = base + offset
        return self._position
