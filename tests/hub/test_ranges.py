"""Reading by ranges: an index without the file, the text tensors alone, and the copy with holes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from support.folders import sam3lite, snapshot, tiny_state, write_safetensors
from support.hub_files import OLD, REPO, checkpoint, one_line, publish
from support.hub_server import HubServer

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.checkpoint.selection import NOTHING_STATED
from sam3lite_convert.commands.sources import HubLocation, locate
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.hub.ranges import PartialCopy, _merged
from sam3lite_convert.plan.tables import load_mappings

S0 = OLD["s0"]
TEXT = "detector.backbone.language_backbone."
MIB = 1 << 20


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    """A checkpoint of more than 200 MB, most of it in a tensor that is dropped."""
    return checkpoint(tmp_path_factory.mktemp("big"), "big", filler=torch.zeros(55_000_000))


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    return publish(hub, tmp_path, {"s0": S0})["s0"]


def copies() -> list[Path]:
    """The pieces that are kept of files that were not downloaded."""
    place = Path(constants.HF_HUB_CACHE) / ("models--" + REPO.replace("/", "--"))
    return sorted(p for p in place.glob("sam3lite-partial/*/*") if p.is_file())


def text_bytes(path: Path) -> int:
    return sum(t.nbytes for key, t in read_checkpoint(path).tensors.items() if key.startswith(TEXT))


# ---- how much is sent -------------------------------------------------------------------------------


def test_inspect_of_a_large_file_reads_its_index_alone(big, hub):
    hub.add_repo(REPO, {S0: big})
    record = sam3lite("inspect", "s0", "--json").json
    assert big.stat().st_size > 200_000_000
    assert hub.sent() < 2 * MIB
    assert record["fetched"]["of"] == big.stat().st_size
    assert record["fetched"]["bytes"] == hub.sent("/cdn/")
    local = sam3lite("inspect", big, "--json").json
    for name in ("architecture", "components", "counts", "wrapper", "prefix", "dtypes", "kind", "size", "convert"):
        assert record[name] == local[name]


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "--checkpoint", "s0", "--dry-run"],
        ["convert", "--checkpoint", "s0", "--dry-run", "--layout", "transformers", "--component", "text"],
        ["explain", "s0", "text_encoder.projection"],
        ["explain", "s0", "tracker.filler"],
    ],
)
def test_a_dry_run_and_explain_read_the_index_alone_and_say_so(command, big, hub):
    hub.add_repo(REPO, {S0: big})
    done = sam3lite(*command)
    assert done.code == 0, done
    assert "not downloaded" in done.out and "of 2" in done.out
    assert hub.sent() < 2 * MIB


def test_parity_of_the_text_tensors_alone(big, hub):
    hub.add_repo(REPO, {S0: big})
    record = sam3lite("parity", "--checkpoint", "s0", "--partial", "--json").json
    assert record["verdict"] == "exact"
    assert hub.sent() <= text_bytes(big) + 2 * MIB
    hub.clear_log()
    again = sam3lite("parity", "--checkpoint", "s0", "--partial", "--json").json
    assert again["layers"] == record["layers"]
    assert hub.sent("/cdn/") == 0 and again["fetched"]["bytes"] == 0


def test_a_copy_takes_no_more_of_the_disk_than_it_holds(big, hub):
    hub.add_repo(REPO, {S0: big})
    copy = locate("s0", HubLocation()).text(load_mappings())
    status = copy.path.stat()
    assert status.st_size == big.stat().st_size
    if status.st_blocks * 512 < status.st_size:  # where the file system has holes
        assert status.st_blocks * 512 < text_bytes(big) + 4 * MIB
    assert copy.copy is not None
    place = copy.path.parent
    copy.copy.close()
    assert not place.exists()
    assert sum(p.stat().st_size for p in copies()) < text_bytes(big) + 4 * MIB


# ---- that it is the same ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_a_partial_conversion_writes_the_same_tensors(layout, s0, hub):
    options = ["--component", "text", "--layout", layout]
    done = sam3lite("convert", "--checkpoint", "s0", "--partial", "--output", "part", "--verify", *options)
    assert done.code == 0, done
    assert hub.sent("/cdn/") < s0.stat().st_size / 2
    sam3lite("convert", "--checkpoint", s0, "--output", "whole", *options)
    part, whole = (snapshot(Path(n)) for n in ("part", "whole"))
    for name in part:
        assert name in ("conversion.json", "README.md", "fingerprint.json") or part[name] == whole[name]
    prints = [json.loads(Path(n, "fingerprint.json").read_text()) for n in ("part", "whole")]
    # Only the name differs: the hash that the Hub states is that of the whole file.
    assert prints[0].pop("source")["sha256"] == prints[1].pop("source")["sha256"]
    assert prints[0] == prints[1]
    source = json.loads(Path("part/conversion.json").read_text())["source"]
    assert source["sha256"] is None and source["etag"] and source["commit"] == hub.head(REPO)
    notes = json.loads(Path("part/conversion.json").read_text())["notes"]
    assert any("was not computed" in note for note in notes)
    # The whole file agrees, and so does a second run with or without it.
    assert sam3lite("verify", "part", "--checkpoint", s0, "--json").json["verdict"] == "proven"
    for more in (["--partial"], []):
        assert sam3lite("convert", "--checkpoint", "s0", "--output", "part", *options, *more).code == 0


def test_a_partial_copy_goes_when_the_file_is_there(s0, hub):
    sam3lite("inspect", "s0")
    assert copies()
    sam3lite("convert", "--checkpoint", "s0")
    assert not copies()
    hub.clear_log()
    record = sam3lite("parity", "--checkpoint", "s0", "--partial", "--json").json
    assert record["fetched"] is None and hub.sent("/cdn/") == 0


def test_a_safetensors_file(hub, tmp_path):
    path = write_safetensors(tmp_path, tiny_state())
    hub.add_repo(REPO, {"own/tiny.safetensors": path})
    options = ["--component", "text", "--output"]
    assert sam3lite("convert", "--checkpoint", "own/tiny.safetensors", "--partial", *options, "part").code == 0
    assert hub.sent("/cdn/") < path.stat().st_size / 2
    sam3lite("convert", "--checkpoint", path, *options, "whole")
    assert Path("part/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_the_old_format_is_downloaded_whole(hub, tmp_path):
    path = tmp_path / "legacy.pt"
    torch.save({"model": tiny_state()}, path, _use_new_zipfile_serialization=False)
    hub.add_repo(REPO, {S0: path})
    record = sam3lite("inspect", "s0", "--json").json
    assert record["format"] == "legacy" and record["fetched"] is None
    assert not copies()


@pytest.mark.parametrize("what", ["text", "empty", "not a checkpoint"])
def test_what_is_no_checkpoint_is_said_to_be_none(what, hub):
    content = {"text": b"hello world\n" * 9, "empty": b"", "not a checkpoint": bytes(range(256)) * 9}[what]
    hub.add_repo(REPO, {S0: content})
    one_line(sam3lite("inspect", "s0"), 4)


def test_without_the_text_component_there_is_nothing_partial(hub):
    assert "--component text" in one_line(sam3lite("convert", "--checkpoint", "s0", "--partial"), 2)
    assert hub.log == []


def test_a_local_file_is_not_fetched(s0, hub):
    hub.clear_log()
    assert sam3lite("parity", "--checkpoint", s0, "--partial").code == 0
    assert hub.log == []


# ---- holes ------------------------------------------------------------------------------------------


def copy_of(name: str = "s0") -> PartialCopy:
    source = locate(name, HubLocation()).index()
    assert source.copy is not None
    return source.copy


def test_a_hole_is_never_read_as_data(s0):
    # Whatever is read through the copy is what the file holds there, fetched if need be.
    data = s0.read_bytes()
    copy = copy_of()
    middle = len(data) // 2
    assert not copy.present(middle, 1)
    for start, length in ((middle, 10), (0, 3), (len(data) - 5, 99), (middle - 70_000, 200_000), (len(data), 1)):
        copy.seek(start)
        assert copy.read(length) == data[start : start + length]
    assert copy.present(middle, 10)


def test_pieces_are_what_their_names_say(s0, hub):
    sam3lite("inspect", "s0")
    data = s0.read_bytes()
    for path in copies():
        start, end, digest = path.name.split("-")
        assert path.read_bytes() == data[int(start) : int(end)]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    first, *others = copies()
    good = first.read_bytes()
    for wrong in (b"", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b"\0" * len(good)):
        first.write_bytes(wrong)
        hub.clear_log()
        assert sam3lite("inspect", "s0").code == 0
        assert hub.sent("/cdn/") == len(good)
        assert first.read_bytes() == good and copies() == [first, *others]


def test_pieces_may_overlap_and_have_odd_neighbours(s0, hub):
    data = s0.read_bytes()
    copy = copy_of()
    folder = copies()[0].parent
    for start, end in ((1_000_000, 1_200_000), (1_100_000, 1_400_000), (0, 10)):
        (folder / f"{start}-{end}-{hashlib.sha256(data[start:end]).hexdigest()}").write_bytes(data[start:end])
    for name in ("1-2-x", "notes.txt", "0-99999999999-" + "0" * 64, ".x.partial-1"):
        (folder / name).write_bytes(b"x")
    (folder / "copy-left").mkdir()
    hub.clear_log()
    copy.seek(1_050_000)
    assert copy.read(200_000) == data[1_050_000:1_250_000]
    assert hub.sent("/cdn/") == 0
    assert (folder / "copy-left").exists()  # it may be another process's
    os.utime(folder / "copy-left", (1, 1))
    copy_of().close()
    assert not (folder / "copy-left").exists()


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_one_content_under_two_names(kind, hub, tmp_path):
    # Both share what was fetched; neither may take the other's bytes for its own holes.
    suffix = "pt" if kind == "zip" else "safetensors"
    path = checkpoint(tmp_path, "x") if kind == "zip" else write_safetensors(tmp_path, tiny_state())
    hub.add_repo(REPO, {f"a/old.{suffix}": path, f"a/new.{suffix}": path})
    options = ["--component", "text", "--partial", "--verify", "--checkpoint"]
    sam3lite("inspect", f"a/old.{suffix}")
    sam3lite("convert", *options, f"a/new.{suffix}", "--output", "new")
    hub.clear_log()
    assert sam3lite("convert", *options, f"a/old.{suffix}", "--output", "old").code == 0
    assert hub.sent("/cdn/") == 0
    sam3lite("convert", "--component", "text", "--checkpoint", path, "--output", "whole")
    whole = Path("whole/model.safetensors").read_bytes()
    assert Path("old/model.safetensors").read_bytes() == Path("new/model.safetensors").read_bytes() == whole


def test_a_copy_outlives_what_others_do_to_the_pieces(s0, hub):
    # One process discards, or downloads the whole file, while another one reads.
    mine, data = copy_of(), s0.read_bytes()
    others = copy_of()
    others.fetch([(2_000_000, 3_000_000)])
    others.discard()
    mine.seek(2_000_000)
    assert mine.read(500_000) == data[2_000_000:2_500_000]
    third = copy_of()
    third.seek(2_400_000)
    assert third.read(300_000) == data[2_400_000:2_700_000]


def test_a_tensor_that_stays_a_hole_is_not_read(s0, monkeypatch):
    # Were less fetched than a tensor takes, its hole would be zeros in a model that says "exact".
    inner = PartialCopy.fetch

    def short(self, ranges, advance=lambda n: None):
        whole = isinstance(ranges, list)  # the index; the text tensors come one by one
        inner(self, [(a, b if whole else a + (b - a) // 2) for a, b in ranges], advance)

    monkeypatch.setattr(PartialCopy, "fetch", short)
    done = sam3lite("parity", "--checkpoint", "s0", "--partial")
    assert done.code == 4, done


def test_a_record_that_was_not_fetched_has_only_a_lower_bound(s0):
    copy = copy_of()
    partial, whole = copy.indexed(NOTHING_STATED), read_checkpoint(s0)
    assert partial.partial and not whole.partial
    assert partial.tensors.keys() == whole.tensors.keys()
    # What is here in whole is known exactly; of the rest the extent is known, and nothing claims more.
    exact = {r.name: r.offset for r in whole.records}
    assert all(exact[r.name] == r.offset for r in partial.records)
    assert len(partial.records) < len(whole.records)
    for key, tensor in whole.tensors.items():
        start, end = partial.extents[key]
        assert start < tensor.offset and tensor.offset + tensor.nbytes <= end
        assert start < partial.tensors[key].offset <= tensor.offset


def test_after_fetching_the_text_tensors_lie_where_they_are(s0):
    source = locate("s0", HubLocation()).text(load_mappings())
    partial, data = source.read(load_mappings()), s0.read_bytes()
    text = {k: t for k, t in read_checkpoint(s0).tensors.items() if k.startswith(TEXT)}
    content = source.path.read_bytes()
    assert content != data
    for key, tensor in text.items():
        assert partial.tensors[key] == tensor
        assert content[tensor.offset : tensor.offset + tensor.nbytes] == data[tensor.offset :][: tensor.nbytes]


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [
        ([], []),
        ([(3, 3)], []),
        ([(5, 7), (0, 2)], [(0, 2), (5, 7)]),
        ([(0, 2), (2, 4)], [(0, 4)]),
        ([(0, 9), (2, 4)], [(0, 9)]),
        ([(0, 3), (2, 4), (10, 11)], [(0, 4), (10, 11)]),
    ],
)
def test_ranges_that_touch_are_one(ranges, merged):
    assert _merged(ranges) == merged


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        ((0, 5), [(0, 5)]),
        ((10, 20), []),
        ((5, 15), [(5, 10)]),
        ((15, 35), [(20, 30)]),
        ((0, 50), [(0, 10), (20, 30), (40, 50)]),
    ],
)
def test_what_is_missing_of_a_range(wanted, missing, s0):
    copy = copy_of()
    copy._ranges = [(10, 20), (30, 40)]
    assert copy._missing(*wanted) == missing


# ---- faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("drop", {"match": "/cdn/.*", "after": 30_000}),
        ("short", {"match": "/cdn/.*", "after": 30_000}),
        ("status", {"match": "/cdn/.*", "status": 500}),
        ("status", {"match": "/resolve/", "status": 429, "retry_after": 1}),
    ],
)
def test_a_fault_that_passes(fault, options, s0, hub):
    hub.fail(fault, **options)
    done = sam3lite("parity", "--checkpoint", "s0", "--partial")
    assert done.code == 0, done
    assert "exact" in done.out


def test_wrong_bytes_of_a_tensor_are_not_trusted(s0, hub):
    target = read_checkpoint(s0).tensors[TEXT + "encoder.projection_layer"]
    sam3lite("inspect", "s0")  # so that the next ranges are those of the tensors
    hub.fail("wrong_bytes", match="/cdn/.*", times=None)
    assert target.nbytes
    for command in (["parity", "--checkpoint", "s0"], ["convert", "--checkpoint", "s0", "--component", "text"]):
        one_line(sam3lite(*command, "--partial"), 4)
        assert not Path("converted").exists()
    assert not copies()
    hub.clear_faults()
    assert sam3lite("parity", "--checkpoint", "s0", "--partial").code == 0


def test_wrong_bytes_of_an_index_are_not_trusted(s0, hub):
    hub.fail("wrong_bytes", match="/cdn/.*", times=None)
    one_line(sam3lite("inspect", "s0"), 4)
    hub.clear_faults()
    assert sam3lite("inspect", "s0").code == 0


def test_a_range_of_another_file_is_not_trusted(s0, hub):
    hub.fail("etag", match="/resolve/", etag="0" * 64, times=None)
    assert "changed" in one_line(sam3lite("inspect", "s0"), 4)
    hub.clear_faults()
    assert sam3lite("inspect", "s0").code == 0


def test_no_space_for_the_ranges(s0, hub, monkeypatch):
    sam3lite("inspect", "s0")
    hub.clear_log()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))
    assert "not enough disk space to download parts of " in one_line(
        sam3lite("parity", "--checkpoint", "s0", "--partial"), 2
    )
    assert hub.sent("/cdn/") == 0


def test_a_copy_that_cannot_be_made_is_said_in_a_line(s0, hub):
    sam3lite("inspect", "s0")
    (folder,) = {p.parent for p in copies()}
    shutil.rmtree(folder)
    folder.write_text("in the way")
    assert str(folder) in one_line(sam3lite("inspect", "s0"), 2)
    assert folder.read_text() == "in the way"


def test_a_piece_that_cannot_be_kept_is_said_in_a_line(s0, hub, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("sam3lite_convert.hub.ranges.write_whole", full)
    assert "No space left on device" in one_line(sam3lite("inspect", "s0"), 2)


def test_an_answer_that_is_shorter_than_the_range_it_states_is_not_taken(s0, hub, monkeypatch):
    # Its headers are right, and so was the body by its own length.
    copy = copy_of()
    middle = s0.stat().st_size // 2
    monkeypatch.setattr("sam3lite_convert.hub.ranges.retried", lambda get: get()[:-1])
    with pytest.raises(CannotRun, match=r"the Hub sent 9 bytes of .* in place of 10"):
        copy.fetch([(middle, middle + 10)])
    assert not copy.present(middle, 1)


def test_a_copy_is_read_as_a_file_is(s0, hub):
    data, copy = s0.read_bytes(), copy_of()
    assert copy.readable() and copy.seekable()
    for offset, whence, at in ((7, os.SEEK_SET, 7), (5, os.SEEK_CUR, 12), (-9, os.SEEK_END, len(data) - 9)):
        assert copy.seek(offset, whence) == copy.tell() == at
    assert (copy.read(4), copy.tell()) == (data[-9:-5], len(data) - 5)
    with pytest.raises(OSError, match="before the start"):
        copy.seek(-1)
    assert copy.tell() == len(data) - 5
    copy.close()
    copy.close()  # as a file may be closed twice
    assert not copy.path.exists()


def test_a_server_that_serves_no_ranges(s0, hub):
    hub.fail("status", match="/cdn/", status=200, times=1)
    record = sam3lite("inspect", "s0", "--json").json
    assert record["fetched"] is None and record["size"] == s0.stat().st_size


def test_a_renamed_repository_is_held_to_its_etag_too(s0, hub):
    hub.alias("old/name", REPO)
    assert sam3lite("inspect", S0, "--repo-id", "old/name").code == 0
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.fail("etag", match="/resolve/", etag="0" * 64, times=None)
    one_line(sam3lite("inspect", S0, "--repo-id", "old/name"), 4)


def test_what_is_wrong_with_the_file_itself_is_said_of_a_copy_too(hub, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch evil",)

    torch.save({"model": Evil(), "filler": torch.zeros(500_000)}, tmp_path / "evil.pt")
    hub.add_repo(REPO, {S0: tmp_path / "evil.pt"})
    local = sam3lite("inspect", tmp_path / "evil.pt", "--json").json["error"]
    there = sam3lite("inspect", "s0", "--json").json["error"]
    assert there["code"] == local["code"] == "hostile_pickle"


def test_an_unsound_file_is_refused_after_its_index_alone(hub, tmp_path):
    state = {k: v for k, v in tiny_state().items() if "projection_layer" not in k}
    torch.save({"model": state}, tmp_path / "x.pt")
    hub.add_repo(REPO, {S0: tmp_path / "x.pt"})
    assert "projection_layer" in one_line(sam3lite("parity", "--checkpoint", "s0", "--partial"), 3)
    assert hub.sent("/cdn/") < MIB


def test_a_copy_is_not_hashed(s0):
    # Its SHA-256 would be one of zeros; the receipt has the etag instead.
    source = locate("s0", HubLocation()).index()
    with source.hashing() as hashing:
        checkpoint = source.read(load_mappings())
        hashing.check(checkpoint)
        digest, notes = hashing.result()
    assert digest is None and notes
    with pytest.raises(Untrusted), locate(str(s0), HubLocation()).whole().hashing() as hashing:
        hashing.check(checkpoint.__class__(s0, 5, "zip", None, {}))
        hashing.result()
