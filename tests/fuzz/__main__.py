"""Coverage-guided fuzzing with atheris: ``python tests/fuzz TARGET [libFuzzer options] [corpus]``, with TARGET one of
checkpoints, tables, activations, folders.

A finding is written to ``crash-...`` in the working directory. Put it into ``corpus/TARGET`` with the mend: the suite
replays everything there.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import atheris  # noqa: E402
import watch  # noqa: E402

LIBRARIES = ["pickletools", "zipfile", "json", "configparser"]
with atheris.instrument_imports(include=["sam3lite_convert", *LIBRARIES]):
    import targets


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in targets.NAMES:
        sys.exit(f"usage: python tests/fuzz {{{','.join(targets.NAMES)}}} [libFuzzer options] [corpus]")
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["sam3lite_convert", *LIBRARIES]):
        target = targets.load(name)
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    # What is imported late is imported by these.
    for seed in sorted((TESTS / "fuzz" / "corpus" / name).iterdir()):
        target.write(place, seed.read_bytes())
        target.check(place)

    def once(data: bytes) -> None:
        target.write(place, data)
        with watch.forbidden():
            target.check(place)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as other:
        # With -merge=1 libFuzzer starts itself again, by the first word of its command.
        again = Path(other) / name
        again.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(TESTS / "fuzz"), name])} "$@"\n')
        again.chmod(0o700)
        atheris.Setup([str(again), *sys.argv[1:]], once)
        try:
            atheris.Fuzz()
        finally:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
