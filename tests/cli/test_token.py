"""The token of the Hub stands in no output and no file, whatever the command and however the Hub fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from huggingface_hub import constants
from support.folders import sam3lite
from support.hub_server import TOKEN, HubServer

from sam3lite_convert.cli.app import app

# What a command needs besides the name of a checkpoint on the Hub; one that is not here gets that alone.
NEEDS = {
    "convert": ["s0", "--push-to-hub"],
    "explain": ["s0", "logit_scale"],
    "verify": ["porter/own", "s0"],
    "diff": ["s0", "s1"],
    "restore": ["porter/own", "s0", "--output", "restored.pt"],
    "judge": ["mine.npz", "s0"],
    "record": ["s0", "--output", "taps.npz"],
    "export onnx": ["porter/own"],
    "demo": [],
    "doctor": [],
}


def commands() -> list[str]:
    """All of the command line, by the names that are typed."""

    def under(group: typer.Typer, before: str) -> list[str]:
        own = [before + (c.name or c.callback.__name__) for c in group.registered_commands if c.callback]
        inner = [under(g.typer_instance, f"{before}{g.name} ") for g in group.registered_groups if g.typer_instance]
        return sum(inner, own)

    return under(app, "")


QUICK = sorted(set(commands()) - {"demo"})  # which runs for seconds, and asks nothing of the Hub
SAID = f"Authorization: Bearer {TOKEN} is refused"
FAULTS = {
    "401": {"what": "status", "status": 401, "message": SAID},
    "403": {"what": "status", "status": 403, "message": SAID},
    "404": {"what": "status", "status": 404, "message": SAID, "error_code": "RepoNotFound"},
    "400": {"what": "status", "status": 400, "message": SAID},
    "500": {"what": "status", "status": 500, "message": SAID},
    "no HTTP": {"what": "raw", "raw": lambda: iter([SAID.encode()])},
    "elsewhere": {
        "what": "raw",
        "raw": lambda: iter([f"HTTP/1.1 302 Found\r\nLocation: http://x.invalid/?token={TOKEN}\r\n\r\n".encode()]),
    },
}


def files_with_the_token(*places: Path) -> list[Path]:
    return [p for place in places for p in place.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


SLOW = ("500", "no HTTP")  # tried again and again


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.stress) if f in SLOW else f for f in FAULTS])
def test_no_command_shows_the_token(fault, hub: HubServer, tmp_path):
    """Also where the Hub itself sends the token back in its error, as a proxy that shows requests does.

    What commands that succeed write is held by ``test_the_token_is_nowhere``.
    """
    hub.fail(match="", times=None, **FAULTS[fault])
    (tmp_path / "mine.npz").write_bytes(b"")
    for command in QUICK:
        arguments = [*command.split(), *NEEDS.get(command, ["s0"])]
        for more in ([], ["--json"]):
            done = sam3lite(*arguments, *more)
            assert TOKEN not in done.out + done.err, (arguments, more)
            assert "Traceback" not in done.err, done.err
    assert hub.log and any(TOKEN in r.headers.get("authorization", "") for r in hub.log)
    assert files_with_the_token(tmp_path, Path(constants.HF_HOME)) == []
