"""Files that are no good: which fault it is, and that reading them does nothing else."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from support.checkpoints import (
    assert_reads_as_torch,
    either_format,
    refused,
    saved,
    tensors,
)
from support.rows import read_member, rewrite_zip

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan

# ---- files that are no checkpoint ------------------------------------------------------------


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2200000000\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"


@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello, this is only a text\n" * 40, "text"),
        (LFS, "LFS"),
        (HTML, "web page"),
        (b"  \n" + HTML.lower(), "web page"),
        (bytes(4096), "zeros"),
    ],
    ids=["empty", "text", "lfs", "html", "html2", "zeros"],
)
def test_a_file_that_is_something_else_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    assert says in refused(path).message


def test_noise_is_no_checkpoint(tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(random.Random(1).randbytes(4096))
    refused(path)


def test_a_missing_file_cannot_run(tmp_path):
    refused(tmp_path / "nowhere.pt", CannotRun)


def test_a_folder_cannot_run(tmp_path):
    refused(tmp_path, CannotRun)


def test_a_path_below_a_file_cannot_run(tmp_path):
    (tmp_path / "file.pt").write_bytes(b"x")
    refused(tmp_path / "file.pt" / "model.pt", CannotRun)


def test_a_name_that_is_too_long_cannot_run(tmp_path):
    refused(tmp_path / ("x" * 300 + ".pt"), CannotRun)


@either_format
@pytest.mark.parametrize("cut", [1, 3, 4, 10, 40, 300, 0.2, 0.5, 0.9, -30, -1])
def test_a_truncated_file_is_not_trusted(tmp_path, legacy, cut):
    path = saved(tmp_path, {"model": tensors() | {"big": torch.ones(1000)}}, legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    refused(path)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 40, 0.5, -1])
def test_a_truncated_safetensors_file_is_not_trusted(tmp_path, cut):
    path = tmp_path / "file.safetensors"
    save_file(tensors(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    refused(path)


@either_format
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        {"model": {"a": 1}},
        {"epoch": 3},
        [torch.ones(2)],
        torch.ones(2),
        3,
        {"net": {"w": torch.ones(2)}},
    ],
    ids=["empty", "empty model", "numbers", "no model", "list", "tensor", "number", "elsewhere"],
)
def test_a_file_without_a_state_dict_is_unsound(tmp_path, legacy, content):
    refused(saved(tmp_path, content, legacy), UnsoundPlan)


@either_format
def test_two_state_dicts_are_unsound(tmp_path, legacy):
    message = refused(saved(tmp_path, {"model": tensors(), "state_dict": tensors()}, legacy), UnsoundPlan).message
    assert all(f"  {entry}: {len(tensors())} tensors" in message for entry in ("model", "state_dict"))
    assert "--state-dict-key model" in message


def test_a_torchscript_archive_is_named(tmp_path):
    path = tmp_path / "file.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    assert "TorchScript" in refused(path, UnsoundPlan).message


def test_any_other_zip_is_not_trusted(tmp_path):
    path = saved(tmp_path, tensors())
    refused(rewrite_zip(path, {"data.pkl": None}))


def test_a_saved_module_is_not_trusted(tmp_path):
    assert "torch.nn.modules" in refused(saved(tmp_path, torch.nn.Linear(2, 2))).message


# ---- files that would run code ------------------------------------------------------------------


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture(params=["os.system", "builtins.eval", "builtins.exec", "builtins.open"])
def weapon(request, tmp_path):
    """(an object whose unpickling creates the sentinel, the sentinel)"""
    sentinel = tmp_path / "sentinel"
    code = f"open({str(sentinel)!r}, 'w').close()"
    weapons = {
        "os.system": Calls(os.system, f"touch '{sentinel}'"),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "builtins.open": Calls(open, str(sentinel), "w"),
    }
    it = weapons[request.param]
    pickle.loads(pickle.dumps(it))
    assert sentinel.exists()
    sentinel.unlink()
    return it, sentinel


@either_format
@pytest.mark.parametrize("place", ["beside", "inside", "key", "all"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, weapon, legacy, place):
    evil, sentinel = weapon
    content = {
        "beside": {"model": tensors(), "meta": evil},
        "inside": {"model": tensors() | {"w": evil}},
        "key": {"model": tensors(), "meta": {("k", evil): 1}},
        "all": evil,
    }[place]
    fault = refused(saved(tmp_path, content, legacy))
    assert not sentinel.exists()
    assert fault.code == "hostile_pickle"


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_bare_pickle_is_not_run(tmp_path, weapon, protocol):
    evil, sentinel = weapon
    path = tmp_path / "file.pt"
    path.write_bytes(pickle.dumps({"model": evil}, protocol))
    refused(path)
    assert not sentinel.exists()


def with_pickle(tmp_path, data: bytes):
    return rewrite_zip(saved(tmp_path, {"model": tensors()}), {"data.pkl": data})


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "posix\nsystem",
        "builtins\ngetattr",
        "torch.hub\nload",
        "torch\nload",
        "torch\nos.system",
        "collections\nos",
    ],
)
def test_a_name_outside_the_table_is_refused_even_uncalled(tmp_path, name):
    fault = refused(with_pickle(tmp_path, b"\x80\x02c" + name.encode() + b"\n."))
    assert fault.code == "hostile_pickle"
    assert name.replace("\n", ".") in fault.message


@pytest.mark.parametrize("data", [b"\x80\x02\x82\x01.", b"", b"\x80\x02", b".", b"\x80\x02]", b"\x80\x02K\x01K\x02}s."])
def test_a_malformed_pickle_is_refused(tmp_path, data):
    refused(with_pickle(tmp_path, data))


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ctQ"


def one_tensor(offset=b"K\x00", size=b"K\x03K\x04\x86", stride=b"K\x04K\x01\x86", storage=STORAGE, built=b"") -> bytes:
    """A pickle {"w": tensor} in pieces; ``built`` acts on the finished tensor."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + stride
        + b"\x89}tR"
        + built
        + b"s."
    )


def test_the_hand_made_pickle_is_a_good_one(tmp_path):
    assert_reads_as_torch(with_pickle(tmp_path, one_tensor()))


def test_a_mark_that_is_taken_back_changes_nothing(tmp_path):
    odd = one_tensor().replace(b"\x80\x02", b"\x80\x02(0", 1)
    assert list(pickle.loads(b"\x80\x02(0}X\x01\x00\x00\x00wK\x01s.")) == ["w"]  # as Python has it
    (tensor,) = read_checkpoint(with_pickle(tmp_path, odd)).tensors.values()
    assert (tensor.key, tensor.dtype, tensor.shape) == ("w", "float32", (3, 4))


@pytest.mark.parametrize(
    "broken",
    [
        {"size": b"K\x04K\x04\x86"},
        {"size": b"\x8a\x07\xff\xff\xff\xff\xff\xff\x7fK\x04\x86"},
        {"offset": b"K\x01"},
        {"offset": b"J\xff\xff\xff\xff"},
        {"size": b"J\xfd\xff\xff\xffK\x04\x86"},
        {"size": b"G\x40\x08\x00\x00\x00\x00\x00\x00K\x04\x86"},
        {"size": b"X\x01\x00\x00\x003K\x04\x86"},
        {"size": b"N"},
        {"size": b"K\x0c\x85"},
        {"stride": b"K\x05K\x01\x86"},
        {"stride": b"J\xfc\xff\xff\xffK\x01\x86"},
        {"stride": b"\x8a\x07\xff\xff\xff\xff\xff\xff\x7fK\x01\x86"},
        {"size": b"\x8a\x07\xff\xff\xff\xff\xff\xff\x7fK\x01\x86", "stride": b"K\x00K\x00\x86"},
        {"storage": STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x02\x00\x00\x0099")},
        {"storage": STORAGE.replace(b"X\x01\x00\x00\x000", b"K\x00")},
        {"storage": STORAGE.replace(b"storage", b"stirage")},
        {"storage": STORAGE.replace(b"FloatStorage", b"float32")},
        {"storage": STORAGE.replace(b"ctorch\nFloatStorage\n", b"N")},
        {"storage": STORAGE.replace(b"FloatStorage", b"DoubleStorage")},
        {"storage": b"N"},
    ],
    ids=range(20),
)
def test_a_tensor_that_its_storage_cannot_hold_is_not_trusted(tmp_path, broken):
    refused(with_pickle(tmp_path, one_tensor(**broken)))


@pytest.mark.parametrize("keys", [3, None, [["0"]], [{}], [None], ["another"], "text", {"a": 1}], ids=repr)
def test_a_broken_list_of_storages_in_a_legacy_file_is_not_trusted(tmp_path, keys):
    path = saved(tmp_path, {"model": {"w": torch.ones(2)}}, legacy=True)
    whole = path.read_bytes()
    # The list is the last pickle: a list of one key, then the length and the elements of the storage.
    begin, end = whole.rindex(b"\x80\x02]q\x00"), len(whole) - 8 - 2 * 4
    path.write_bytes(whole[:begin] + pickle.dumps(keys, 2) + whole[end:])
    refused(path)


def test_a_storage_that_became_shorter_is_not_trusted(tmp_path):
    path = saved(tmp_path, {"model": tensors()})
    assert "a.weight" in refused(rewrite_zip(path, {"data/0": read_member(path, "data/0")[:-4]})).message


def test_a_storage_that_is_missing_is_not_trusted(tmp_path):
    assert "a.weight" in refused(rewrite_zip(saved(tmp_path, {"model": tensors()}), {"data/0": None})).message


def test_a_big_endian_file_is_not_trusted(tmp_path):
    refused(rewrite_zip(saved(tmp_path, {"model": tensors()}), {"byteorder": b"big"}))


def test_a_big_endian_file_of_the_old_format_is_not_trusted(tmp_path):
    path = saved(tmp_path, {"model": tensors()}, legacy=True)
    whole = path.read_bytes()
    at = whole.index(b"\x88", whole.index(b"little_endian"))  # True, the value behind that key
    path.write_bytes(whole[:at] + b"\x89" + whole[at + 1 :])
    assert refused(path).code == "big_endian"


def test_an_archive_that_holds_a_name_twice_is_not_trusted(tmp_path):
    # Which of the two is read is up to the reader, so it says nothing about another one's.
    path = saved(tmp_path, {"model": tensors()})
    with zipfile.ZipFile(path, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data/0"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, bytes(48))
    assert "the archive has two entries file/data/0" in refused(path).message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes among its files")
def test_a_named_pipe_cannot_run_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "file.pt")
    with pytest.raises(CannotRun, match="is not a regular file"):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "state",
    [
        b"}X\x05\x00\x00\x00shapeJ\xff\xff\xff\xff\x85s",
        b"}X\x05\x00\x00\x00shapeX\x01\x00\x00\x003\x85s",
        b"}X\x07\x00\x00\x00storageNs",
        b"}X\x05\x00\x00\x00dtypeX\x03\x00\x00\x00f32s",
    ],
    ids=["negative shape", "text shape", "no storage", "no dtype"],
)
def test_a_pickle_cannot_alter_a_finished_tensor(tmp_path, state):
    refused(with_pickle(tmp_path, one_tensor(built=state + b"b")))


def test_a_pickle_cannot_alter_the_reader(tmp_path):
    good = saved(tmp_path, {"model": tensors()})
    shapes = {k: t.dtype for k, t in read_checkpoint(good).tensors.items()}
    evil = tmp_path / "evil.pt"
    # "The dtype of a FloatStorage is float64 from now on."
    evil.write_bytes(good.read_bytes())
    rewrite_zip(evil, {"data.pkl": b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x07\x00\x00\x00float64sb."})
    try:
        with pytest.raises(Sam3LiteError):
            read_checkpoint(evil)
        assert {k: t.dtype for k, t in read_checkpoint(good).tensors.items()} == shapes
    finally:
        # Whatever came of it, the other tests read with the reader as it was.
        mend = b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x07\x00\x00\x00float32sb."
        with pytest.raises(Sam3LiteError):
            read_checkpoint(rewrite_zip(evil, {"data.pkl": mend}))


def test_tensors_whose_names_have_no_parts_are_pointed_to(tmp_path):
    fault = refused(saved(tmp_path, {"metrics": {"w": torch.ones(2)}, "epoch": 3}), UnsoundPlan)
    assert "--state-dict-key metrics" in fault.message


# ---- safetensors that contradict themselves ------------------------------------------------------


def safetensors(tmp_path, header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(**changes):
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


def test_the_hand_made_safetensors_file_is_a_good_one(tmp_path):
    assert read_checkpoint(safetensors(tmp_path, entry())).tensors["w"].shape == (2, 2)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 200, 0, 1])
def test_a_safetensors_header_of_the_wrong_length_is_not_trusted(tmp_path, length):
    refused(safetensors(tmp_path, entry(), length=length))


BROKEN_HEADERS = {
    "trailing bytes": (entry(), bytes(17)),
    "missing bytes": (entry(), bytes(15)),
    "range too short": (entry(data_offsets=[0, 12]), bytes(16)),
    "range reversed": (entry(data_offsets=[16, 0]), bytes(16)),
    "range negative": (entry(data_offsets=[-16, 0]), bytes(16)),
    "range of one": (entry(data_offsets=[0]), bytes(16)),
    "range of text": (entry(data_offsets=["0", "16"]), bytes(16)),
    "range of fractions": (entry(data_offsets=[0.0, 16.0]), bytes(16)),
    "range of nothing": (entry(data_offsets=None), bytes(16)),
    "shape negative": (entry(shape=[-2, -2]), bytes(16)),
    "shape of fractions": (entry(shape=[2.0, 2.0]), bytes(16)),
    "shape of text": (entry(shape="22"), bytes(16)),
    "shape of booleans": (entry(shape=[True, 4]), bytes(16)),
    "shape of lists": (entry(shape=[[2, 2]]), bytes(16)),
    "no dtype": ({"w": {"shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16)),
    "unknown dtype": (entry(dtype="F33"), bytes(16)),
    "dtype is a list": (entry(dtype=["F32"]), bytes(16)),
    "overlap": (entry() | {"v": entry(data_offsets=[0, 16])["w"]}, bytes(16)),
    "hole": (entry() | {"v": entry(data_offsets=[20, 36])["w"]}, bytes(36)),
    "entry is no object": ({"w": 3}, b""),
    "a list": ([], b""),
    "a number": (b"3", b""),
    "no JSON": (b"{nope}", b""),
    "no text": (b"{\xff\xfe}", b""),
    "UTF-16": (json.dumps(entry()).encode("utf-16-le"), bytes(16)),
    "deep": (b'{"a":' * 5000 + b"}" * 5000, b""),
    "metadata is text": ({"__metadata__": "abc"} | entry(), bytes(16)),
    "metadata is a list": ({"__metadata__": [1]} | entry(), bytes(16)),
    "metadata is a number": ({"__metadata__": 5} | entry(), bytes(16)),
}


@pytest.mark.parametrize("kind", BROKEN_HEADERS)
def test_a_broken_safetensors_header_is_not_trusted(tmp_path, kind):
    path = safetensors(tmp_path, *BROKEN_HEADERS[kind])
    with pytest.raises(SafetensorError), safe_open(path, "np"):
        pass
    refused(path)


def test_a_safetensors_header_that_holds_a_name_twice_is_not_trusted(tmp_path):
    one = json.dumps(entry()["w"])
    assert "twice" in refused(safetensors(tmp_path, f'{{"w":{one},"w":{one}}}'.encode())).message


# Names of Python's and of this tool's classes, which say nothing to the owner of a file.
LEAKS = re.compile(r"\b(?:None|int|str|NoneType|dict|list|tuple|object is|Error|TensorRecord|StorageRecord|Opaque)\b")


@pytest.mark.parametrize("kind", BROKEN_HEADERS)
def test_what_is_wrong_with_a_header_is_said_without_names_of_python(tmp_path, kind):
    message = refused(safetensors(tmp_path, *BROKEN_HEADERS[kind])).message
    assert not LEAKS.search(message), message


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (torch.ones(2), "a single tensor"),
        ([1, (2, 3)], "a list"),
        (torch.float32, "a single value"),
        (torch.ones(2).untyped_storage(), "a single value"),
        (None, "a single value"),
        (3, "a single value"),
        ("text", "a single value"),
        (Path("x"), "an object of another kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_file_holds_in_place_of_a_state_dict_is_said_in_words(tree, words, tmp_path):
    torch.save(tree, tmp_path / "file.pt")
    with pytest.raises(UnsoundPlan) as fault:
        read_checkpoint(tmp_path / "file.pt")
    assert fault.value.message.startswith(f"file.pt: the file holds {words}, not a state dict. Give the file that")


def test_keys_that_are_not_text_are_said_in_words(tmp_path):
    torch.save({"model": {"w": torch.ones(2), ("a", 1): 3, None: 4}, (1, 2): 5}, tmp_path / "file.pt")
    notes = read_checkpoint(tmp_path / "file.pt").notes
    assert notes == (
        "not read, beside the state dict: (a key that is not text)",
        "2 entries of the state dict are not tensors and are left out: (a key that is not text), "
        "(a key that is not text)",
    )


@pytest.mark.parametrize("data", [b"\x80\x02K\x01K\x02R.", b"\x80\x02K\x01}b.", b"\x80\x02K\x01K\x02a."], ids=repr)
def test_a_pickle_that_does_not_fit_together_is_said_without_names_of_python(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("file/data.pkl", data)
    message = refused(tmp_path / "file.pt").message
    assert message.partition(". ")[0] == "file.pt: the file's pickle is invalid: its instructions do not fit together"


# ---- damage of any kind ----------------------------------------------------------------------------


def damaged(whole: bytes, chance: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        data[chance.randrange(len(data))] = chance.choice((chance.randrange(256), 0, 255, 0x80))
    if chance.random() < 0.2:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


def regions(path, legacy):
    """The stretches of a file that are structure, not tensor data."""
    whole = path.read_bytes()
    if legacy:
        return [(0, len(whole))]
    pickled = next(r for r in read_checkpoint(path).records if r.name.endswith("data.pkl"))
    directory = whole.index(b"PK\x01\x02")
    return [(pickled.offset, pickled.offset + pickled.nbytes), (directory, len(whole))]


def assert_read_or_refused(path, step):
    try:
        read_checkpoint(path)
    except Sam3LiteError:
        pass
    except Exception as other:
        pytest.fail(f"step {step}: {other!r}")


@either_format
@pytest.mark.parametrize("seed", range(4))
def test_damage_never_ends_in_another_error(tmp_path, legacy, seed):
    chance = random.Random(seed)
    path = saved(tmp_path, {"model": {"w": torch.ones(2, 3), "b": torch.ones(2).half()}, "meta": {"n": 1}}, legacy)
    whole, places = path.read_bytes(), regions(path, legacy)
    for step in range(600):
        begin, end = chance.choice(places)
        data = whole[:begin] + damaged(whole[begin:end], chance) + whole[end:]
        path.write_bytes(data)
        assert_read_or_refused(path, step)


def test_damage_of_a_safetensors_header_never_ends_in_another_error(tmp_path):
    chance = random.Random(0)
    path = tmp_path / "file.safetensors"
    save_file({"w": torch.ones(2, 3), "b": torch.ones(2).half()}, path, metadata={"format": "pt"})
    whole = path.read_bytes()
    for step in range(1500):
        path.write_bytes(damaged(whole, chance))
        assert_read_or_refused(path, step)


@pytest.mark.parametrize("name", ["_io\nopen", "_io\nFileIO", "_operator\nattrgetter", "_socket\nsocket"])
def test_a_name_that_does_harm_is_refused_beside_the_weights_too(tmp_path, name):
    """Python 3.12 and later write ``open`` as ``_io.open``, whose module was ``io`` before."""
    model = one_tensor().removeprefix(b"\x80\x02").removesuffix(b".")
    called = b"c" + name.encode() + b"\n)R"
    whole = b"\x80\x02}(X\x05\x00\x00\x00model" + model + b"X\x04\x00\x00\x00meta" + called + b"u."
    fault = refused(with_pickle(tmp_path, whole))
    assert fault.code == "hostile_pickle"
    assert name.replace("\n", ".") in fault.message
