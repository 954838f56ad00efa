"""Opens a zip archive without reading a directory of gigabytes into memory."""

from __future__ import annotations

import zipfile
from typing import BinaryIO, cast

from sam3lite_convert.checkpoint.index import INDEX_LIMIT


class _Sparing:
    """The file for the zip library, with a limit: the library would read a directory of gigabytes into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, nbytes: int = -1) -> bytes:
        if nbytes > INDEX_LIMIT:
            raise zipfile.BadZipFile(f"its directory has more than {INDEX_LIMIT:,} bytes")
        return self._read(INDEX_LIMIT if nbytes < 0 else nbytes)  # without a number: the last 64 KiB, to their end


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The archive, whose directory may have at most 8 MiB. Raises what the library raises for damaged archives, among
    it BadZipFile, ValueError, OSError and NotImplementedError."""
    return zipfile.ZipFile(cast(BinaryIO, _Sparing(file)))
