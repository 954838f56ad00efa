"""Checkpoints by name: looked up, downloaded, cached, held against what the hub states, and every fault
of the way. The real client, over real HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from support.folders import Outcome, environment, sam3lite
from support.hub_files import FOLDER, NEW, OLD, REPO, S0, SAM31, blobs, downloads, one_line, publish
from support.hub_server import HubServer
from support.surroundings import HUB

from sam3lite_convert.commands.sources import HubLocation, locate
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import ALIASES
from sam3lite_convert.hub.requests import hub_faults


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    """The hub with one checkpoint, s0 under its old name; the file."""
    return publish(hub, tmp_path, {"s0": S0})["s0"]


# ---- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alias", "path"), [*OLD.items()])
def test_an_alias_finds_the_old_name(alias, path, hub, tmp_path):
    publish(hub, tmp_path, OLD)
    record = sam3lite("inspect", alias, "--json").json
    assert record["source"]["file"] == path


@pytest.mark.parametrize(("alias", "path"), [*NEW.items()])
def test_of_several_files_the_newer_naming_wins(alias, path, hub, tmp_path):
    files = {f"old {a}": p for a, p in OLD.items()} | NEW
    publish(hub, tmp_path, files)
    assert sam3lite("inspect", alias, "--json").json["source"]["file"] == path


def found(alias: str) -> str:
    """The path that an alias stands for; the file itself is not read."""
    return locate(alias, HubLocation()).path.as_posix()


def refused(alias: str) -> str:
    """The message of the error."""
    with pytest.raises(CannotRun) as caught:
        locate(alias, HubLocation())
    return caught.value.message


def put(hub: HubServer, *paths: str) -> None:
    """A repository of these files, no two of them the same."""
    hub.add_repo(REPO, {path: path.encode() for path in paths})


def test_the_aliases_of_sam31_and_of_the_files_before_it(hub):
    put(hub, *NEW.values(), *SAM31.values())
    assert {alias: found(alias) for alias in ALIASES} == NEW | SAM31


@pytest.mark.parametrize("naming", ["efficient_sam3p1_image_encoder", "efficient_sam3p1", "sam3.1-litetext", "sam3p1"])
def test_another_naming_of_sam31_is_found(naming, hub):
    path = f"sam3p1_litetext/{naming}_mobileclip2_l_ctx32.pt"
    put(hub, path, "sam3p1_litetext/sam3p1_litetext_mobileclip_s0_ctx16.pt", *NEW.values())
    assert found("l-3.1-32") == path


def test_of_sam31_too_the_newer_naming_wins(hub):
    put(hub, SAM31["s1-3.1"], "sam3p1_litetext/efficient_sam3p1_image_encoder_mobileclip_s1_ctx16.pt")
    assert found("s1-3.1") == SAM31["s1-3.1"]


@pytest.mark.parametrize(
    ("alias", "paths"),
    [
        ("s0-3.1", ("sam3p1_litetext/a_mobileclip_s0_ctx16.pt", "sam3p1_litetext/b_mobileclip_s0_ctx16.pt")),
        ("s0-3.1", ("sam3p1_litetext/a_mobileclip_s0_ctx16.pt", SAM31["s0-3.1"])),
        ("l-3.1", ("sam3p1_litetext/sam3p1_litetext_mobileclip_l_ctx16.pt", SAM31["l-3.1"])),
        ("l", (NEW["l"], "sam3_litetext/sam3_litetext_mobileclip_l_ctx16.pt")),
    ],
)
def test_an_alias_never_chooses_between_different_files(alias, paths, hub):
    put(hub, *paths)
    done = sam3lite("inspect", alias, "--json")
    assert done.code == 2 and done.json["error"]["code"] == "ambiguous_alias"
    assert all(path in done.json["error"]["message"] for path in paths)
    assert done.json["error"]["details"] == {"checkpoints": sorted(paths)}


def test_one_file_under_two_names_is_one_file(hub):
    one, two = (f"sam3p1_litetext/{naming}_mobileclip_s0_ctx16.pt" for naming in "ab")
    hub.add_repo(REPO, {one: b"the same", two: b"the same"})
    assert found("s0-3.1") == two


def test_an_alias_that_the_repository_lacks_names_what_is_there(hub):
    put(hub, *OLD.values())
    said = refused("s0-3.1")
    assert "no file or alias s0-3.1" in said and "Its aliases: s0, s1, l." in said
    assert all(path in said for path in OLD.values())
    hub.reset()
    put(hub, *SAM31.values())
    said = refused("s0")
    assert f"Its aliases: {', '.join(SAM31)}." in said and SAM31["s0-3.1"] in said


def test_what_only_looks_like_a_released_file_has_no_alias(hub):
    put(
        hub,
        "sam3_litetext/tuned_mobileclip_s0_ctx16.pt",
        "sam3p1_litetext/mobileclip_s0_ctx16.pt.bak",
        "sam3p1_litetext/deep/sam3p1_litetext_mobileclip_s0_ctx16.pt",
        "sam3p1_litetext/sam3p1_litetext_mobileclip_s0_ctx77.pt",
        "other/sam3p1_litetext_mobileclip_s0_ctx16.pt",
    )
    assert "Its aliases" not in refused("s0") and "Its aliases" not in refused("s0-3.1")


def test_a_path_in_the_repository(s0, hub):
    record = sam3lite("inspect", S0, "--json").json
    assert record["source"] == {
        "repo": REPO,
        "file": S0,
        "commit": hub.head(REPO),
        "etag": hashlib.sha256(s0.read_bytes()).hexdigest(),
        "size": s0.stat().st_size,
    }


def test_another_repository_and_revision(s0, hub):
    old = hub.add_repo("someone/else", {"own.pt": s0})
    hub.commit("someone/else", {"own.pt": None})
    done = sam3lite("inspect", "own.pt", "--repo-id", "someone/else")
    assert "someone/else has no file or alias own.pt at revision main" in one_line(done, 2)
    done = sam3lite("inspect", "own.pt", "--repo-id", "someone/else", "--revision", old)
    assert done.code == 0 and f"convert own.pt --repo-id someone/else --revision {old}" in done.out


@pytest.mark.parametrize("name", ["s3", "sam3_litetext/efficient_sam3_image_encoder_mobileclip_s0.pt", "s0-32"])
def test_an_unknown_name_lists_what_is_there(name, hub, tmp_path):
    files = publish(hub, tmp_path, OLD)
    done = sam3lite("convert", "--checkpoint", name, "--json")
    assert done.code == 2
    error = done.json["error"]
    assert error["code"] == "no_such_file"
    assert all(path in error["message"] for path in OLD.values())
    assert error["details"] == {"aliases": list(files), "checkpoints": sorted(OLD.values())}


def test_a_near_name_is_suggested(s0):
    assert "Did you mean " + S0 in one_line(sam3lite("inspect", S0.replace("_s0_", "_so_")), 2)


def test_a_path_that_looks_local_is_not_asked_for(s0, hub):
    for name in ("./s0", "/nowhere/s0.pt", "..", "~/s0.pt"):
        if not os.path.exists(name):
            one_line(sam3lite("inspect", name), 2)
    assert hub.log == []


def test_a_name_that_is_no_repository(hub):
    assert "a/b/c is not a valid repository name: OWNER/NAME" in one_line(
        sam3lite("inspect", "s0", "--repo-id", "a/b/c"), 2
    )


# ---- downloading ----------------------------------------------------------------------------------


def test_convert_by_name(s0, hub, tmp_path):
    done = sam3lite("convert", "--checkpoint", "s0")
    assert done.code == 0, done
    receipt = json.loads((FOLDER / "conversion.json").read_text())
    digest = hashlib.sha256(s0.read_bytes()).hexdigest()
    stated = {"repo": REPO, "file": S0, "commit": hub.head(REPO), "etag": digest, "sha256": digest}
    assert receipt["source"].items() >= (stated | {"name": Path(S0).name, "size": s0.stat().st_size}).items()
    record = sam3lite("convert", "--checkpoint", "s0", "--output", "again", "--json").json
    # Where on the Hub it came from, and the source as the receipt has it.
    assert record["source"] == {key: receipt["source"][key] for key in ("repo", "file", "commit", "etag", "size")}
    assert record["converted_from"] == receipt["source"]
    sam3lite("convert", "--checkpoint", s0, "--output", "local")
    assert (FOLDER / "model.safetensors").read_bytes() == Path("local/model.safetensors").read_bytes()
    assert sam3lite("verify", FOLDER, "--checkpoint", "s0").code == 0


def test_what_is_cached_is_used(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    hub.clear_log()
    assert sam3lite("convert", "--checkpoint", "s0", "--output", "other").code == 0
    assert sam3lite("inspect", "s0").code == 0
    assert downloads(hub) == 0


def test_the_cache_may_be_elsewhere(s0, hub, tmp_path):
    assert sam3lite("convert", "--checkpoint", "s0", "--cache-dir", tmp_path / "cache").code == 0
    assert not blobs() and list((tmp_path / "cache").rglob("blobs/*"))


def test_verify_and_parity_by_name(s0, hub):
    sam3lite("convert", "--checkpoint", s0, "--output", "out")
    assert sam3lite("verify", "out", "--checkpoint", "s0", "--json").json["verdict"] == "proven"
    bare = sam3lite("parity", "--converted", "out")  # s0 is what it takes
    assert bare.err.startswith(f"no checkpoint was given, so s0 is taken, from {REPO} on the Hub")
    record = sam3lite("parity", "--converted", "out", "--json").json
    assert record["verdict"] == "exact"
    assert record["source"]["file"] == S0


def test_verify_looks_at_the_folder_first(s0, hub):
    assert "no such folder" in one_line(sam3lite("verify", "nowhere", "--checkpoint", "s0"), 2)
    assert hub.log == []


def test_a_file_that_changes_between_listing_and_download(s0, hub, tmp_path):
    # Everything after the listing is pinned to its commit.
    listed = hub.head(REPO)
    other = tmp_path / "other.pt"
    other.write_bytes(s0.read_bytes()[:-1] + b"x")

    def change(request):
        if "/resolve/" in request.path and hub.head(REPO) == listed:
            hub.commit(REPO, {S0: other})

    hub.on_request = change
    try:
        assert sam3lite("convert", "--checkpoint", "s0", "--verify").code == 0
    finally:
        hub.on_request = None
    assert hub.head(REPO) != listed
    assert json.loads((FOLDER / "conversion.json").read_text())["source"]["commit"] == listed


def test_no_space_for_the_download(s0, hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    assert "not enough disk space to write the conversion of s0: " in one_line(
        sam3lite("convert", "--checkpoint", "s0"), 2
    )
    assert downloads(hub) == 0


# ---- what the hub states, and what arrives ----------------------------------------------------------


def test_wrong_bytes_are_not_trusted_and_not_kept(s0, hub):
    hub.fail("wrong_bytes", match="/cdn/.*", at=5_000_000)
    done = sam3lite("convert", "--checkpoint", "s0")
    assert "etag" in one_line(done, 4)
    assert not FOLDER.exists() and not blobs()
    assert sam3lite("convert", "--checkpoint", "s0").code == 0


def test_wrong_bytes_under_an_index_that_cannot_be_read(s0, hub):
    hub.fail("wrong_bytes", match="/cdn/.*")
    assert "deleted" in one_line(sam3lite("convert", "--checkpoint", "s0"), 4)
    assert not FOLDER.exists() and not blobs()
    assert sam3lite("convert", "--checkpoint", "s0").code == 0


@pytest.mark.parametrize("command", [["verify", "out", "--checkpoint", "s0"], ["parity", "--checkpoint", "s0"]])
def test_wrong_bytes_are_noticed_by_every_command(command, s0, hub):
    sam3lite("convert", "--checkpoint", s0, "--output", "out")
    # Before the first tensor, in the padding of a header: no tensor and no checksum shows it.
    hub.fail("wrong_bytes", match="/cdn/.*", at=padding(s0))
    one_line(sam3lite(*command), 4)
    assert not blobs()
    assert sam3lite(*command).code == 0


def padding(path: Path) -> int:
    """A byte that no tensor and no CRC covers: torch fills the headers of its zip to align the data."""
    data = path.read_bytes()
    return data.index(b"FB", data.index(b"data/0")) + 10


def test_a_listing_that_states_another_hash(s0, hub):
    hub.fail("etag", match="/resolve/", etag="0" * 64, times=None)
    one_line(sam3lite("convert", "--checkpoint", "s0"), 4)
    assert not FOLDER.exists()
    hub.clear_faults()
    assert sam3lite("convert", "--checkpoint", "s0").code == 0


def test_a_hostile_file_of_the_hub_stays_refused_and_cached(hub, tmp_path):
    # It is what the hub states, so fetching it again would not help.
    import torch

    class Evil:
        def __reduce__(self):
            return os.system, ("touch evil",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pt").open("ab").close()
    hub.add_repo(REPO, {S0: tmp_path / "evil.pt"})
    for _ in range(2):
        done = sam3lite("convert", "--checkpoint", "s0")
        assert "deleted" not in one_line(done, 4)
    assert not Path("evil").exists()
    assert sum("/cdn/" in r.path for r in hub.log) == 1


# ---- faults of the way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("drop", {"match": "/cdn/.*", "after": 3_000_000}),
        ("drop", {"match": "/cdn/.*", "after": 3_000_000, "reset": False}),
        ("short", {"match": "/cdn/.*", "after": 3_000_000}),
        ("status", {"match": "/cdn/.*", "status": 500}),
        ("status", {"match": "/cdn/.*", "status": 429, "retry_after": 1}),
        ("status", {"match": "/resolve/", "status": 500}),
        ("status", {"match": "/api/models/.*/revision/", "status": 503}),
        ("status", {"match": "/api/models/.*/revision/", "status": 429, "retry_after": 1}),
        ("status", {"match": "/tree/", "status": 500}),
        ("drop", {"match": "/api/models/.*/revision/"}),
        ("drop", {"match": "/resolve/"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())).replace("/", ""),
)
def test_a_fault_that_passes(fault, options, s0, hub):
    hub.fail(fault, **options)
    done = sam3lite("convert", "--checkpoint", "s0", "--verify")
    assert done.code == 0, done
    assert "error: " not in done.err
    assert all(line.startswith("note: ") for line in done.err.splitlines())


@pytest.mark.parametrize(
    ("match", "status", "code", "said"),
    [
        ("/api/models/", 401, "no_access", "hf auth login"),
        ("/api/models/", 403, "no_access", "hf auth login"),
        ("/api/models/", 404, "no_such_file", "404"),
        ("/cdn/", 403, "no_access", "403"),
        ("/cdn/", 404, "no_such_file", "404"),
        ("/api/models/", 400, "hub_refused", "400"),
    ],
)
def test_a_refusal(match, status, code, said, s0, hub):
    hub.fail("status", match=match, status=status, times=None)
    done = sam3lite("convert", "--checkpoint", "s0", "--json")
    assert done.code == 2 and done.json["error"]["code"] == code
    assert said in done.json["error"]["message"]
    assert not FOLDER.exists()
    hub.clear_faults()
    assert sam3lite("convert", "--checkpoint", "s0").code == 0


def test_a_hub_that_asks_for_a_long_pause_is_told_of_at_once(s0, hub):
    hub.fail("status", match="/api/models/", status=429, retry_after=3600, times=None)
    started = time.monotonic()
    assert "3600 seconds" in one_line(sam3lite("inspect", "s0"), 2)
    assert time.monotonic() - started < 5


def test_a_repository_that_is_not_there(hub):
    assert REPO in one_line(sam3lite("inspect", "s0"), 2)


def test_a_revision_that_is_not_there(s0):
    assert "--revision" in one_line(sam3lite("inspect", "s0", "--revision", "v9"), 2)


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_repository_that_needs_a_token(kind, s0, hub, monkeypatch):
    hub.reset()
    hub.add_repo(REPO, {S0: s0}, **{kind: True})
    assert sam3lite("convert", "--checkpoint", "s0").code == 0
    monkeypatch.delenv("HF_TOKEN")
    shutil.rmtree(constants.HF_HUB_CACHE)
    shutil.rmtree("converted")
    assert "hf auth login" in one_line(sam3lite("convert", "--checkpoint", "s0"), 2).replace("Log", "log")
    assert not FOLDER.exists()


def test_a_token_that_is_not_accepted(s0, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = sam3lite("convert", "--checkpoint", "s0")
    assert "token" in one_line(done, 2).lower() and "hf_wrong" not in done.err


# ---- without a network ------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def apart(*arguments: object, **surroundings: str) -> Outcome:
    """The command in a process of its own: the client reads its surroundings when it is imported."""
    env = {k: v for k, v in environment().items() if k != "HF_HUB_OFFLINE"} | surroundings
    command = [sys.executable, "-m", "sam3lite_convert", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    return Outcome(done.returncode, done.stdout, done.stderr)


def offline(*arguments: object) -> Outcome:
    return apart(*arguments, HF_HUB_OFFLINE="1")


def unplugged(*arguments: object) -> Outcome:
    return apart(*arguments, HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("run", [pytest.param(offline, marks=pytest.mark.stress), unplugged])
def test_without_a_network_a_cached_file_works(run: Callable[..., Outcome], s0):
    sam3lite("convert", "--checkpoint", "s0", "--output", "first")
    done = run("convert", "--checkpoint", "s0")
    assert done.code == 0, done
    assert (FOLDER / "model.safetensors").read_bytes() == Path("first/model.safetensors").read_bytes()
    source = json.loads((FOLDER / "conversion.json").read_text())["source"]
    assert source["etag"] == source["sha256"] and source["commit"] == HUB.head(REPO)


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("convert", offline),
        pytest.param("convert", unplugged, marks=pytest.mark.stress),
        pytest.param("parity", offline, marks=pytest.mark.stress),
        pytest.param("parity", unplugged, marks=pytest.mark.stress),
    ],
)
def test_without_a_network_a_missing_file_is_one_message(run: Callable[..., Outcome], command: str, s0):
    started = time.monotonic()
    for cached in (False, True):
        assert "sam3lite demo" in one_line(run(command, "--checkpoint", "l"), 2)
        if not cached:
            sam3lite("convert", "--checkpoint", "s0")  # something else in the cache changes nothing
    assert time.monotonic() - started < 20


def test_a_server_in_trouble_is_no_reason_not_to_use_the_cache(s0, hub):
    sam3lite("convert", "--checkpoint", "s0", "--output", "first")
    hub.fail("status", match="/api/models/", status=429, retry_after=3600, times=None)
    done = sam3lite("convert", "--checkpoint", "s0")
    assert done.code == 0, done


@pytest.mark.parametrize("run", [offline, unplugged])
def test_all_needs_the_listing(run: Callable[..., Outcome], s0):
    # The cache does not know what else there is, so "done" would be untrue.
    sam3lite("convert", "--checkpoint", "s0")
    assert "sam3lite demo" in one_line(run("convert", "--all"), 2)


# ---- answers that no hub gives ----------------------------------------------------------------------


@pytest.mark.parametrize("match", ["/api/models/.*/revision/", "/tree/"])
def test_an_answer_that_is_none(match, s0, hub):
    hub.fail("status", match=match, status=200, times=None)
    one_line(sam3lite("convert", "--checkpoint", "s0"), 2)


@pytest.mark.parametrize("oid", ["../../../victim", "0" * 63, "", "a/b"])
def test_a_listing_whose_hashes_are_none(oid, s0, hub, tmp_path, monkeypatch):
    # They become names of files in the cache.
    (tmp_path / "victim").mkdir()
    inner = hub._listed

    def hostile(repo, commit, path, expand):
        found = inner(repo, commit, path, expand)
        if found and "lfs" in found:
            found["lfs"]["oid"] = str(tmp_path / "victim") if oid.startswith("..") else oid
        return found

    monkeypatch.setattr(hub, "_listed", hostile)
    for command in (["inspect", "s0"], ["convert", "--checkpoint", "s0"]):
        assert "unexpected response from the Hub" in (said := one_line(sam3lite(*command), 2))
        assert "Check HF_ENDPOINT and your proxy." in said
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.stress
def test_a_server_that_says_nothing_is_not_waited_for_long(s0, hub, monkeypatch):
    from huggingface_hub import close_session

    from sam3lite_convert.hub import bounds
    from sam3lite_convert.hub import requests as hub_requests

    monkeypatch.setattr(bounds, "TIMEOUT", 0.5)
    monkeypatch.setattr(hub_requests, "TIMEOUT", 0.5)
    close_session()
    hub.fail("stall", match="/api/models/.*/revision/", seconds=4)
    hub.fail("stall", match="/tree/", seconds=20)
    started = time.monotonic()
    assert sam3lite("inspect", "s0").code == 0
    assert time.monotonic() - started < 7
    close_session()


@pytest.mark.parametrize("revision", ["../../../../../etc/passwd", "SECRET", ".."])
def test_a_reference_that_leads_out_of_the_cache(revision, s0, tmp_path):
    sam3lite("inspect", "s0")
    (tmp_path / "secret").write_text("0" * 40)
    done = offline("inspect", "s0", "--revision", revision.replace("SECRET", str(tmp_path / "secret")))
    assert done.code == 2 and "Traceback" not in done.err
    assert "empty" in one_line(sam3lite("inspect", "s0", "--revision", ""), 2)


# ---- what is said meanwhile -------------------------------------------------------------------------


@pytest.mark.stress
def test_notes_are_said_once_and_without_signatures(s0, hub):
    hub.fail("drop", match="/cdn/.*", after=3_000_000, reset=False)
    done = apart("convert", "--checkpoint", "s0")
    assert done.code == 0
    lines = done.err.splitlines()
    assert lines and all(line.startswith("note: ") for line in lines) and len(set(lines)) == len(lines)
    assert "signature" not in done.err
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.fail("drop", match="/cdn/.*", after=3_000_000, reset=False)
    done = apart("convert", "--checkpoint", "s0", "--overwrite", "--json")
    assert done.code == 0 and done.err == "" and done.json["state"] == "converted"


@pytest.mark.parametrize(("name", "why"), [("missing.pem", "there is no such file"), ("words.pem", "no certificates")])
def test_a_wrong_file_of_certificates_is_named_with_its_variable(name, why, tmp_path):
    """In a process of its own, since the client reads the variable once. A warning of the client's is not shown raw."""
    (tmp_path / "words.pem").write_text("no certificate")
    own = {"SSL_CERT_FILE": str(tmp_path / name), "HF_HUB_ENABLE_HF_TRANSFER": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "sam3lite_convert", "inspect", "s0", "--cache-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment() | own)
    assert done.returncode == 2
    said = done.stderr.replace("\n", " ")
    assert f"SSL_CERT_FILE is {tmp_path / name}, and" in said and why in said, said
    assert "Warning" not in said and said.count("error:") == 1


class TransportError(Exception):
    """As the client's library calls it."""


@pytest.mark.parametrize(
    ("variable", "says"),
    [("REQUESTS_CA_BUNDLE", "REQUESTS_CA_BUNDLE is not read here: set SSL_CERT_FILE to a.pem"),
     ("CURL_CA_BUNDLE", "CURL_CA_BUNDLE is not read here: set SSL_CERT_FILE to a.pem"),
     ("SSL_CERT_FILE", "SSL_CERT_FILE is a.pem, which has to hold"),
     ("SSL_CERT_DIR", "SSL_CERT_DIR is a.pem, which has to hold"),
     ("OTHER", "Set SSL_CERT_FILE to a PEM file")],
)  # fmt: skip
def test_a_certificate_that_is_not_trusted_names_the_variable(variable, says, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "a.pem")
    with pytest.raises(CannotRun, match=re.escape(says)) as fault, hub_faults("a/b"):
        raise TransportError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert fault.value.code == "no_network"


@pytest.mark.parametrize("content", [b"hf_ab\0cd_secret", "hf_secret".encode("utf-16"), b"\xff\xfe\xff"])
def test_odd_tokens_are_not_shown(content, s0, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "\u201chf_secret\u201d")
    assert "secret" not in one_line(sam3lite("inspect", "s0"), 2)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_bytes(content)
    done = apart("inspect", "s0", HF_TOKEN_PATH=str(tmp_path / "token"))
    assert "secret" not in one_line(done, 2) and "token" in done.err


def test_what_a_killed_download_left_goes_once_the_file_is_there(s0, hub):
    folder = Path(constants.HF_HUB_CACHE) / ("models--" + REPO.replace("/", "--")) / "blobs"
    folder.mkdir(parents=True)
    etag = hashlib.sha256(s0.read_bytes()).hexdigest()
    left, other = folder / f"{etag}.0badcafe.incomplete", folder / f"{'0' * 64}.0badcafe.incomplete"
    for round in range(2):  # fetched, and in the cache
        left.write_bytes(b"half of it")
        other.write_bytes(b"half of another")
        sam3lite("convert", "--checkpoint", "s0", "--overwrite", "--output", f"out{round}")
        assert not left.exists() and other.exists()


def test_a_download_that_is_under_way_keeps_its_file(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    cache = Path(constants.HF_HUB_CACHE)
    name, etag = "models--" + REPO.replace("/", "--"), hashlib.sha256(s0.read_bytes()).hexdigest()
    begun = cache / name / "blobs" / f"{etag}.0badcafe.incomplete"
    begun.write_bytes(b"half of it")
    with WeakFileLock(cache / ".locks" / name / f"{etag}.lock"):
        assert sam3lite("convert", "--checkpoint", "s0", "--output", "out").code == 0
        assert begun.exists()
