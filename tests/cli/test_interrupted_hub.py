"""``convert --all --push-to-hub`` ended at any request: what is there is whole, and the next run finishes the rest."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.folders import ROOT as CHECKOUT
from support.folders import sam3lite, snapshot
from support.hub_files import OLD, publish
from support.hub_server import HubServer

pytestmark = pytest.mark.stress

# By hand, for as many as one likes, and at most every request: SAM3LITE_MOMENTS=50 pytest tests/test_interrupted*.py
MOMENTS = int(os.environ.get("SAM3LITE_MOMENTS", "2"))  # of each kind
ALL = ["convert", "--all", "--push-to-hub"]
ROOT = Path("converted")
REPOS = {f"porter/{Path(path).stem}": ROOT / f"{Path(path).stem}-packed" for path in OLD.values()}


def begin() -> subprocess.Popen[bytes]:
    surroundings = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen(
        [sys.executable, "-m", "sam3lite_convert", *ALL],
        env=surroundings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_until(hub: HubServer, request: int, delay: float, name: str) -> int:
    """A run that gets the signal so long after its request of that number; returns its exit code."""
    hub.clear_log()
    process = begin()

    def strike() -> None:
        time.sleep(delay)
        process.send_signal(getattr(signal, name))

    def count(_: object) -> None:
        if len(hub.log) == request:
            threading.Thread(target=strike, daemon=True).start()

    hub.on_request = count
    try:
        _, err = process.communicate(timeout=120)
    finally:
        hub.on_request = None
        process.kill()
    assert b"Traceback" not in err
    return process.returncode


def assert_whole(hub: HubServer, new: dict[str, object]) -> None:
    """Each folder is absent or complete, and each repository absent, empty or complete."""
    for repo, folder in REPOS.items():
        if folder.exists():
            assert {p.name for p in folder.iterdir()} == new[folder.name]
        if repo in hub._repos:
            there = {n for n in hub.files(repo) if n != ".gitattributes"}
            assert there in (set(), new[folder.name])


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_run_that_ends_at_any_request_is_finished_by_the_next(name, hub, tmp_path):
    publish(hub, tmp_path, OLD)
    started = time.monotonic()
    process = begin()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    takes, requests = time.monotonic() - started, len(hub.log)
    assert requests > 30
    written = {p.name: {f.name for f in p.iterdir()} for p in ROOT.iterdir()}
    content = {repo: hub.files(repo)["model.safetensors"] for repo in REPOS}
    draw, ended = random.Random(name), set()
    for request in draw.sample(range(1, requests + 1), min(MOMENTS, requests)):
        start_over(hub, tmp_path)
        ended.add(run_until(hub, request, draw.uniform(0, takes / requests), name))
        assert_whole(hub, written)
        done = sam3lite(*ALL, "--json")
        assert done.code == 0, done
        assert sorted(p.name for p in ROOT.iterdir()) == sorted(written)
        assert {repo: hub.files(repo)["model.safetensors"] for repo in REPOS} == content
        for repo, folder in REPOS.items():
            files = {n: data for n, data in hub.files(repo).items() if n != ".gitattributes"}
            assert files == {p.name: p.read_bytes() for p in folder.iterdir()}
        assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
        before = snapshot(ROOT)
        again = sam3lite(*ALL, "--json")
        assert {r["push"]["state"] for r in again.json["results"]} == {"current"} and snapshot(ROOT) == before
    # While Python is ending, when all is done, SIGTERM has its usual effect again.
    assert ended <= {0, 130, -signal.SIGTERM, -signal.SIGKILL} and ended != {0}


def start_over(hub: HubServer, tmp_path: Path) -> None:
    """Nothing is converted, cached or pushed."""
    import shutil

    shutil.rmtree(ROOT, ignore_errors=True)
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    hub.reset()
    publish(hub, tmp_path, OLD)
