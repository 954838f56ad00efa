"""``doctor``: tells what is broken, whatever that is, and nothing that is private."""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.folders import ROOT, python, sam3lite
from support.hub_server import TOKEN, USER

from sam3lite_convert.commands import doctor
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub import reach
from sam3lite_convert.hub.log import masked_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = "someone/models"
DEVELOPERS = {"test", "browser", "fuzz", "lint", "release", "all"}


def found(done, group: str, name: str) -> dict:
    """The one check of this name."""
    (check,) = [c for c in done.json["checks"] if (c["group"], c["name"]) == (group, name)]
    return check


def problems(done) -> set[str]:
    return {c["name"] for c in done.json["checks"] if c["status"] == "problem"}


@pytest.fixture(autouse=True)
def spacious(monkeypatch):
    """However full the disk of this machine is, the tests do not depend on it."""
    monkeypatch.setattr(doctor, "_CHECKPOINT", 1)
    monkeypatch.setattr(doctor, "_TEMPORARY", 1)
    monkeypatch.setattr(doctor, "_MEMORY", 1)


@pytest.fixture
def small_hub(hub):
    hub.add_repo(REPO, {"a.txt": b"a"})
    return hub


def test_what_works(small_hub):
    done = sam3lite("doctor", "--repo-id", REPO, "--json")
    assert (done.code, problems(done)) == (0, set()), done.out
    assert found(done, "hub", "token")["found"] == f"from HF_TOKEN: of the user {USER}"
    assert found(done, "hub", "Hub")["status"] == found(done, "hub", "repository")["status"] == "ok"
    assert sorted(r.path for r in small_hub.log) == [f"/api/models/{REPO}", "/api/whoami-v2"]
    assert found(done, "packages", "torch")["found"] == metadata.version("torch")
    text = sam3lite("doctor", "--repo-id", REPO)
    assert text.code == 0 and text.err == "" and text.out.splitlines()[-1].startswith("doctor: ")
    assert TOKEN not in text.out + done.out


def test_offline_asks_nobody(small_hub, monkeypatch):
    monkeypatch.setenv("HF_OIDC_RESOURCE", "x")  # the client would exchange it for a token
    done = sam3lite("doctor", "--offline", "--json")
    assert (done.code, small_hub.log, found(done, "hub", "Hub")["status"]) == (0, [], "note")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in found(sam3lite("doctor", "--json"), "hub", "Hub")["found"]
    assert small_hub.log == []


@pytest.mark.parametrize("what", ["status", "drop", "stall", "raw", "closed"])
def test_a_hub_that_does_not_answer(what, small_hub, monkeypatch):
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.3)
    if what == "closed":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        more = {"status": {"status": 503}, "stall": {"seconds": 1}, "raw": {"raw": lambda: [b"junk\r\n\r\n"]}}
        small_hub.fail(what, match="", times=None, **more.get(what, {}))
    begun = time.monotonic()
    done = sam3lite("doctor", "--repo-id", REPO, "--json")
    assert time.monotonic() - begun < 1.5
    assert (done.code, problems(done), done.json["verdict"]) == (1, {"Hub"}, "problem"), done.out
    said = found(done, "hub", "Hub")
    assert said["found"].count(constants.ENDPOINT) == 1 and "--offline" in said["advice"]


def test_a_repository_that_is_not_there_is_no_fault_of_the_hub(small_hub):
    done = sam3lite("doctor", "--repo-id", "someone/else", "--json")
    assert (done.code, problems(done), found(done, "hub", "Hub")["status"]) == (1, {"repository"}, "ok")


ODD_TOKENS = {
    "usual": "hf_" + "AbCdEfGh12" * 3,
    "another form": "sk-proj_Zq81.x~y",
    "with spaces": "two secret words",
    "no ASCII": "gehéim-ключ-秘密",
    "two lines": "first-half-77\nsecond-half-88",
    "control characters": "red\x1b[31msecret-99",
    "quotes": 'it\'s "quoted" \\ secret',
    "percent": "%73ecret%2Fpart",
    "like a URL": "https://u:secret-55@host/x",
    "JSON": '{"access_token": "inner-secret-66"}',
    "long": "0123456789abcdef" * 1000,
}


def assert_not_told(token: str, *texts: str) -> None:
    """Neither the token nor a line of it nor one of its longer words is in the texts, as it is or escaped."""
    secrets = {w for line in token.splitlines() for w in (line, *line.split()) if len(w) > 5}
    for secret in secrets:
        for shape in (secret, ascii(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)):
            assert all(shape not in text for text in texts), shape


@pytest.mark.parametrize(
    ("kind", "place"),
    [*((kind, "variable") for kind in ODD_TOKENS), *((k, "file") for k in ("no ASCII", "JSON", "long"))],
)
def test_a_token_is_never_told(kind, place, small_hub, monkeypatch, tmp_path):
    token = ODD_TOKENS[kind]
    monkeypatch.delenv("HF_TOKEN")
    if place == "variable":
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        (tmp_path / "token").write_text(token, encoding="utf-8")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    runs = [sam3lite("doctor", "--repo-id", REPO, *more) for more in (["--json"], [])]
    assert "token" in problems(runs[0]), runs[0]
    values = json.dumps(runs[0].json, ensure_ascii=False)
    assert_not_told(token, values, *(text for run in runs for text in (run.out, run.err)))


def test_a_token_that_the_server_sends_back_is_not_told(small_hub, monkeypatch):
    monkeypatch.setitem(small_hub.users, TOKEN, TOKEN)
    small_hub.fail("status", match=REPO, times=None, status=403, message=f"no: {TOKEN}")
    for more in (["--json"], []):
        done = sam3lite("doctor", "--repo-id", REPO, *more)
        assert TOKEN not in done.out + done.err
    named = sam3lite("doctor", "--repo-id", f"someone/{TOKEN}")
    assert TOKEN not in named.out + named.err


def test_the_file_of_the_token_that_is_no_file(small_hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    os.mkfifo(tmp_path / "token")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert problems(sam3lite("doctor", "--repo-id", REPO, "--json")) == {"token"}


def test_passwords_of_proxies_and_endpoints_are_masked(hub, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://alice:p@ss/w0rd#1@proxy.example:3128")
    monkeypatch.setenv("ALL_PROXY", "alice:p@ss/w0rd#1@proxy.example:3128")
    done = sam3lite("doctor", "--offline", "--json")
    assert found(done, "hub", "https_proxy")["found"] == "http://***@proxy.example:3128"
    assert found(done, "hub", "ALL_PROXY")["found"] == "***@proxy.example:3128"
    for name in ("https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name)
    address = "http://alice:p%40ss-w0rd@127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    online = sam3lite("doctor", "--json")
    assert problems(online) == {"Hub"} and "***@127.0.0.1:9" in online.out
    address = "http://alice:p@ss/w0rd@127.0.0.1:9"  # not as URLs are, so that it is read in different ways
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    answer = reach.Answer(None, CannotRun(f"the Hub ({address}) cannot be reached", "no_network"), 0.1)
    monkeypatch.setattr(reach, "ask", lambda *arguments: (answer, None))
    wrong = sam3lite("doctor", "--json")
    assert problems(wrong) == {"Hub"}
    for text in (done.out, done.err, online.out, online.err, wrong.out, wrong.err):
        assert "ss/w0rd" not in text and "ss-w0rd" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a:b@h:1/p?q#f", "http://***@h:1/p"),
        ("http://a://b@h", "http://***@h"),
        ("a:b@h", "***@h"),
        ("https://h/p", "https://h/p"),
        ("h:1", "h:1"),
    ],
)
def test_a_url_without_its_secrets(url, shown):
    assert masked_url(url) == shown


def test_an_endpoint_that_is_no_url(monkeypatch):
    for value in ("no url", "ftp://host", "https://"):
        monkeypatch.setattr(constants, "ENDPOINT", value)
        done = sam3lite("doctor", "--json")
        assert problems(done) == {"Hub"} and f"HF_ENDPOINT is {value}" in found(done, "hub", "Hub")["found"]
    monkeypatch.setenv("HF_ENDPOINT", "http://[bad")  # the client cannot even be imported
    run = "import sys\nfrom sam3lite_convert.cli.app import run\ncode = run(['doctor', '--json'])\n"
    done = python("-c", run + "sys.exit(10 * ('torch' in sys.modules or 'transformers' in sys.modules) + code)")
    assert (done.returncode, done.stderr) == (1, "")  # 11: versions are told without importing what takes seconds
    wrong = [c for c in json.loads(done.stdout)["checks"] if c["status"] == "problem"]
    assert wrong and all("HF_ENDPOINT" in c["found"] for c in wrong)


# ---- packages ---------------------------------------------------------------------------------------


def with_versions(monkeypatch, **versions: str | None) -> None:
    """As if these packages were installed in these versions, or, with None, were not."""
    real = metadata.version

    def version(name):
        if name not in versions:
            return real(name)
        if versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


def test_a_missing_package_and_an_old_one(monkeypatch):
    with_versions(monkeypatch, torch=None, rich="1.0", numpy="no version", onnx=None, onnxruntime=None, pillow="1.0")
    done = sam3lite("doctor", "--offline", "--json")
    assert (done.code, problems(done)) == (1, {"torch", "rich", "numpy"}), done.out
    claims = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = [claim for claim in claims if claim.startswith("torch")]
    assert found(done, "packages", "torch")["advice"] == f"pip install '{torch}'"
    onnx, pictures = found(done, "extras", "onnx"), found(done, "extras", "pictures")
    assert onnx["status"] == "note" and onnx["found"].startswith("missing")
    assert onnx["advice"] == "pip install 'sam3lite-convert[onnx]'"
    assert pictures["status"] == "warning" and "1.0" in pictures["found"]
    assert done.json["packages"]["torch"] is None


def test_a_python_and_a_system_that_are_not_tested_are_a_warning(monkeypatch):
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "99", "0"))
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    done = sam3lite("doctor", "--offline", "--json")
    assert (done.code, done.json["verdict"]) == (0, "warning")
    assert found(done, "tool", "python")["status"] == found(done, "tool", "platform")["status"] == "warning"


def test_every_extra_for_users_is_looked_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() - DEVELOPERS == doctor.EXTRAS.keys()


def test_packages_that_cannot_be_imported_are_named(monkeypatch, tmp_path):
    for name, code in {"transformers": "raise RuntimeError('torn apart')", "ftfy": "import os; os._exit(3)"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "jinja2.py").write_text("raise RuntimeError('of the current folder, which is not meant')")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(doctor, "_names", lambda: ["transformers", "ftfy", "jinja2"])
    done = sam3lite("doctor", "--offline", "--imports", "--json")
    assert (done.code, problems(done)) == (1, {"transformers", "ftfy"}), done.out
    assert "RuntimeError: torn apart" in found(done, "imports", "transformers")["found"]
    assert "ended with the code 3" in found(done, "imports", "ftfy")["found"]
    assert found(done, "imports", "jinja2")["found"].startswith("imported in ")


def test_torchvision_that_does_not_fit_torch_is_a_warning_and_without_it_a_note(monkeypatch, tmp_path):
    with_versions(monkeypatch, torchvision=None)
    done = sam3lite("doctor", "--offline", "--json")
    missing = found(done, "extras", "torchvision")
    assert missing["status"] == "note" and missing["found"].startswith("missing; for ")
    with_versions(monkeypatch, torchvision="0.1")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "_names", lambda: [])
    done = sam3lite("doctor", "--offline", "--imports", "--json")
    broken = found(done, "imports", "torchvision")
    assert (done.code, broken["status"]) == (0, "warning") and "torchvision::nms" in broken["found"]


def test_it_runs_where_no_package_can_be_imported():
    broken = ("numpy", "torch", "transformers", "huggingface_hub", "packaging", "safetensors", "jinja2")
    run = "from sam3lite_convert.cli.app import run\ncode = run(['doctor', '--json'])\n"
    done = python("-c", f"import sys\nfor n in {broken!r}: sys.modules[n] = None\n{run}sys.exit(code)")
    assert (done.returncode, done.stderr) == (1, "")
    assert "packages" in {c["name"] for c in json.loads(done.stdout)["checks"] if c["status"] == "problem"}


# ---- disk and memory --------------------------------------------------------------------------------


def test_no_temporary_folder_and_a_cache_that_is_no_folder(monkeypatch, tmp_path):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    (tmp_path / "cache").touch()
    done = sam3lite("doctor", "--offline", "--cache-dir", tmp_path / "cache", "--json")
    assert (done.code, problems(done)) == (1, {"temporary folder", "Hub cache"})
    monkeypatch.setattr(os, "access", lambda *arguments, **more: False)
    done = sam3lite("doctor", "--offline", "--cache-dir", tmp_path / "new" / "cache", "--json")
    assert problems(done) == {"temporary folder", "Hub cache", "current folder"}
    assert "--cache-dir" in found(done, "disk", "Hub cache")["advice"]


def test_a_current_folder_that_is_gone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = sam3lite("doctor", "--offline", "--json")
    assert done.code == 1 and "current folder" in problems(done)


def test_little_space_and_little_memory_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKPOINT", 1 << 60)
    monkeypatch.setattr(doctor, "_MEMORY", 1 << 60)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    done = sam3lite("doctor", "--offline", "--json")
    warned = {c["name"] for c in done.json["checks"] if c["status"] == "warning"}
    assert (done.code, done.json["verdict"]) == (0, "warning")
    assert warned == {"current folder", "Hub cache", "memory", "ulimit -v"}


def test_neither_the_home_folder_nor_the_user_is_told(monkeypatch, tmp_path):
    home, work = tmp_path / "home" / "alice-w", tmp_path / "scratch" / "alice-w" / "work"
    for folder in (home, work):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alice-w")
    monkeypatch.chdir(work)
    done = sam3lite("doctor", "--offline", "--cache-dir", home / "cache", "--json")
    assert "alice-w" not in done.out + done.err
    assert found(done, "disk", "Hub cache")["found"].startswith(f"~{os.sep}cache: ")
    shown = str(Path(str(work).replace("alice-w", "USER")))
    assert found(done, "disk", "current folder")["found"].startswith(f"{shown}: ")
