"""Every checkpoint of a repository: one folder each, one download ahead, one verdict each."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import families
from support.folders import right, sam3lite, snapshot
from support.hub_files import NEW, OLD, REPO, SAM31, blobs, checkpoint, downloads, one_line, publish
from support.hub_server import HubServer

ROOT = Path("converted")


@pytest.fixture
def three(hub: HubServer, tmp_path: Path) -> dict[str, Path]:
    return publish(hub, tmp_path, OLD, **{"sam3_litetext/notes.txt": b"no checkpoint\n"})


def folder(alias: str, names: dict[str, str] = OLD) -> Path:
    return ROOT / f"{Path(names[alias]).stem}-packed"


def states(record: dict) -> dict[str, str]:
    return {r["checkpoint"]: r["state"] for r in record["results"]}


@pytest.mark.parametrize(
    "names",
    [pytest.param(OLD, id="three old names"), pytest.param(NEW, id="six new names", marks=pytest.mark.stress)],
)
def test_one_folder_each_and_nothing_the_second_time(names, hub, tmp_path):
    files = publish(hub, tmp_path, names)
    done = sam3lite("convert", "--all", "--json")
    assert done.code == 0, done
    assert states(done.json) == dict.fromkeys(sorted(names.values()), "converted")
    assert sorted(p.name for p in ROOT.iterdir()) == sorted(folder(a, names).name for a in names)
    for alias in names:
        assert sam3lite("verify", folder(alias, names), "--checkpoint", files[alias]).code == 0
    before, _ = snapshot(ROOT), hub.clear_log()
    again = sam3lite("convert", "--all", "--json")
    assert again.code == 0 and set(states(again.json).values()) == {"current"}
    assert snapshot(ROOT) == before and downloads(hub) == 0


def test_two_lines_a_file_say_what_happened(three, hub):
    hub.commit(REPO, {OLD["l"]: b"not a checkpoint\n" * 9})
    sam3lite("convert", "--checkpoint", "s0")
    done = sam3lite("convert", "--all", "--verify")
    assert done.code == 1
    lines = done.out.splitlines()
    said = {line.split()[1].rstrip(","): lines[n + 1] for n, line in enumerate(lines) if line.startswith("[")}
    assert list(said) == [OLD["l"], OLD["s0"], OLD["s1"]]
    assert said[OLD["s0"]].startswith(f"  {folder('s0')}: complete and current; proven, ")
    assert said[OLD["s1"]].startswith(f"  {folder('s1')}: converted; proven, ")
    assert f"FAILED  {OLD['l']}" in lines and "1 converted, 1 current, 1 failed" in done.out
    assert lines[-1] == "Each loads with: sam3lite_convert.PackedModel.from_pretrained(FOLDER)"
    assert len(lines) <= 3 + 2 * 3 + 4 and Path(OLD["l"]).name in done.err
    quiet = sam3lite("convert", "--all", "--quiet")
    assert quiet.code == 1 and len(quiet.out.splitlines()) == 2 and OLD["l"] in quiet.err


def test_one_that_fails_does_not_stop_the_rest(three, hub):
    # In the order of their paths l comes first, so two come behind it.
    hub.fail("wrong_bytes", match="/cdn/.*mobileclip2_l", at=5_000_000)
    done = sam3lite("convert", "--all", "--json")
    assert done.code == 1
    assert states(done.json) == {OLD["l"]: "failed", OLD["s0"]: "converted", OLD["s1"]: "converted"}
    error = done.json["results"][0]["error"]
    assert error["exit_code"] == 4 and error["code"] == "etag_mismatch"
    assert not folder("l").exists() and len(blobs()) == 2
    again = sam3lite("convert", "--all", "--json")
    assert again.code == 0
    assert states(again.json) == {OLD["l"]: "converted", OLD["s0"]: "current", OLD["s1"]: "current"}


def test_a_download_that_fails_is_the_failure_of_its_file_alone(three, hub):
    hub.fail("status", match="/cdn/.*_s0_", status=404, times=None)
    done = sam3lite("convert", "--all", "--json")
    assert states(done.json) == {OLD["l"]: "converted", OLD["s0"]: "failed", OLD["s1"]: "converted"}


def test_at_most_one_is_downloaded_ahead(three, hub):
    # When the download of a file begins, all but the one before it have their folders.
    seen: list[tuple[str, int]] = []
    lock = threading.Lock()

    def look(request):
        if "/cdn/" in request.path and request.method == "GET":
            with lock:
                seen.append((Path(request.path).stem, len(list(ROOT.glob("*-packed")))))

    hub.on_request = look
    try:
        assert sam3lite("convert", "--all").code == 0
    finally:
        hub.on_request = None
    order = [Path(OLD[a]).stem for a in ("l", "s0", "s1")]
    assert [name for name, _ in seen] == order
    assert all(finished >= n - 1 for n, (_, finished) in enumerate(seen))


def test_the_next_one_is_downloaded_while_one_is_converted(three, hub, monkeypatch):
    from sam3lite_convert.commands import convert as conversions

    inner, arrived = conversions.conversion.convert, threading.Event()

    def watch(request):
        if "/cdn/" in request.path and "_s0_" in request.path:
            arrived.set()

    def slow(plan, *arguments):
        if "mobileclip2_l" in plan.checkpoint.path.name:
            assert arrived.wait(20), "the next download did not begin"
        return inner(plan, *arguments)

    monkeypatch.setattr(conversions.conversion, "convert", slow)
    hub.on_request = watch
    try:
        assert sam3lite("convert", "--all").code == 0
    finally:
        hub.on_request = None


def test_another_pattern_and_output(hub, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"], "p1": "sam3p1_litetext/some_ctx16.pt", "deep": "sam3p1_litetext/a/b.pt"})
    done = sam3lite("convert", "--all", "--pattern", "sam3p1_litetext/*", "--output", "there", "--json")
    assert states(done.json) == {"sam3p1_litetext/some_ctx16.pt": "converted"}
    assert [p.name for p in Path("there").iterdir()] == ["some_ctx16-packed"]


def test_sam31_by_its_folder_takes_checkpoints_alone_and_says_what_it_leaves(hub, tmp_path):
    others = {f"sam3p1_litetext/{name}": b"text\n" for name in ("LICENSE", "README.md", "config.json")}
    names = [SAM31[alias] for alias in ("s0-3.1", "s0-3.1-32")]
    files = {name: families.write(tmp_path / f"{n}.pt", "s0-3.1", seed=n) for n, name in enumerate(names)}
    hub.add_repo(REPO, files | others)
    convert = ["convert", "--all", "--pattern", "sam3p1_litetext/*"]
    done = sam3lite(*convert, "--layout", "transformers", "--output", "out", "--json")
    assert done.code == 0, done
    assert states(done.json) == dict.fromkeys(names, "converted")
    assert done.json["left_out"] == list(others)
    folders = [Path("out") / f"sam3p1_litetext_mobileclip_s0_ctx{n}-transformers" for n in (16, 32)]
    assert sorted(Path("out").iterdir()) == folders
    for folder, name in zip(folders, names, strict=True):
        assert (folder / "LICENSE").read_bytes() == b"text\n"
        assert sam3lite("verify", folder, name).code == 0
    said = sam3lite(*convert, "--layout", "transformers", "--output", "out")
    assert f"not checkpoints: {', '.join(others)}" in said.out and "2 current" in said.out
    # By its alias it is the same file.
    assert sam3lite("inspect", "s0-3.1-32", "--json").json["source"]["file"] == names[1]
    assert sam3lite("convert", "s0-3.1", "--dry-run", "--json").code == 0


def test_a_pattern_that_fits_no_checkpoint_names_those_there_are(hub, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"]}, **{"sam3p1_litetext/LICENSE": b"text\n"})
    said = one_line(sam3lite("convert", "--all", "--pattern", "sam3p1_litetext/*"), 2)
    assert "no checkpoint that fits sam3p1_litetext/*" in said and OLD["s0"] in said


def test_a_pattern_that_fits_nothing(three):
    assert "sam4/*" in one_line(sam3lite("convert", "--all", "--pattern", "sam4/*"), 2)


def test_two_files_for_one_folder(hub, tmp_path):
    publish(hub, tmp_path, {"a": "one/x.pt", "b": "two/x.pt"})
    done = sam3lite("convert", "--all", "--pattern", "*/x.pt")
    assert "one/x.pt and two/x.pt" in one_line(done, 2)
    assert downloads(hub) == 0 and not ROOT.exists()


def test_a_folder_that_is_in_the_way_is_kept(three):
    folder("s0").mkdir(parents=True)
    (folder("s0") / "mine.txt").write_text("mine")
    done = sam3lite("convert", "--all", "--json")
    assert done.code == 1 and states(done.json)[OLD["s0"]] == "failed"
    assert [p.name for p in folder("s0").iterdir()] == ["mine.txt"]
    # Not even --overwrite takes what no conversion wrote.
    assert states(sam3lite("convert", "--all", "--overwrite", "--json").json)[OLD["s0"]] == "failed"
    assert [p.name for p in folder("s0").iterdir()] == ["mine.txt"]


def test_a_new_file_upstream_is_converted_with_overwrite(three, hub, tmp_path):
    sam3lite("convert", "--all")
    hub.commit(REPO, {OLD["s0"]: checkpoint(tmp_path, "newer")})
    before = snapshot(folder("s0"))
    done = sam3lite("convert", "--all", "--json")
    assert done.code == 1 and "another file" in done.json["results"][1]["error"]["message"]
    assert snapshot(folder("s0")) == before
    assert sam3lite("convert", "--all", "--overwrite").code == 0
    source = json.loads((folder("s0") / "conversion.json").read_text())["source"]
    assert source["commit"] == hub.head(REPO)


def test_no_space_is_the_failure_of_each(three, hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    done = sam3lite("convert", "--all", "--json")
    assert done.code == 1 and {r["error"]["code"] for r in done.json["results"]} == {"no_space"}
    assert downloads(hub) == 0


def test_space_is_reckoned_with_the_output(three, hub, monkeypatch):
    # Room for the download alone is not enough.
    room = int(1.5 * three["l"].stat().st_size)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - room, room))
    said = one_line(sam3lite("convert", "--checkpoint", "l"), 2)
    assert "not enough disk space to download " in said
    assert downloads(hub) == 0


def test_space_is_looked_for_on_both_disks(three, hub, monkeypatch, tmp_path):
    from sam3lite_convert import files
    from sam3lite_convert.commands import convert as conversions

    def usage(place):
        free = 10**6 if tmp_path in (place, *Path(place).parents) else 10**12
        return shutil._ntuple_diskusage(10**12, 10**12 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(conversions, "same_disk", lambda one, other: False)
    assert "not enough disk space to write " in one_line(sam3lite("convert", "--checkpoint", "l"), 2)
    assert downloads(hub) == 0
    assert files.same_disk(tmp_path, tmp_path / "not" / "there")


def test_an_interruption_stops_all_of_it(three, hub, monkeypatch):
    from sam3lite_convert.commands import convert as conversions

    inner = conversions.conversion.convert

    def interrupted(plan, *arguments):
        if "_s0_" in plan.checkpoint.path.name:
            raise KeyboardInterrupt
        return inner(plan, *arguments)

    with monkeypatch.context() as patch:  # undone alone: the working directory stays the test's own
        patch.setattr(conversions.conversion, "convert", interrupted)
        done = sam3lite("convert", "--all")
    assert done.code == 130 and "interrupted" in done.err
    assert folder("l").exists() and not folder("s0").exists() and not folder("s1").exists()
    assert sam3lite("convert", "--all", "--json").code == 0


def test_every_option_reaches_every_file(three):
    done = sam3lite("convert", "--all", "--layout", "transformers", "--component", "text", "--parity", "--json")
    assert done.code == 0, done
    for result in done.json["results"]:
        assert result["output"].endswith("-transformers-text")
        assert result["parity"]["verdict"] in right(result["parity"])


@pytest.mark.parametrize(
    "options",
    [
        ["--all", "--checkpoint", "s0"],
        ["--all", "--dry-run"],
        ["--all", "--hub-model-id", "a/b", "--push-to-hub"],
        ["--checkpoint", "s0", "--pattern", "*"],
        ["--checkpoint", "s0", "--hub-namespace", "a", "--push-to-hub"],
        ["--checkpoint", "s0", "--private"],
        ["--checkpoint", "s0", "--create-pr"],
        ["--checkpoint", "s0", "--hub-model-id", "a/b"],
        ["--checkpoint", "s0", "--commit-message", "x"],
        ["--checkpoint", "s0", "--push-to-hub", "--no-verify"],
        ["--checkpoint", "s0", "--push-to-hub", "--dry-run"],
        [],
    ],
)
def test_options_that_do_not_go_together(options, hub):
    one_line(sam3lite("convert", *options), 2)
    assert hub.log == [] and not Path(constants.HF_HUB_CACHE).exists()


def test_video_folders_of_all_that_have_a_tracker_and_one_repository_of_a_video_model(hub, tmp_path):
    names = {"s0": NEW["s0"], "s0-3.1": "sam3_litetext/of_sam31.pt"}
    files = {name: families.write(tmp_path / f"{kind}.pt", kind) for kind, name in names.items()}
    hub.add_repo(REPO, files)
    video = ["--layout", "transformers", "--component", "video"]
    done = sam3lite("convert", "--all", *video, "--verify", "--json")
    assert states(done.json) == {names["s0"]: "converted", names["s0-3.1"]: "failed"}
    (failed,) = [r for r in done.json["results"] if r["state"] == "failed"]
    assert "Its tracker has no class in transformers" in failed["error"]["message"]
    (made,) = ROOT.iterdir()
    assert made.name.endswith("-transformers-video")
    again = sam3lite("convert", "s0", *video, "--push-to-hub", "--hub-model-id", "porter/video", "--json")
    assert again.code == 0 and again.json["state"] == "current", again
    there = hub.files("porter/video")
    assert {"model.safetensors", "config.json", "conversion.json", "processor_config.json"} <= there.keys()
    assert b'Sam3VideoModel.from_pretrained("porter/video")' in there["README.md"]
    assert sam3lite("verify", "porter/video", "--checkpoint", "s0", "--whole", "--json").json["verdict"] == "proven"


def test_several_that_are_named(three, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(three["s0"], "mine.pt")
    Path("broken.pt").write_bytes(b"no checkpoint\n")
    names = ["mine.pt", "broken.pt", "s1", "gone.pt"]
    done = sam3lite("convert", *names, "--output", "there", "--verify", "--json")
    assert done.code == 1
    assert states(done.json) == {"mine.pt": "converted", "broken.pt": "failed", "s1": "converted", "gone.pt": "failed"}
    assert done.json["counts"] == {"converted": 2, "current": 0, "failed": 2} and "repo" not in done.json
    assert {p.name for p in Path("there").iterdir()} == {"mine-packed", folder("s1").name}
    before, _ = snapshot(Path("there")), hub.clear_log()
    again = sam3lite("convert", "mine.pt", "s1", "mine.pt", "--output", "there")
    assert again.code == 0 and "2 current" in again.out and again.out.count("mine.pt") == 1
    assert snapshot(Path("there")) == before and downloads(hub) == 0


def test_two_names_for_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/x.pt", "two/x.pt"):
        Path(name).parent.mkdir()
        Path(name).write_bytes(b"not read")
    assert "one/x.pt and two/x.pt would both" in one_line(sam3lite("convert", "one/x.pt", "two/x.pt"), 2)


@pytest.mark.parametrize("options", ["--dry-run", "--hub-model-id me/x --push-to-hub", "--checkpoint c.pt"])
def test_what_several_cannot_be_combined_with(options):
    assert options.split()[0] in one_line(sam3lite("convert", "a.pt", "b.pt", *options.split()), 2)
