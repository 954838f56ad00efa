"""Command lines and side files that nobody would write: a documented exit code, no traceback, and one document."""

from __future__ import annotations

import json
import shutil

import pytest
import typer
from support.folders import convert, sam3lite, tiny_state, write

from sam3lite_convert.cli import app
from sam3lite_convert.errors import CannotRun

ODD = (
    "", " ", "-", "--", "é🦊\u202e", "\udc80\udcff", "9" * 400, "-1", "1e400", "nan", "inf", "x" * 5000, "/" * 5000,
    "../" * 1000, "[", "(?:", "%s%n", "\x1b[31m", "a\nb", "{}", "null", "0", "*", "http://[::", "hf://", "@", "a@b@c/d",
)  # fmt: skip
DEEP = json.loads("[" * 150 + "]" * 150)
VALUES = (None, [], {}, "", -1, 1 << 70, 10**250, True, DEEP, "\udc80", "\x1b[31m", [None], {"": None}, 1.5e300, "../x")
RAW = ("NaN", "1" + "0" * 400, "1e400", "[" * 5000 + "]" * 5000, '"\\ud800"', '"a\\u0000b"', "Infinity")
GROUP = typer.main.get_command(app.app)
COMMANDS = {
    name: command
    for name, command in {**GROUP.commands, "export onnx": GROUP.commands["export"].commands["onnx"]}.items()
    if name != "export"
}


@pytest.fixture(scope="module")
def s0(tmp_path_factory):
    return write(tmp_path_factory.mktemp("odd"), tiny_state(), "s0.pt")


@pytest.fixture(scope="module")
def folders(s0):
    return {layout: convert(s0, s0.parent / layout, "--layout", layout) for layout in ("packed", "transformers")}


def check(*words: object) -> None:
    command = 2 if words[0] == "export" else 1
    done = sam3lite(*words[:command], "--json", *words[command:])  # which holds the document to its schema
    assert done.code in (0, 1, 2, 3, 4), (words, done)
    assert "Traceback" not in done.err, (words, done)
    assert isinstance(json.loads(done.out), dict)


def lines(name: str, s0) -> list[list[str]]:
    """Command lines of a command: each option with each odd value, twice, and without a value; and odd words."""
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option" and "--help" not in p.opts]
    words = name.split()
    file = [str(s0)] if name == "inspect" else ["none.pt"]
    if name == "explain":
        file = [str(s0), "x"]
    out = [[*words, *file, p.opts[0], value] for p in options for value in ODD if not p.is_flag]
    out += [[*words, *file, f"{p.opts[0]}={value}"] for p in options for value in ODD[:3]]
    out += [[*words, *file, p.opts[0]] for p in options] + [[*words, *file, *[p.opts[0], "1"] * 2] for p in options]
    out += [[*words, value] for value in ODD] + [[*words, value, value, value] for value in ODD]
    return out + [[*words, *file, f"--{value}"] for value in ODD]


def not_run(*arguments: object, **named: object) -> None:
    """In the place of the demo, which takes seconds and reads nothing of the command line but its options."""
    raise CannotRun("not run here", "usage")


@pytest.mark.stress
@pytest.mark.parametrize("name", COMMANDS)
def test_odd_command_lines(name, s0, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "demo":
        monkeypatch.setattr("sam3lite_convert.commands.demo.run_demo", not_run)
    tried = [line for line in lines(name, s0) if not (name == "demo" and "--output" in line)]
    assert len(tried) > 80
    for line in tried:
        check(*line)


def test_some_odd_command_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in (
        ["verify", "x" * 5000, "y"],
        ["convert", "\udc80", "--dry-run"],
        ["judge", "x\0y", "z"],
        ["inspect", ""],
        ["demo", ""],
    ):
        check(*line)


def leaves(value: object, path: tuple[object, ...] = (), most: int = 3):
    """The places in a document: of a list or an object of many alike, the first few."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for n, (key, child) in enumerate(inner):
        if (len(path) < 2 and n < 40) or n < most:
            yield from leaves(child, (*path, key), most)


def spoilt(text: str, path: tuple[object, ...], value: object) -> str:
    document = json.loads(text)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document)


def commands_on(folder, s0):
    yield ["verify", folder, s0]
    yield ["inspect", folder]
    yield ["convert", s0, "--output", folder]
    yield ["restore", folder, "--output", folder.parent / "restored.pt"]


FILES = [
    ("packed", "config.json"), ("packed", "conversion.json"), ("packed", "fingerprint.json"),
    ("transformers", "config.json"), ("transformers", "conversion.json"), ("transformers", "processor_config.json"),
]  # fmt: skip


def tried(folder, name: str, s0, step: int, start: int = 0) -> int:
    """Try every ``step``-th odd text of a side file with all commands; returns how many."""
    text = (folder / name).read_text()
    texts = [spoilt(text, path, value) for path in leaves(json.loads(text)) for value in VALUES]
    texts += [spoilt(text, path, "@").replace('"@"', raw, 1) for path in leaves(json.loads(text)) for raw in RAW]
    texts += [*RAW, "", "{", "[]", "null", "\ufeff{}", '{"a":1,"a":2}', text + text]
    chosen = texts[start::step]
    for odd in chosen:
        (folder / name).write_text(odd, encoding="utf-8", errors="surrogatepass")
        for line in commands_on(folder, s0):
            check(*line)
        (folder.parent / "restored.pt").unlink(missing_ok=True)
    return len(chosen)


@pytest.mark.stress
@pytest.mark.parametrize(("layout", "name"), FILES)
def test_odd_side_files(layout, name, folders, s0, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(folders[layout], folder)
    assert tried(folder, name, s0, 101) > 5


@pytest.mark.stress
def test_an_odd_side_file(folders, s0, tmp_path):
    shutil.copytree(folders["packed"], tmp_path / "folder")
    assert tried(tmp_path / "folder", "conversion.json", s0, 2000, 7)
