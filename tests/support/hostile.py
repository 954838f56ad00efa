"""Files and names that are made to do harm, and how to make them."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.folders import ENCODER

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
    part: bytes = b"",
) -> bytes:
    """Opcodes that build a tensor over the storage ``key``. ``part``: in the older format, what makes None or the part
    of the storage that is meant."""
    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel) + part + b"tQ"
    )
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


def sixty_times_sixty() -> bytes:
    """A key of ten tuples, each holding the one before sixty times."""
    data = b"\x80\x02)q\x00"
    for i in range(10):
        data += b"(" + (b"h" + bytes([i])) * 60 + b"tq" + bytes([i + 1])
    return data + b"}h\x0aNs."


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
    # 32 tuples, each holding the one before twice, as a key: 2^32 steps for whoever hashes it.
    "a key of tuples that double": lambda p: pickled(p, b"\x80\x02}K\1\x85" + b"2\x86" * 32 + b"K\1s."),
    "a key of tuples that grow by sixty": lambda p: pickled(p, sixty_times_sixty()),
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
    "one storage of two types": lambda p: pickled(p, state(text("w"), tensor(), text("v"), tensor(kind="IntStorage"))),
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
    "a memo index beyond reason, as text": lambda p: pickled(p, b"\x80\x02}p2147483000\n."),
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
    "safetensors: an unknown dtype": lambda p: p.write_bytes(header(st_entry(dtype="__import__('os')"))),
    "safetensors: a name of several lines": lambda p: p.write_bytes(header({"w\nerror: x": st_entry()["w"]})),
    "safetensors: a dtype of a megabyte": lambda p: p.write_bytes(header(st_entry(dtype="F" * (1 << 20)))),
    "safetensors: an integer of a million digits": lambda p: p.write_bytes(header(b'{"a":' + b"9" * 1_000_000 + b"}")),
}


def _again(path: Path) -> None:
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as made:
        made.writestr("archive/data.pkl", state(text("w"), tensor()))


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
