"""A checkpoint in shards on the Hub: by its index, its folder or its repository; whole, by ranges, and again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save_file
from support.checkpoints import write_shards
from support.folders import QKV, flip_bit, receipt, sam3lite, tiny_state, write
from support.hub_files import one_line
from support.hub_server import HubServer
from support.surroundings import HUB

MINE = "someone/shards"
TEXT = ("--component", "text")
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def state():
    """The text encoder, and 3 MB that are dropped at the end."""
    text = {k: t for k, t in tiny_state().items() if "language_backbone" in k}
    return {**text, "tracker.large": torch.zeros(750_000)}


@pytest.fixture(scope="module")
def plain(state, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), state, wrapper=None)


@pytest.fixture(params=["safetensors", "bin", "bin of old"])
def index(request, state, hub: HubServer, tmp_path) -> Path:
    """The index of a set that lies at the top of a repository and in a folder of it."""
    kind, *old = request.param.split(" of ")
    index = write_shards(tmp_path / "set", state, kind, bool(old))
    upload(hub, index.parent)
    return index


@pytest.fixture
def shards(state, hub, tmp_path) -> Path:
    folder = write_shards(tmp_path / "set", state).parent
    upload(hub, folder)
    return folder


def upload(hub: HubServer, folder: Path) -> None:
    files = {p.name: p for p in folder.iterdir()}
    hub.add_repo(MINE, {"README.md": b"# x\n", **files, **{f"below/{name}": path for name, path in files.items()}})


def set_hash(folder: Path) -> str:
    lines = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir()))
    return hashlib.sha256(lines.encode()).hexdigest()


def test_the_set_is_converted_to_the_bytes_of_the_plain_file(index, plain, hub):
    assert sam3lite("convert", plain, "--output", "truth", *TEXT).code == 0
    for name, place in (
        (f"hf://{MINE}", ""), (f"{HUB.url}/{MINE}/blob/main/{index.name}", ""), (f"hf://{MINE}/below", "below/"),
    ):  # fmt: skip
        done = sam3lite("convert", name, "--output", "out", *TEXT, "--overwrite", "--verify", "--json")
        assert done.code == 0 and done.json["verification"]["verdict"] == "proven", done
        assert Path("out/model.safetensors").read_bytes() == Path("truth/model.safetensors").read_bytes()
        source = receipt(Path("out"))["source"]
        assert (source["repo"], source["file"]) == (MINE, place + index.name)
        assert source["sha256"] == source["etag"] == set_hash(index.parent)
    done = sam3lite("verify", "out", index.parent, "--json").json
    assert done["verdict"] == "proven" and not [n for n in done["notes"] if "another source" in n]


def test_a_second_run_reads_no_shard(shards, hub):
    assert sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT).code == 0
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.clear_log()
    assert sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT, "--json").json["state"] == "current"
    assert hub.sent("/cdn/") == 0
    assert sam3lite("convert", shards, "--output", "out", *TEXT, "--json").json["state"] == "current"


def test_another_shard_upstream_is_another_source(shards, hub):
    sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT)
    held = load((shards / SECOND).read_bytes())
    save_file(held | {"tracker.large": flip_bit(held["tracker.large"])}, shards / SECOND)
    hub.commit(MINE, {SECOND: shards / SECOND})
    assert "another file" in one_line(sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT), 2)
    done = sam3lite("verify", "out", f"hf://{MINE}", "--json").json
    assert done["verdict"] == "proven" and [n for n in done["notes"] if n.endswith(f"; {SECOND} differs")]


@pytest.mark.parametrize("command", [("inspect",), ("explain",), ("convert", "--dry-run")])
def test_of_the_shards_no_more_than_their_headers_is_read(command, index, hub):
    name = f"hf://{MINE}"
    done = sam3lite(*command, name, *([QKV] if command == ("explain",) else []), *(TEXT * (command[0] != "inspect")))
    assert done.code == 0, done
    size = sum(p.stat().st_size for p in index.parent.iterdir())
    if index.name.startswith("pytorch"):  # the directory of a zip is at its end, and the older form has none
        assert 0 < hub.sent("/cdn/") <= size + 300_000
    else:
        assert 0 < hub.sent("/cdn/") < 300_000 < size


def test_the_text_tensors_alone_are_fetched(shards, hub):
    done = sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT, "--partial", "--json")
    assert done.code == 0, done
    assert hub.sent("/cdn/") < sum(p.stat().st_size for p in shards.iterdir()) - 2_000_000
    assert done.json["fetched"]["of"] == sum(p.stat().st_size for p in shards.iterdir())
    source = receipt(Path("out"))["source"]
    assert source["sha256"] is None and source["etag"] == set_hash(shards) and "files" not in source
    assert sam3lite("verify", "out", shards, "--json").json["verdict"] == "proven"
    assert sam3lite("parity", f"hf://{MINE}", "--converted", "out", "--partial", "--json").json["verdict"] == "exact"


def test_one_shard_here_and_one_there(shards, hub):
    """As a download that was broken off leaves them."""
    sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT)
    snapshot = Path(constants.HF_HUB_CACHE, "models--someone--shards/snapshots", hub.head(MINE))
    (snapshot / FIRST).resolve().unlink()
    (snapshot / FIRST).unlink()
    hub.clear_log()
    done = sam3lite("convert", f"hf://{MINE}", "--output", "again", *TEXT, "--partial", "--json")
    assert done.code == 0 and 0 < hub.sent("/cdn/") <= (shards / FIRST).stat().st_size + 300_000
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_without_a_network_the_cache_is_read(shards, hub):
    sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT)
    hub.fail("status", status=503, times=None)
    done = sam3lite("convert", f"hf://{MINE}", "--output", "again", *TEXT)
    assert done.code == 0 and "using the cached files" in done.err
    assert sam3lite("convert", f"hf://{MINE}", "--output", "again", *TEXT, "--json").json["state"] == "current"


def test_a_damaged_shard_in_the_cache_is_deleted_and_the_others_are_kept(shards, hub):
    sam3lite("convert", f"hf://{MINE}", "--output", "out", *TEXT)
    snapshot = Path(constants.HF_HUB_CACHE, "models--someone--shards/snapshots", hub.head(MINE))
    data = bytearray((snapshot / SECOND).read_bytes())
    data[-1] ^= 1
    (snapshot / SECOND).resolve().write_bytes(data)
    done = sam3lite("convert", f"hf://{MINE}", "--output", "again", *TEXT)
    assert done.code == 4, done
    assert (snapshot / FIRST).exists() and not (snapshot / SECOND).exists() and not Path("again").exists()
    assert sam3lite("convert", f"hf://{MINE}", "--output", "again", *TEXT).code == 0


def test_a_server_that_serves_no_ranges(shards, hub):
    hub.fail("status", match="/cdn/", status=200, times=1)
    assert sam3lite("inspect", f"hf://{MINE}", "--json").json["fetched"] is None


def test_what_is_refused(shards, hub):
    name = f"{HUB.url}/{MINE}/blob/main/{SECOND}"
    done = sam3lite("inspect", name)
    assert f"one of 2 shards of a checkpoint. Give their index: hf://{MINE}/{INDEX}" in one_line(done, 3)
    assert sam3lite("inspect", f"hf://{MINE}/{INDEX}").code == 0
    hub.clear_log()
    done = sam3lite("inspect", f"below/{FIRST}", "--repo-id", MINE)
    assert f"Give their index: hf://{MINE}/below/{INDEX}" in one_line(done, 3)
    hub.commit(MINE, {FIRST: None})
    assert f"names the shard {FIRST}, of 2, which is not there" in one_line(sam3lite("inspect", f"hf://{MINE}"), 2)
    places = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    outside = json.dumps({"weight_map": dict.fromkeys(places, f"../{SECOND}")})
    hub.commit(MINE, {"below/model.safetensors.index.json": outside.encode()})
    assert "lies outside of its folder" in one_line(sam3lite("inspect", f"hf://{MINE}/below"), 4)
    assert hub.sent("/cdn/") == 0


def test_all_of_a_repository_counts_a_set_once(shards, hub):
    done = sam3lite(
        "convert", "--all", "--repo-id", MINE, "--pattern", "*.safetensors", "--output", "all", *TEXT, "--json"
    )
    assert [r["checkpoint"] for r in done.json["results"]] == ["model.safetensors.index.json"], done
    assert done.code == 0 and Path("all/model-packed-text/model.safetensors").exists()
