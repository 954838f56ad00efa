"""DIR on the Hub: how little is read, what is said of that, and that nothing more is claimed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save_file
from support.folders import convert, edit, edit_config, flip_bit, sam3lite, tensors, tiny_state, write
from support.hub_files import OLD, REPO, one_line
from support.hub_server import HubServer

import sam3lite_convert as s3
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.commands import verify as command

MINE = "porter/own"
TEXT = "text_encoder."
MB = 1_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), tiny_state())


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory) -> Path:
    return convert(tiny, tmp_path_factory.mktemp("good") / "out", "--layout", "transformers")


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "folder")


def upload(hub: HubServer, folder: Path, repo: str = MINE) -> None:
    hub.add_repo(repo, {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()})


def checked(*words: object, code: int = 0):
    done = sam3lite("verify", *words, "--json")
    assert done.code == code, done
    return done.json


def weight_bytes(hub: HubServer) -> int:
    """Bytes that came from where the Hub keeps large files."""
    return hub.sent("/cdn/")


# ---- structure alone ------------------------------------------------------------------------------------


def test_a_repository_is_judged_by_its_headers(good, tiny, hub):
    upload(hub, good)
    record = checked(MINE, tiny)
    assert record["verdict"] == "structure_only"
    assert (record["compared"], record["not_compared"]) == (0, len(tensors(good)))
    assert record["fetched"]["of"] == (good / "model.safetensors").stat().st_size
    # Of the weights no more than the header, in the blocks in which it is read.
    header = 8 + int.from_bytes((good / "model.safetensors").read_bytes()[:8], "little")
    assert header <= weight_bytes(hub) <= header + (128 << 10)
    assert hub.sent() < MB and record["fetched"]["bytes"] <= hub.sent()
    assert record["repository"] == {"repo": MINE, "revision": "main", "commit": hub.head(MINE)}
    assert "no values were compared" in record["summary"]
    assert "--partial" in record["summary"] and "--whole" in record["summary"]


def test_what_is_not_compared_is_said_and_not_called_proven(good, tiny, hub):
    upload(hub, good)
    done = sam3lite("verify", MINE, tiny)
    assert done.code == 0 and "structure only" in done.out and "proven" not in done.out
    assert "range requests" in done.out


def test_wrong_values_cannot_be_seen_without_values_and_are_not_vouched_for(folder, tiny, hub):
    key = "text_encoder.final_layer_norm.bias"
    edit(folder, {key: flip_bit(tensors(folder)[key])})
    upload(hub, folder)
    assert checked(MINE, tiny)["verdict"] == "structure_only"
    assert [m["key"] for m in checked(MINE, tiny, "--partial", code=1)["mismatched"]] == [key]
    assert [m["key"] for m in checked(MINE, tiny, "--whole", code=1)["mismatched"]] == [key]


def drop(folder: Path) -> str:
    edit(folder, {"mask_decoder.mask_embedder.layers.0.bias": None})
    return "mask_decoder.mask_embedder.layers.0.bias"


def reshape(folder: Path) -> str:
    key = "text_encoder.projection.weight"
    edit(folder, {key: tensors(folder)[key][:-1]})
    return key


def recast(folder: Path) -> str:
    key = "vision_encoder.backbone.layers.3.mlp.fc1.weight"
    edit(folder, {key: tensors(folder)[key].half()})
    return key


def reconfigure(folder: Path) -> str:
    edit_config(folder, "text_config", "layer_norm_eps", value=1e-6)
    return "config.json: text_config.layer_norm_eps"


def reread(folder: Path) -> str:
    receipt = json.loads((folder / "conversion.json").read_text())
    receipt["tensors"].popitem()
    (folder / "conversion.json").write_text(json.dumps(receipt))
    return "conversion.json: tensors"


@pytest.mark.parametrize("change", [drop, reshape, recast, reconfigure, reread])
def test_structure_that_does_not_fit_is_a_mismatch(change, folder, tiny, hub):
    key = change(folder)
    upload(hub, folder)
    record = checked(MINE, tiny, code=1)
    assert record["verdict"] == "mismatch"
    assert key in [*record["missing"], *(m["key"] for m in record["mismatched"])]
    assert "no values were compared" in record["summary"] and "equal" not in record["summary"]
    shown = sam3lite("verify", MINE, tiny).out.splitlines()
    assert shown[0].startswith(record["summary"][:20]) and any("; 0 of " in line for line in shown)
    assert hub.sent() < MB


def test_a_file_that_the_library_does_not_take_is_not_judged_on_the_hub_either(folder, tiny, hub):
    held = load((folder / "model.safetensors").read_bytes())
    half = sorted(held)[::2]
    save_file({k: held[k] for k in half}, folder / "model.safetensors")
    save_file({k: t for k, t in held.items() if k not in half}, folder / "model-extra.safetensors")
    upload(hub, folder)
    record = checked(MINE, tiny, code=1)
    assert record["missing"] and any("model-extra.safetensors" in note for note in record["notes"])


def test_the_checkpoint_may_be_on_the_hub_too_and_only_its_index_is_read(good, tiny, hub):
    hub.add_repo(REPO, {OLD["s0"]: tiny})
    upload(hub, good)
    record = checked(MINE, "s0")
    assert record["verdict"] == "structure_only" and record["source"]["repo"] == REPO
    assert hub.sent() < 2 * MB
    assert record["fetched"]["of"] == (good / "model.safetensors").stat().st_size + tiny.stat().st_size
    assert not any("tensors were downloaded" in note for note in record["notes"])


@pytest.mark.parametrize("options", [["--max-shard-size", "1MB"], ["--component", "text"], ["--dtype", "float16"]])
def test_shards_a_text_encoder_and_a_cast(options, tiny, hub, tmp_path):
    upload(hub, convert(tiny, tmp_path / "out", "--layout", "transformers", *options))
    assert checked(MINE, tiny)["verdict"] == "structure_only"
    record = checked(MINE, tiny, "--partial")
    assert record["verdict"] == ("proven" if "text" in options else "partly_proven")
    assert ("float16" in (record["up_to"] or "")) == ("float16" in options)
    whole = checked(MINE, tiny, "--whole")
    assert whole["verdict"] == "proven"


# ---- the values of the text encoder ---------------------------------------------------------------------


def text_keys(folder: Path) -> set[str]:
    return {k for k in tensors(folder) if k.startswith(("text_encoder.", "text_projection."))}


def test_partial_compares_the_text_encoder(good, tiny, hub):
    hub.add_repo(REPO, {OLD["s0"]: tiny})
    upload(hub, good)
    record = checked(MINE, "s0", "--partial")
    assert record["verdict"] == "partly_proven"
    text, all_ = text_keys(good), tensors(good)
    assert (record["compared"], record["not_compared"]) == (len(text), len(all_) - len(text))
    assert f"{len(text):,}" in record["summary"] and "no values were compared" in record["summary"]
    there = sum(all_[k].numel() * all_[k].element_size() for k in text)
    source = read_checkpoint(tiny).tensors
    here = sum(t.nbytes for k, t in source.items() if "language_backbone" in k)
    assert there + here <= weight_bytes(hub) <= there + here + 1.5 * MB
    hub.clear_log()
    assert checked(MINE, "s0", "--partial")["fetched"]["bytes"] == 0
    assert weight_bytes(hub) == 0


def test_partial_does_not_read_beyond_its_limit_and_says_so(good, tiny, hub, monkeypatch):
    monkeypatch.setattr(command, "PARTIAL_LIMIT", 200_000)
    upload(hub, good)
    record = checked(MINE, tiny, "--partial")
    assert record["verdict"] == "partly_proven" and 0 < record["compared"] < len(text_keys(good))
    assert record["compared"] + record["not_compared"] == len(tensors(good))
    assert weight_bytes(hub) < 200_000 + 400_000


@pytest.mark.parametrize("values", [False, True])
def test_a_bin_is_read_by_ranges(values, folder, tiny, hub):
    held = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    # Most of it is not of the text encoder.
    torch.save(held | {"filler": torch.zeros(1_000_000)}, folder / "pytorch_model.bin")
    upload(hub, folder)
    record = checked(MINE, tiny, *(["--partial"] if values else []), code=1)
    assert record["unexpected"] == ["filler"] and not record["mismatched"] and not record["missing"]
    text = [k for k in held if k.startswith(("text_encoder.", "text_projection."))]
    assert record["compared"] == (len(text) if values else 0)
    assert weight_bytes(hub) < (folder / "pytorch_model.bin").stat().st_size - 4 * MB


def test_a_bin_without_a_directory_needs_the_whole(folder, tiny, hub):
    held = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    torch.save(held, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    upload(hub, folder)
    assert "--whole" in one_line(sam3lite("verify", MINE, tiny), 2)
    assert checked(MINE, tiny, "--whole")["verdict"] == "proven"


# ---- the whole ------------------------------------------------------------------------------------------


def test_whole_is_downloaded_once_and_proven(good, tiny, hub):
    upload(hub, good)
    record = checked(MINE, tiny, "--whole")
    assert record["verdict"] == "proven" and record["not_compared"] == 0
    assert record["folder"] == MINE and record["repository"]["commit"] == hub.head(MINE)
    assert weight_bytes(hub) == (good / "model.safetensors").stat().st_size
    hub.clear_log()
    assert checked(MINE, tiny, "--whole")["verdict"] == "proven"
    assert weight_bytes(hub) == 0
    # What is in the cache is read there, and not by ranges.
    assert checked(MINE, tiny)["fetched"]["bytes"] == 0


def test_whole_leaves_out_what_no_reader_takes(folder, tiny, hub):
    (folder / "model.fp16.safetensors").write_bytes(bytes(3 * MB))
    upload(hub, folder)
    assert checked(MINE, tiny, "--whole")["verdict"] == "proven"
    assert weight_bytes(hub) == (folder / "model.safetensors").stat().st_size


def test_parity_of_a_folder_on_the_hub(good, tiny, hub):
    upload(hub, good)
    done = sam3lite("parity", tiny, "--converted", f"{MINE}@main", "--json")
    assert done.code == 0 and done.json["converted"] == f"{MINE}@main"


def test_the_library_takes_the_same_names(good, tiny, hub):
    upload(hub, good)
    assert s3.verify_folder(MINE, tiny).verdict == "structure_only"
    assert s3.verify_folder(MINE, tiny, partial=True).verdict == "partly_proven"
    assert s3.verify_folder(MINE, tiny, whole=True).verdict == "proven"
    assert s3.run_parity(tiny, MINE).sides.converted == MINE
    with pytest.raises(s3.CannotRun, match="--whole"):
        s3.verify_folder(good, tiny, whole=True)


def test_the_page_of_a_repository_names_it_without_what_stands_in_the_address(good, tiny, hub):
    upload(hub, good)
    page = f"{constants.ENDPOINT}/{MINE}".replace("://", "://me:password@")
    for name, shown in ((page, MINE), (f"{page}/tree/main?token=x", f"{MINE}@main"), (f"hf://{MINE}", MINE)):
        done = sam3lite("verify", name, tiny, "--whole", "--json")
        assert (done.json["verdict"], done.json["folder"]) == ("proven", shown) and "password" not in done.out
    for name in (f"{page}/blob/main/config.json", "https://elsewhere.invalid/a/b"):
        done = sam3lite("verify", name, tiny)
        assert done.code == 2 and "password" not in done.err and "no such folder" not in done.err


# ---- names and faults -----------------------------------------------------------------------------------


def test_a_revision_pins_it(good, folder, tiny, hub):
    upload(hub, good)
    hub.tag(MINE, "v1")
    first = hub.head(MINE)
    reconfigure(folder)
    hub.commit(MINE, {"config.json": folder / "config.json"})
    assert checked(f"{MINE}@v1", tiny)["repository"] == {"repo": MINE, "revision": "v1", "commit": first}
    assert checked(f"{MINE}@{first}", tiny)["verdict"] == "structure_only"
    assert checked(MINE, tiny, code=1)["verdict"] == "mismatch"


def test_a_local_folder_of_that_name_comes_first(good, tiny, hub):
    shutil.copytree(good, MINE)
    assert checked(MINE, tiny)["verdict"] == "proven"
    assert not hub.log


@pytest.mark.parametrize("options", [["--partial"], ["--whole"]])
def test_options_of_a_folder_on_the_hub_are_not_for_a_local_one(options, good, tiny):
    assert "on the Hub" in one_line(sam3lite("verify", good, tiny, *options), 2)


def test_not_both_of_them(tiny):
    assert "exclude" in one_line(sam3lite("verify", MINE, tiny, "--partial", "--whole"), 2)


def test_what_cannot_be_found_is_said(good, tiny, hub):
    assert "no such local folder" in one_line(sam3lite("verify", "porter/nothing", tiny), 2)
    hub.add_repo("porter/empty", {"README.md": b"# nothing\n"})
    for options in ([], ["--whole"]):
        assert "porter/empty holds no" in one_line(sam3lite("verify", "porter/empty", tiny, *options), 2)
    upload(hub, good)
    assert "no such branch" in one_line(sam3lite("verify", f"{MINE}@gone", tiny), 2)


def test_a_damaged_header_is_not_trusted_and_not_kept(folder, tiny, hub):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:100] + b"\xff" * 50 + data[150:])
    upload(hub, folder)
    assert "model.safetensors" in one_line(sam3lite("verify", MINE, tiny), 4)
    assert not list((Path(constants.HF_HUB_CACHE)).rglob("sam3lite-partial/*/*-*"))


@pytest.mark.parametrize(("options", "said"), [([], "Structure only"), (["--partial"], "Partly proven")])
def test_the_page_says_no_more(options, said, good, tiny, hub):
    upload(hub, good)
    assert sam3lite("verify", MINE, tiny, "--report", "page.html", *options).code == 0
    page = Path("page.html").read_text()
    assert said in page and "no values were compared" in page and ">Proven<" not in page
    assert "Each tensor is converted back" not in page


def test_with_all_the_keys_of_a_released_file_less_than_a_megabyte_is_read(small_file, hub, tmp_path):
    hub.add_repo(REPO, {OLD["s0"]: small_file})
    upload(hub, convert(small_file, tmp_path / "out", "--layout", "transformers"))
    record = checked(MINE, small_file)
    assert record["verdict"] == "structure_only" and record["not_compared"] == 1204
    assert hub.sent() < MB
    hub.clear_log()
    shutil.rmtree(constants.HF_HUB_CACHE)
    checked(MINE, "s0")
    # Both sides together, with the listings of both repositories.
    assert hub.sent() < MB and len(hub.requests("/resolve/", "GET")) < 12
