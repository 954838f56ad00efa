"""Coverage-guided fuzzing of the reader with atheris: ``python tests/fuzz [libFuzzer options] [corpus]``.

A finding is written to ``crash-...`` in the working directory. Put it into ``corpus`` with the mend: the suite
replays everything there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["sam3lite_convert", "pickletools", "zipfile", "json"]):
    import reader  # isort: skip


def main() -> None:
    folder = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    path = Path(folder) / "file.pt"

    calls = 0

    def once(data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 100:
            reader.forbid()  # whatever is imported late has been imported by then
        reader.write(path, data)
        reader.check(path)

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
