"""Answers that no Hub gives, met by the commands that ``test_odd_answers`` does not run."""

from __future__ import annotations

import itertools

import pytest
from support import odd_hub
from support.hub_files import OLD, publish
from support.odd_runs import shorten, tried

S0 = OLD["s0"]
COMMANDS = {
    "tables": "tables s0 --keys",
    "explain": "explain s0 detector.backbone.x",
    "diff": "diff s0 s0-32",
    "record": "record s0 --output out/r.npz",
    "fingerprint": "record s0 --fingerprint --output out/f.json",
    "restore": "restore Simon7108528/EfficientSAM3 --output out/b.pt",
    "restore with it": "restore Simon7108528/EfficientSAM3 s0 --output out/b.pt",
    "judge": "judge port.npz s0",
    "verify": "verify Simon7108528/EfficientSAM3 s0 --whole",
    "doctor": "doctor",
    "parity": "parity s0 --converted Simon7108528/EfficientSAM3",
}
ODD = {
    **{f"row: {name}": odd_hub.row(S0, change) for name, change in odd_hub.ROWS.items()},
    **{f"info: {name}": odd_hub.edited(odd_hub.INFO, change) for name, change in odd_hub.BODIES.items()},
    **{f"tree: {name}": odd_hub.edited(odd_hub.TREE, change) for name, change in odd_hub.BODIES.items()},
    **{f"file: {name}": odd_hub.edited(odd_hub.RESOLVE, change) for name, change in odd_hub.BODIES.items()},
    **{f"cdn: {name}": odd_hub.edited(odd_hub.CDN, odd_hub.status(name)) for name in odd_hub.STATUSES},
    **{f"range: {name}": odd_hub.edited(odd_hub.CDN, change) for name, change in odd_hub.RANGES.items()},
    **{f"speech: {name}": odd_hub.raw(odd_hub.TREE, chunks) for name, chunks in odd_hub.CONNECTIONS.items()},
    **{
        f"header: {name}": odd_hub.edited(odd_hub.RESOLVE, odd_hub.headed(**headers))
        for name, headers in odd_hub.FILE_HEADERS.items()
    },
}
# Each oddity meets one of the commands, each command some oddities of each kind.
TRIALS = list(zip(ODD, itertools.cycle(COMMANDS), strict=False))


@pytest.mark.stress
@pytest.mark.parametrize(("name", "command"), TRIALS, ids=lambda each: each)
def test_other_commands_hold_too(name, command, hub, tmp_path, monkeypatch):
    shorten(monkeypatch)
    publish(hub, tmp_path, {"s0": S0})
    ODD[name](hub)
    tried([*COMMANDS[command].split(), "--json"], hub, tmp_path, (0, 1, 2, 3, 4))
