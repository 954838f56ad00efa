"""The source's licence files: which are taken, where they lie, what the card says, and what is pushed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.folders import receipt, sam3lite, snapshot
from support.hub_files import CARD, FOLDER, OLD, REPO, SAM31, STEM, checkpoint, one_line, publish
from support.hub_server import HubServer

from sam3lite_convert.errors import Untrusted
from sam3lite_convert.hub.repository import Repository

SAM = b"SAM License\n\nLast updated: some day\n\n\x0cGrant of rights \xc2\xa9\n"
APACHE = b"Apache License\r\nVersion 2.0\r\n"
MINE = f"porter/{STEM}"
CONVERT = ["convert", "s0"]
PUSH = [*CONVERT, "--push-to-hub"]


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    """The hub with one checkpoint, and a licence at its top."""
    return publish(hub, tmp_path, {"s0": OLD["s0"]}, LICENSE=SAM)["s0"]


def licences(folder: Path = FOLDER) -> dict[str, bytes]:
    """By name, the files of a folder that are no JSON, no weights and no card."""
    others = (".json", ".safetensors")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix not in others and p.name != "README.md"}


def card(folder: Path = FOLDER) -> str:
    return (folder / "README.md").read_text()


def asked(hub: HubServer, name: str = "LICENSE") -> list[str]:
    """Requests for files of this name."""
    return [r.path for r in hub.log if r.path.endswith(name) and "/resolve/" in r.path and r.method == "GET"]


def forget_licences(folder: Path = FOLDER) -> None:
    """Make the folder what a version before this wrote: no licence file, and nothing of it in the receipt."""
    held = receipt(folder)
    for licence in held.pop("licences") or []:
        (folder / licence["name"]).unlink()
        del held["beside"][licence["name"]]
    (folder / "conversion.json").write_text(json.dumps(held))


# ---- which files, and under which names ------------------------------------------------------------


def test_the_licence_lies_in_the_folder_with_its_hash(s0, hub):
    assert sam3lite(*CONVERT).code == 0
    assert licences() == {"LICENSE": SAM}
    held = receipt(FOLDER)
    assert held["beside"]["LICENSE"] == hashlib.sha256(SAM).hexdigest()
    blob = hashlib.sha1(b"blob %d\0" % len(SAM) + SAM).hexdigest()
    assert held["licences"] == [
        {"path": "LICENSE", "commit": hub.head(REPO), "name": "LICENSE", "why": None, "blob_id": blob}
    ]
    # The card names it, and holds nothing of its text.
    assert "Its licence file `LICENSE` is here as it is there: `LICENSE`." in card()
    assert "Licence, as stated by the source: some-license (LICENSE)." in card()
    assert "Grant of rights" not in card()
    assert sam3lite("verify", FOLDER, s0).code == 0


NAMES = (
    "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "license.rst", "COPYING", "NOTICE", "UNLICENSE",
    "SAM_LICENSE.txt", "LICENSE-APACHE-2.0", "LICENSES.md",
)  # fmt: skip


def test_what_counts_as_a_licence_file(hub):
    others = ("license.py", "license_plates.pt.txt", "LICENSE.html", "LICENSE.json", "notes.txt", "relicensed.txt")
    files = {f"sam3_litetext/{name}": name.encode() for name in (*NAMES, *others)}
    hub.add_repo(REPO, files | {OLD["s0"]: b"weights", "other/LICENSE": b"of other files"})
    (file,) = (f for f in Repository(REPO).listing().files if f.path == OLD["s0"])
    assert [licence.path for licence in file.licence_files] == sorted(f"sam3_litetext/{name}" for name in NAMES)


def test_the_checkpoints_own_folder_comes_first_and_one_content_once(hub, tmp_path):
    own = {"sam3p1_litetext/LICENSE": SAM, "sam3p1_litetext/NOTICE": APACHE, "sam3p1_litetext/license.txt": b"third\n"}
    top = {"License": b"of the rest\n", "COPYING": SAM, "LICENSE.txt": b"another\n"}
    publish(hub, tmp_path, {"s0-3.1": SAM31["s0-3.1"]}, **own, **top)
    assert sam3lite("convert", "s0-3.1", "--output", "out").code == 0
    held = {licence["path"]: licence["name"] for licence in receipt(Path("out"))["licences"]}
    assert held == {
        "sam3p1_litetext/LICENSE": "LICENSE",
        "sam3p1_litetext/NOTICE": "NOTICE",
        "sam3p1_litetext/license.txt": "license.txt",
        "LICENSE.txt": "LICENSE-2.txt",
        "License": "License-2",
    }
    assert licences(Path("out")) == {
        "LICENSE": SAM,
        "NOTICE": APACHE,
        "license.txt": b"third\n",
        "LICENSE-2.txt": b"another\n",
        "License-2": b"of the rest\n",
    }
    assert "`LICENSE.txt` is here as it is there: `LICENSE-2.txt`." in card(Path("out"))
    assert sam3lite("convert", "s0-3.1", "--output", "out", "--overwrite").code == 0


def test_where_there_is_none_the_card_says_so(hub, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"]}, **{"other/LICENSE": SAM})
    sam3lite(*CONVERT)
    assert receipt(FOLDER)["licences"] == [] and licences() == {}
    assert "The source's repository holds no licence file, neither beside the checkpoint nor at its top." in card()


def test_nothing_comes_with_a_local_file(s0, hub):
    (s0.parent / "LICENSE").write_bytes(SAM)
    assert sam3lite("convert", s0, "--output", "out").code == 0
    assert licences(Path("out")) == {} and "licences" not in receipt(Path("out"))
    assert "neither licence information nor a licence file came with it" in card(Path("out"))
    assert hub.log == []


def test_what_is_no_plain_text_is_left_and_named(hub, tmp_path):
    text = "\ufeffLicence \u00a9\r\n\t".encode() + "\u00e9".encode("latin-1")  # to the byte, in any encoding
    bad = {
        "LICENSE": (b"x" * 1_000_001, "it has more than 1 MB"),
        "LICENSE-2.0": (b"PK\x03\x04 a picture of a licence", "it is not plain text"),
        "LICENSE.md": ("In UTF-16".encode("utf-16"), "it is not plain text"),
        "NOTICE": (b" \n", "it is empty"),
    }
    content = {name: data for name, (data, _) in bad.items()}
    publish(hub, tmp_path, {"s0": OLD["s0"]}, **content, **{"LICENSE.txt": b"y" * 1_000_000, "COPYING": text})
    assert sam3lite(*CONVERT).code == 0
    assert licences() == {"LICENSE.txt": b"y" * 1_000_000, "COPYING": text}
    for name, (_, why) in bad.items():
        assert f"Its licence file `{name}` is not here: {why}." in card()
    assert asked(hub, "/LICENSE") == [] and len(asked(hub, "/NOTICE")) == 1
    before, _ = snapshot(FOLDER), hub.clear_log()
    assert sam3lite(*CONVERT).code == 0 and snapshot(FOLDER) == before and asked(hub, "") == []


# ---- once, and again -------------------------------------------------------------------------------


def test_a_second_run_does_not_fetch_it_again(s0, hub):
    sam3lite(*CONVERT)
    assert len(asked(hub)) == 1
    before, _ = snapshot(FOLDER), hub.clear_log()
    done = sam3lite(*CONVERT)
    assert "complete and current" in done.out and snapshot(FOLDER) == before and asked(hub) == []


def test_of_all_it_is_fetched_once(hub, tmp_path):
    publish(hub, tmp_path, OLD, LICENSE=SAM, **{"sam3_litetext/NOTICE": APACHE})
    assert sam3lite("convert", "--all").code == 0
    folders = list(Path("converted").iterdir())
    assert len(folders) == 3
    assert all(licences(folder) == {"LICENSE": SAM, "NOTICE": APACHE} for folder in folders)
    assert len(asked(hub)) == len(asked(hub, "NOTICE")) == 1


@pytest.mark.parametrize("layout", [pytest.param("packed", marks=pytest.mark.stress), "transformers"])
def test_one_that_is_gone_is_added_again(layout, s0, hub, clip):
    convert = [*CONVERT, "--output", "out", "--layout", layout]
    sam3lite(*convert, "--tokenizer", clip)
    before = snapshot(Path("out"))
    Path("out/LICENSE").unlink()
    found = sam3lite("verify", "out", s0, "--json")
    assert found.code == 1 and [(f["code"], f["keys"]) for f in found.json["findings"]] == [("V-LICENCE", ["LICENSE"])]
    done = sam3lite(*convert, "--json")
    assert done.json["added"] == ["LICENSE"] and done.json["late_notes"] == []
    assert snapshot(Path("out")) == before


def test_one_that_is_edited_is_kept_said_and_not_pushed(s0, hub):
    sam3lite(*CONVERT)
    (FOLDER / "LICENSE").write_bytes(SAM + b"but not on Sundays\n")
    found = sam3lite("verify", FOLDER, s0, "--json")
    assert found.code == 1 and [f["code"] for f in found.json["findings"]] == ["V-LICENCE"]
    done = sam3lite(*CONVERT)
    assert done.code == 0 and "LICENSE: edited since the conversion, and kept as it is" in done.out
    assert (FOLDER / "LICENSE").read_bytes().endswith(b"Sundays\n")
    assert "LICENSE in converted" in one_line(sam3lite(*PUSH), 2)
    assert sam3lite(*CONVERT, "--overwrite").code == 0
    assert licences() == {"LICENSE": SAM}


def test_overwrite_takes_no_licence_of_the_users_own(hub, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"]})
    sam3lite(*CONVERT)
    (FOLDER / "LICENSE").write_bytes(b"mine")
    assert "LICENSE" in one_line(sam3lite(*CONVERT, "--overwrite"), 2)
    assert licences() == {"LICENSE": b"mine"}


def test_a_licence_that_the_user_put_there_is_not_written_over(hub, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"]}, LICENSE=SAM, COPYING=APACHE)
    sam3lite(*CONVERT)
    forget_licences()
    (FOLDER / "LICENSE").write_bytes(b"mine")
    (FOLDER / "COPYING").write_bytes(APACHE)
    assert sam3lite(*CONVERT).code == 0
    assert licences() == {"LICENSE": b"mine", "COPYING": APACHE}
    assert "Its licence file `LICENSE` is not here: another LICENSE was in the folder." in card()
    assert "Its licence file `COPYING` is here as it is there" in card()
    assert {"LICENSE", "COPYING"} & receipt(FOLDER)["beside"].keys() == {"COPYING"}


def test_without_a_network_it_is_added_later(s0, hub):
    sam3lite(*CONVERT, "--output", "first")
    hub.fail("status", match="/api/models/", status=429, retry_after=3600, times=None)
    assert sam3lite(*CONVERT).code == 0
    assert licences() == {} and "licences" not in receipt(FOLDER)
    assert "A licence file, if the source's repository has one, was not fetched." in card()
    # One that was there and is gone cannot be had either, and that is said.
    Path("first/LICENSE").unlink()
    done = sam3lite(*CONVERT, "--output", "first")
    assert done.code == 0 and "LICENSE is missing. To add it" in done.out
    hub.clear_faults()
    for folder in ("first", FOLDER):
        assert sam3lite(*CONVERT, "--output", folder, "--json").json["added"] == ["LICENSE"]
        assert licences(Path(folder)) == {"LICENSE": SAM}
        assert "is here as it is there" in card(Path(folder))


def test_a_text_that_is_not_what_the_hub_lists_is_not_taken_and_not_kept(hub):
    hub.add_repo(REPO, {OLD["s0"]: b"weights", "LICENSE": SAM})
    repository = Repository(REPO)
    hub.fail("wrong_bytes", match="/resolve/.*LICENSE", method="GET", at=3)
    with pytest.raises(Untrusted, match="LICENSE: its content is not what the Hub lists"):
        repository.licence_texts(repository.licence_files(OLD["s0"]))
    assert [text.data for text in repository.licence_texts(repository.licence_files(OLD["s0"]))] == [SAM]


def test_a_licence_that_cannot_be_fetched_loses_no_conversion(s0, hub):
    hub.fail("status", match="/resolve/.*LICENSE", times=None, status=404)
    done = sam3lite(*PUSH)
    assert done.code == 0 and "proven" in done.out and "Pushed to" in done.out
    assert "note: the licence of " in done.out and "could not be fetched, and is not in the folder" in done.out
    assert licences() == {} and "was not fetched" in card()
    assert "LICENSE" not in hub.files(MINE)
    hub.clear_faults()
    assert sam3lite(*PUSH).code == 0
    assert hub.files(MINE)["LICENSE"] == SAM and licences() == {"LICENSE": SAM}


# ---- pushed ----------------------------------------------------------------------------------------


def test_it_is_pushed_and_the_second_time_nothing(s0, hub):
    done = sam3lite(*PUSH)
    assert done.code == 0 and "new      LICENSE" in done.out
    assert hub.files(MINE)["LICENSE"] == SAM
    commits = hub.commits(MINE)
    hub.clear_log()
    done = sam3lite(*PUSH)
    assert "nothing was pushed" in done.out and hub.commits(MINE) == commits and asked(hub) == []
    # A folder on the Hub is verified with it.
    assert sam3lite("verify", MINE, s0, "--whole").code == 0
    hub.commit(MINE, {"LICENSE": b"other words"})
    found = sam3lite("verify", MINE, s0, "--whole", "--json").json
    assert [f["code"] for f in found["findings"]] == ["V-LICENCE"]


@pytest.mark.parametrize("name", [pytest.param("s0", marks=pytest.mark.stress), "local"])
def test_a_folder_of_before_gets_it_when_it_is_pushed(name, s0, hub):
    sam3lite(*CONVERT)
    forget_licences()
    shutil.rmtree(Path(constants.HF_HUB_CACHE))
    source = [s0, "--output", FOLDER] if name == "local" else ["s0"]
    push = ["convert", *source, "--push-to-hub", "--hub-model-id", MINE]
    if name == "local":
        # Without a push nothing is looked up for a file that is here.
        hub.clear_log()
        assert sam3lite(*push[:4]).code == 0 and hub.log == []
    done = sam3lite(*push)
    assert done.code == 0, done
    assert hub.files(MINE)["LICENSE"] == SAM and licences() == {"LICENSE": SAM}
    assert "nothing was pushed" in sam3lite(*push).out


def test_a_licence_that_somebody_put_there_stays_there(s0, hub):
    hub.add_repo("porter/own", {"LICENSE": b"theirs\n"})
    push = [*PUSH, "--hub-model-id", "porter/own"]
    done = sam3lite(*push)
    assert done.code == 0 and "LICENSE there was not written by a conversion and is kept" in done.out
    assert hub.files("porter/own")["LICENSE"] == b"theirs\n"
    assert "except for LICENSE" in sam3lite(*push).out
    assert sam3lite(*push, "--hub-overwrite").code == 0
    assert hub.files("porter/own")["LICENSE"] == SAM


def test_a_new_text_of_the_source_replaces_the_one_that_was_pushed(s0, hub):
    sam3lite(*PUSH)
    hub.commit(REPO, {"LICENSE": b"Version 2\n"})
    assert "nothing was pushed" in sam3lite(*PUSH).out  # the folder is current: its checkpoint is the same
    assert sam3lite(*PUSH, "--overwrite").code == 0
    assert hub.files(MINE)["LICENSE"] == b"Version 2\n"


def test_what_cannot_be_fetched_here_is_not_taken_away_there(s0, hub):
    sam3lite(*PUSH)
    hub.fail("status", match="/resolve/.*LICENSE", times=None, status=404)
    shutil.rmtree(Path(constants.HF_HUB_CACHE))
    done = sam3lite(*PUSH, "--overwrite")
    assert done.code == 0 and licences() == {}
    assert hub.files(MINE)["LICENSE"] == SAM


def test_what_the_source_does_not_have_any_more_goes_with_the_next_conversion(s0, hub):
    sam3lite(*PUSH)
    hub.commit(REPO, {"LICENSE": None, "COPYING": APACHE})
    done = sam3lite(*PUSH, "--overwrite")
    assert done.code == 0 and "delete   LICENSE" in done.out
    assert hub.files(MINE).get("LICENSE") is None and hub.files(MINE)["COPYING"] == APACHE


def test_a_folder_of_a_local_file_is_pushed_without_one_and_says_so(hub, tmp_path):
    path = checkpoint(tmp_path, "tuned")
    assert sam3lite("convert", path, "--push-to-hub").code == 0
    files = hub.files("porter/tuned")
    assert "LICENSE" not in files and b"a licence file came with it" in files["README.md"]
    assert CARD not in files.values()
