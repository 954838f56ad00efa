"""Runs a command against odd answers of the hub, and holds it to what is true of every one."""

from __future__ import annotations

import itertools
import json
import os
import time
import types
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import file_download
from huggingface_hub.utils import _http
from support.folders import Outcome, sam3lite
from support.hub_server import TOKEN, HubServer
from support.surroundings import HOME

from sam3lite_convert.hub import requests

SECONDS = 30.0  # for a command, on a busy machine, with pauses that are a fraction of what they are
INSIDE = ("models--", ".locks", "CACHEDIR.TAG", ".gitignore", "version.txt")


def shorten(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the client's pauses short, as well as ours; returns the list of them as they are asked for."""
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(min(seconds, 60) / 50)

    clock = types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic, time=time.time)
    for module in (_http, file_download, requests):
        monkeypatch.setattr(module, "time", clock)
    return asked


def surroundings(tmp_path: Path) -> set[str]:
    """Everything that lies around the cache and the working directory."""
    places = [Path(HOME), tmp_path]
    found = {str(p) for place in places for p in place.rglob("*") if "/hub/models--" not in f"{p}/"}
    return found | {str(p) for p in tmp_path.parent.iterdir()} | {p for p in ("/tmp/victim",) if os.path.exists(p)}


def tried(command: list[Any], hub: HubServer, tmp_path: Path, codes: tuple[int, ...] = (2,)) -> Outcome:
    """Run it, and hold it to what is true of every answer."""
    before = surroundings(tmp_path)
    begun = time.monotonic()
    done = sam3lite(*command)
    assert time.monotonic() - begun < SECONDS
    assert done.code in codes, done
    assert "Traceback" not in done.err and '"internal"' not in done.out
    for text in (done.out, done.err):
        assert TOKEN not in text
        assert all(c.isprintable() or c in "\r\n" for c in text), ascii(text)
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    if "--json" in command:
        document = json.loads(done.out)
        assert ("error" in document) == (done.code not in (0, 1)) and len(json.dumps(document)) < 200_000
    elif "--all" not in command:
        assert len(errors) == (0 if done.code == 0 else 1), done
    lines = done.err.splitlines()
    assert len(lines) < 40 and all(len(line) < 700 for line in lines), done.err
    assert not [r for r in hub.log if r.storage and "authorization" in r.headers]
    for new in surroundings(tmp_path) - before:
        inside = Path(new).is_relative_to(HOME) and Path(new).relative_to(HOME).parts[:1] == ("hub",)
        named = inside and (new == f"{HOME}/hub" or Path(new).relative_to(HOME).parts[1].startswith(INSIDE))
        ours = Path(new).is_relative_to(tmp_path) and Path(new).relative_to(tmp_path).parts[0] in ("out", "converted")
        assert named or ours, new
    return done


def marked(names: Any, *quick: str) -> list[Any]:
    """Those named ``quick`` for the suite, the others for the stress tests."""
    assert set(quick) <= set(names)
    return [pytest.param(name, id=name, marks=() if name in quick else pytest.mark.stress) for name in names]


def at(matches: dict[str, str], names: Any, *quick: tuple[str, str]) -> list[Any]:
    """Each name at each of the places where it may be met, as ``marked`` has them."""
    pairs = list(itertools.product(matches, names))
    assert set(quick) <= set(pairs)
    marks = {pair: () if pair in quick else pytest.mark.stress for pair in pairs}
    return [pytest.param(matches[m], n, id=f"{m}-{n}", marks=marks[m, n]) for m, n in pairs]
