"""Files that are made to do harm, given to the command line as a user would, in a process of its own.

In every case: the documented exit code, one message of readable length, no traceback, no output, no code
run, and little memory and time.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from folders import ENCODER, convert, environment, sam3lite, tiny_state, write

from sam3lite_convert.checkpoint import read_checkpoint
from sam3lite_convert.errors import Untrusted

MOST_MEMORY = 250 << 20
MOST_SECONDS = 20
MOST_TEXT = 20_000


# What a process takes before it becomes another program counts as its own with the system, so it is asked itself.
COMMAND = """
import re, sys
from sam3lite_convert.cli import main
try:
    main()
finally:
    try:
        status = open("/proc/self/status").read()
    except OSError:
        status = "VmHWM: 0 kB"
    print(re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=open(sys.argv[0] + "peak", "w"))
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    peak: int  # bytes


def run(folder: Path, *arguments: object) -> Ended:
    """The command line in a process of its own, killed where it takes too long."""
    code = COMMAND.replace("sys.argv[0] + ", repr(str(folder)) + " + '/' + ")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    surroundings = environment() | {"COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, cwd=folder, env=surroundings, timeout=MOST_SECONDS, check=False)
    peak = folder / "peak"
    size = int(peak.read_text())
    peak.unlink()
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode(), size * 1024)


# ---- how such files are made --------------------------------------------------------------------------


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in entries.items():
            made.writestr(f"archive/{name}", data)
    return path


def pickled(path: Path, data: bytes) -> Path:
    """The archive of torch.save with this pickle, and one storage of 48 bytes."""
    return archive(path, {"data.pkl": data, "byteorder": b"little", "data/0": bytes(48), "version": b"3\n"})


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    shape: tuple[int, ...] = (3, 4),
    stride: tuple[int, ...] = (4, 1),
    kind: str = "FloatStorage",
    key: str = "0",
    offset: int = 0,
    numel: int = 12,
) -> bytes:
    """Opcodes that build a tensor over the storage ``key``."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel) + b"tQ"
    sizes = [b"(" + b"".join(map(integer, side)) + b"t" for side in (shape, stride)]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + sizes[0] + sizes[1] + b"\x89}tR"


def state(*items: bytes) -> bytes:
    """A pickle of {key: value, ...}; the items are keys and values in turn."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def legacy(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def patched(path: Path, at: int, data: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


def directory_entry(path: Path, name: str) -> int:
    """Where the zip directory's entry of that name begins."""
    whole = path.read_bytes()
    return whole.rindex(f"archive/{name}".encode()) - 46


# ---- the files ----------------------------------------------------------------------------------------

SYSTEM = "touch sentinel"
EVAL = "open('sentinel', 'w').close()"


def bomb(path: Path) -> Path:
    return archive(path, {"data.pkl": bytes(256 << 20), "data/0": bytes(48)}, zipfile.ZIP_DEFLATED)


def overlapping_entries(path: Path) -> Path:
    """A second storage of which the directory says that it lies in the first one."""
    pickled(path, state(text("w"), tensor()))
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("archive/data/1", bytes(48))
    with zipfile.ZipFile(path) as made:
        place = made.getinfo("archive/data/0").header_offset
    return patched(path, directory_entry(path, "data/1") + 42, struct.pack("<I", place))


def swapped_offsets(path: Path) -> Path:
    """Two entries of the directory that point at each other's bytes."""
    archive(path, {"data.pkl": state(text("w"), tensor()), "data/0": bytes(48), "data/1": b"\1" * 48})
    with zipfile.ZipFile(path) as made:
        places = [made.getinfo(f"archive/data/{n}").header_offset for n in (0, 1)]
    for n in (0, 1):
        patched(path, directory_entry(path, f"data/{n}") + 42, struct.pack("<I", places[1 - n]))
    return path


def wrong_offset(path: Path) -> Path:
    pickled(path, state(text("w"), tensor()))
    return patched(path, directory_entry(path, "data/0") + 42, struct.pack("<I", 7))


def offset_outside(path: Path) -> Path:
    pickled(path, state(text("w"), tensor()))
    return patched(path, directory_entry(path, "data/0") + 42, struct.pack("<I", 0xFFFFFFF0))


def longer_than_the_file(path: Path) -> Path:
    pickled(path, state(text("w"), tensor()))
    return patched(path, directory_entry(path, "data/0") + 20, struct.pack("<II", 1 << 31, 1 << 31))


def two_sizes(path: Path) -> Path:
    pickled(path, state(text("w"), tensor()))
    return patched(path, directory_entry(path, "data/0") + 24, struct.pack("<I", 4))


def encrypted(path: Path) -> Path:
    pickled(path, state(text("w"), tensor()))
    return patched(path, directory_entry(path, "data/0") + 8, b"\1")


def endless_directory(path: Path) -> Path:
    """A directory of 64 MB, a million entries of a few bytes each."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", state(text("w"), tensor()))
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0)
    start = path.stat().st_size
    with open(path, "ab") as file:
        for begin in range(0, 1_000_000, 10_000):
            file.write(b"".join(entry + b"archive/data/%06d" % n for n in range(begin, begin + 10_000)))
        size = file.tell() - start
        # The directory's end in the zip64 form, then the old one, which says "look there".
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, size, start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, start + size, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path


def imports_a_module(path: Path) -> Path:
    (path.parent / "evil_module.py").write_text(EVAL)
    return pickled(path, b"\x80\x02cevil_module\nanything\n.")


def header(content: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    made = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(made) if length is None else length) + made + data


def st_entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


DEEP = 10_000
HUGE = 2**61 - 1

# name -> what makes the file
UNTRUSTED: dict[str, Any] = {
    "os.system": lambda p: pickled(p, pickle.dumps({"model": Calls(os.system, SYSTEM)}, 2)),
    "os.system, legacy": lambda p: legacy(p, {"model": Calls(os.system, SYSTEM)}),
    "eval": lambda p: pickled(p, pickle.dumps({"model": Calls(eval, EVAL)}, 2)),
    "eval, behind the weights": lambda p: legacy(p, {"model": {"w": torch.ones(2)}, "z": Calls(eval, EVAL)}),
    "eval, a bare pickle": lambda p: p.write_bytes(pickle.dumps({"model": Calls(eval, EVAL)})),
    "imports a module": imports_a_module,
    "lists 10,000 deep": lambda p: pickled(p, b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."),
    "dicts 10,000 deep": lambda p: pickled(p, b"\x80\x02}" + (text("model") + b"}") * DEEP + b"s" * DEEP + b"."),
    "tuples 10,000 deep": lambda p: pickled(p, b"\x80\x02)" + b"\x85" * DEEP + b"."),
    "a key 10,000 deep": lambda p: pickled(p, b"\x80\x02})" + b"\x85" * DEEP + b"K\1s."),
    "2^60 elements": lambda p: pickled(p, state(text("w"), tensor((2**60,), (1,), numel=2**60))),
    "2^60 times the same element": lambda p: pickled(p, state(text("w"), tensor((2**60,), (0,)))),
    "2^60 x 2^60 x 0 elements": lambda p: pickled(
        p, state(text("w"), tensor((2**60, 2**60, 0), (1, 1, 1)), text("v"), tensor((2**60, 4), (1, 1)))
    ),
    "a storage that is not there": lambda p: pickled(p, state(text("w"), tensor(key="7"))),
    "a storage outside the archive": lambda p: pickled(p, state(text("w"), tensor(key="../../secret"))),
    "starts behind its storage": lambda p: pickled(p, state(text("w"), tensor(offset=1))),
    "starts before its storage": lambda p: pickled(p, state(text("w"), tensor(offset=-1))),
    "lies about the dtype": lambda p: pickled(p, state(text("w"), tensor(kind="DoubleStorage"))),
    "lies about the stride": lambda p: pickled(p, state(text("w"), tensor(stride=(5, 1)))),
    "a negative stride": lambda p: pickled(p, state(text("w"), tensor(stride=(-4, 1)))),
    "repeats a key": lambda p: pickled(p, state(text("w"), tensor(), text("w"), tensor())),
    "repeats a key later": lambda p: pickled(p, state(text("w"), tensor())[:-1] + text("w") + tensor() + b"s."),
    "repeats a key through the memo": lambda p: pickled(
        p, b"\x80\x02}q\0" + text("w") + tensor() + b"s0h\0" + text("w") + tensor() + b"s."
    ),
    "repeats a key of a copy on the stack": lambda p: pickled(
        p, b"\x80\x02}2" + text("w") + tensor() + b"s0" + text("w") + tensor() + b"s."
    ),
    "repeats a key behind attributes": lambda p: pickled(
        p,
        b"\x80\x02ccollections\nOrderedDict\n)R" + text("w") + tensor() + b"s}b" + text("w") + tensor() + b"s.",
    ),
    "repeats a key of a dict made in another way": lambda p: pickled(
        p,
        b"\x80\x02ccollections\nOrderedDict\n)\x81q\0" + (text("w") + tensor() + b"s0h\0") * 2 + b".",
    ),
    "repeats a key of a dict made in an old way": lambda p: pickled(
        p, b"\x80\x02(icollections\nOrderedDict\nq\0" + (text("w") + tensor() + b"s0h\0") * 2 + b"."
    ),
    "repeats a key at once": lambda p: pickled(p, b"\x80\x02(" + text("w") + tensor() + text("w") + tensor() + b"d."),
    "repeats a key in Python 2's way": lambda p: pickled(p, b"\x80\x02(U\1w" + tensor() + text("w") + tensor() + b"d."),
    "repeats a key in pairs": lambda p: pickled(
        p, b"\x80\x02ccollections\nOrderedDict\n]((" + text("w") + b"K\1l(" + text("w") + b"K\2le\x85R."
    ),
    "entries of several lines": lambda p: pickled(
        p, state(text("model"), state(text("w"), tensor())[2:-1], text("a\nb"), b"N")
    ),
    "repeats model": lambda p: pickled(p, state(text("model"), b"}", text("model"), state(text("w"), tensor())[2:-1])),
    "a million empty sets": lambda p: pickled(p, b"\x80\x04]" + b"\x8f" * 2_000_000 + b"."),
    "a million notes": lambda p: pickled(p, b"\x80\x04N" + b"\x94" * 2_000_000 + b"."),
    "a long integer as a key, often": lambda p: pickled(
        p, b"\x80\x02}\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b"q\0(" + b"h\0N" * 100_000 + b"u."
    ),
    "a long tuple as a key, often": lambda p: pickled(
        p, b"\x80\x02}(" + b"K\1" * 4000 + b"tq\0(" + b"h\0N" * 200_000 + b"u."
    ),
    "a long tuple in sets, often": lambda p: pickled(
        p, b"\x80\x04(" + b"K\1" * 4000 + b"tq\x00" + b"\x8f(h\x00\x90" * 20_000 + b"."
    ),
    "tuples that may collide": lambda p: pickled(p, b"\x80\x02}(" + b"K\1K\2\x86N" * 20_000 + b"u."),
    "integers that collide": lambda p: pickled(
        p, state(*(part for n in range(1, 60_000) for part in (integer(n * HUGE), b"K\1")))
    ),
    "a memo index beyond reason": lambda p: pickled(p, b"\x80\x02}r\xff\xff\xff\x7f."),
    "a frame of 2^62 bytes": lambda p: pickled(p, b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}."),
    "a text of 2^31 bytes": lambda p: pickled(p, b"\x80\x02X\xff\xff\xff\x7fabc."),
    "an integer of a million digits": lambda p: pickled(p, b"\x80\x02L" + b"9" * 1_000_000 + b"L\n."),
    "overlapping entries": overlapping_entries,
    "swapped offsets": swapped_offsets,
    "a wrong offset": wrong_offset,
    "an offset outside": offset_outside,
    "an entry longer than the file": longer_than_the_file,
    "an entry with two sizes": two_sizes,
    "encrypted": encrypted,
    "compressed": lambda p: archive(
        p, {"data.pkl": state(text("w"), tensor()), "data/0": bytes(48)}, zipfile.ZIP_DEFLATED
    ),
    "a zip bomb": bomb,
    "an index of 16 MB": lambda p: pickled(p, b"\x80\x02}" + b"0" * (16 << 20) + b"."),
    "a directory of 64 MB": endless_directory,
    "a name of several lines": lambda p: pickled(p, b"\x80\x04" + text("os\nerror: x") + text("f\ng") + b"\x93."),
    "a name of a megabyte": lambda p: pickled(p, b"\x80\x02c" + b"m" * (1 << 20) + b"\nf\n."),
    "an entry of several lines": lambda p: archive(p, {"data.pkl": b"\x80\x02}.", "x\nerror: y": b""}),
    "an entry twice": lambda p: pickled(p, b"\x80\x02}.") and _again(p),
    "a byte order of 32 MB": lambda p: archive(p, {"data.pkl": b"\x80\x02}.", "byteorder": bytes(32 << 20)}),
    "safetensors: a header of 2^63": lambda p: p.write_bytes(header(st_entry(), length=2**63)),
    "safetensors: a header of 90 MB": lambda p: p.write_bytes(header(b'{"a":[' + b"[],[],[" * (13 << 20) + b"1]}")),
    "safetensors: lists 10,000 deep": lambda p: p.write_bytes(header(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}")),
    "safetensors: 2^60 elements": lambda p: p.write_bytes(header(st_entry(shape=[2**60]))),
    "safetensors: outside": lambda p: p.write_bytes(header(st_entry(data_offsets=[2**60, 2**60 + 16]))),
    "safetensors: overlaps": lambda p: p.write_bytes(header(st_entry() | {"v": st_entry()["w"]})),
    "safetensors: a key twice": lambda p: p.write_bytes(header(b'{"w":' + b"{}" + b',"w":{}}')),
    "safetensors: a dtype that is none": lambda p: p.write_bytes(header(st_entry(dtype="__import__('os')"))),
    "safetensors: a name of several lines": lambda p: p.write_bytes(header({"w\nerror: x": st_entry()["w"]})),
    "safetensors: a dtype of a megabyte": lambda p: p.write_bytes(header(st_entry(dtype="F" * (1 << 20)))),
    "safetensors: an integer of a million digits": lambda p: p.write_bytes(header(b'{"a":' + b"9" * 1_000_000 + b"}")),
}


def _again(path: Path) -> None:
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as made:
        made.writestr("archive/data.pkl", state(text("w"), tensor()))


def assert_refused(done: Ended, folder: Path, before: set[str], code: int) -> None:
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert done.err.startswith("error: ")
    assert len(done.err) < MOST_TEXT
    assert all(c.isprintable() or c == "\n" for c in done.err)
    assert not any(line.startswith("error: ") for line in done.err.split("\n")[1:])
    assert {p.name for p in folder.iterdir()} == before
    assert done.peak < MOST_MEMORY, f"{done.peak / 2**20:.0f} MB"


REPEATS = [name for name in UNTRUSTED if name.startswith("repeats")]


@pytest.mark.parametrize("name", REPEATS)
def test_a_key_that_is_set_twice_is_what_is_refused(name, tmp_path):
    UNTRUSTED[name](tmp_path / "file.pt")
    with pytest.raises(Untrusted) as refusal:
        read_checkpoint(tmp_path / "file.pt")
    assert refusal.value.code == "repeated_key"


@pytest.mark.parametrize("name", UNTRUSTED)
def test_a_hostile_file_is_refused(name, tmp_path):
    path = tmp_path / "file.pt"
    UNTRUSTED[name](path)
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    # Lists and dicts may be as deep as they like: there is no state dict in them.
    assert_refused(done, tmp_path, before, 3 if name in ("lists 10,000 deep", "dicts 10,000 deep") else 4)
    assert done.out == ""


def test_the_hand_made_file_is_a_good_one(tmp_path):
    path = pickled(tmp_path / "file.pt", state(text("w"), tensor()))
    assert sorted(torch.load(path)) == ["w"]
    assert "no MobileCLIP text encoder" in run(tmp_path, "convert", "--checkpoint", path).err


KEYS = {
    "lines": "a\nerror: b\r\nc",
    "control characters": "\x1b]0;title\x07\x1b[2J\x00\x9b31m",
    "a path": "../../../../etc/passwd",
    "a root": "/etc/passwd",
    "markup": "[red]{0}%s<b>$(touch sentinel)`touch sentinel`",
    "right to left": "\u202etxt.exe\u2066",
    "no character": "\udc80\ud800",
    "nothing": "",
    "a layer far away": "detector.transformer.encoder.layers.99999999999.norm1.weight",
    "900 digits": "detector.transformer.encoder.layers." + "9" * 900 + ".norm1.weight",
    "900 prefixes and more": "module." * 130 + "w",
    "a megabyte": "k" * (1 << 20),
    "a megabyte of dots": "." * (1 << 20),
    "a megabyte of digits": "detector.transformer.encoder.layers." + "9" * (1 << 20) + ".norm1.weight",
    "a megabyte that begins well": ENCODER + "transformer." * 80_000,
    "a megabyte of prefixes": "module." * 150_000 + "w",
}


NO_NAMES = ("lines", *(name for name in KEYS if name.startswith("a megabyte")))


@pytest.mark.parametrize("name", KEYS)
def test_a_strange_key_is_named_and_refused(name, tmp_path):
    path = write(tmp_path, tiny_state() | {KEYS[name]: torch.ones(1)})
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 4 if name in NO_NAMES else 3)
    for command in (["inspect", path], ["convert", "--checkpoint", path, "--dry-run"]):
        done = sam3lite(*command)
        assert "Traceback" not in done.err and len(done.err) + len(done.out) < MOST_TEXT
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)


@pytest.mark.parametrize("name", [name for name in KEYS if name not in NO_NAMES])
def test_a_strange_key_that_is_dropped_goes_no_further_than_the_receipt(name, tmp_path):
    key = "tracker.x" + KEYS[name]
    path = write(tmp_path, tiny_state() | {key: torch.ones(1)})
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert done.code == 0, done
    assert len(done.out) < MOST_TEXT and all(c.isprintable() or c == "\n" for c in done.out)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "out"}
    assert sam3lite("verify", tmp_path / "out", "--checkpoint", path).code == 0
    if name != "no character":
        assert key in json.loads((tmp_path / "out" / "conversion.json").read_text())["dropped"]


def test_thousands_of_keys_without_a_rule_take_no_minute(tmp_path):
    strange = {f"detector.{'x' * 60}.{n}.w{n % 7}": torch.ones(1) for n in range(20_000)}
    path = write(tmp_path, tiny_state() | strange)
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 3)
    assert "and 19900 more" in done.err


# ---- damage -------------------------------------------------------------------------------------------


def test_a_wrong_checksum_is_noticed_and_nothing_is_written(tmp_path):
    path = write(tmp_path, tiny_state())
    place = directory_entry_of_a_tensor(path)
    patched(path, place + 16, b"\xde\xad\xbe\xef")
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 4)


def directory_entry_of_a_tensor(path: Path) -> int:
    with zipfile.ZipFile(path) as made:
        name = next(n for n in made.namelist() if n.endswith("/data/3"))
    return path.read_bytes().rindex(name.encode()) - 46


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_at_any_64_kib_is_refused(kind, tmp_path):
    content = {"model": tiny_state()}
    whole = io.BytesIO()
    if kind == "safetensors":
        from safetensors.torch import save

        data = save({k: t.clone().contiguous() for k, t in tiny_state().items()})
    else:
        torch.save(content, whole, _use_new_zipfile_serialization=kind == "zip")
        data = whole.getvalue()
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    last = (len(data) - 1) // 65536 * 65536
    assert last > 50 * 65536
    started = time.monotonic()
    for end in range(last, -1, -65536):
        os.truncate(path, end)
        done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
        assert done.code == 4, (end, done)
        assert done.out == "" and done.err.count("error: ") == 1 and "Traceback" not in done.err
        assert [p.name for p in tmp_path.iterdir()] == ["file.pt"], end
    assert time.monotonic() - started < 60


# ---- folders --------------------------------------------------------------------------------------------

FOLDERS: dict[str, tuple[str, bytes]] = {
    "a config of 200 MB": ("config.json", b'{"a":[' + b"[]," * (70 << 20) + b"1]}"),
    "a config 10,000 deep": ("config.json", b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "a receipt 10,000 deep": ("conversion.json", b"[" * DEEP + b"]" * DEEP),
    "a receipt that is a list": ("conversion.json", b"[]"),
    "a receipt of other types": ("conversion.json", b'{"source": 1, "tensors": [1], "dropped": "x", "layout": {}}'),
    "an index that leads out": ("model.safetensors.index.json", b'{"weight_map": {"w": "../../secret"}}'),
    "an index with a null character": ("model.safetensors.index.json", b'{"weight_map": {"w": "a\\u0000b"}}'),
    "a config that is no text": ("config.json", b"\xff\xfe\x00"),
}


@pytest.fixture(scope="module")
def folder_of_text(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    source = write(root, tiny_state())
    return source, convert(source, root / "out", "--component", "text")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_not_proven(name, folder_of_text, tmp_path):
    source, good = folder_of_text
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    file, data = FOLDERS[name]
    (folder / file).write_bytes(data)
    done = run(tmp_path, "verify", folder, "--checkpoint", source)
    assert done.code in (1, 2, 4), done
    assert "Traceback" not in done.err and len(done.out) + len(done.err) < MOST_TEXT
    assert done.peak < MOST_MEMORY, f"{done.peak / 2**20:.0f} MB"
