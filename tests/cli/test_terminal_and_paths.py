"""Terminals that show little, readers that go away, and paths that are not plain ASCII."""

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.folders import PROJECTION, assert_proven, convert, environment, sam3lite, tiny_state, write

from sam3lite_convert.working_places import leftovers

pytestmark = pytest.mark.stress

FOLDER, NAME = "Ünï côdé 模型", "my tiny 模.pt"
MAIN = [sys.executable, "-m", "sam3lite_convert"]
# The same without transformers, whose import takes longer than the rest of the demo.
LEAN = [
    sys.executable, "-c",
    "import sys; sys.modules['transformers'] = None; from sam3lite_convert.cli.app import main; main()",
]  # fmt: skip
COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "inspect": ["inspect", "CHECKPOINT"],
    "explain": ["explain", "CHECKPOINT", PROJECTION],
    "tables": ["tables", "CHECKPOINT"],
    "plan": ["convert", "--checkpoint", "CHECKPOINT", "--output", "new", "--dry-run"],
    "convert": ["convert", "--checkpoint", "CHECKPOINT", "--output", "new"],
    "verify": ["verify", "FOLDER", "--checkpoint", "CHECKPOINT"],
    "parity": ["parity", "--checkpoint", "CHECKPOINT", "--converted", "FOLDER", "--debug-intermediates"],
    "demo": ["demo"],
}
ON_A_CHECKPOINT = [name for name, words in COMMANDS.items() if "CHECKPOINT" in words]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A checkpoint and its conversion in a folder whose name has spaces and other scripts."""
    folder = tmp_path_factory.mktemp("places") / FOLDER
    folder.mkdir()
    checkpoint = write(folder, tiny_state(), NAME)
    return {"CHECKPOINT": str(checkpoint), "FOLDER": str(convert(checkpoint, folder / "aus gabe"))}


def words_of(command, places):
    return [places.get(word, word) for word in COMMANDS[command]]


def run(words, cwd, *, before=(), main=MAIN, stdout=subprocess.PIPE, **variables):
    """Run the command line in a process of its own; what it says as bytes."""
    env = environment() | variables
    command = [*before, *main, *words]
    return subprocess.run(command, cwd=cwd, env=env, stdout=stdout, stderr=subprocess.PIPE, timeout=120)


# ---- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ON_A_CHECKPOINT)
def test_every_command_takes_a_path_with_spaces_and_other_scripts(command, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite(*words_of(command, places))
    assert (done.code, done.err) == (0, ""), done
    assert (Path(places["FOLDER"]).name if command == "verify" else NAME) in done.out or command == "explain"


def test_the_commands_that_are_shown_can_be_typed(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "a folder 模"
    shown = [
        sam3lite("inspect", places["CHECKPOINT"]).out,
        sam3lite("convert", "--checkpoint", places["CHECKPOINT"], "--output", out).out,
        sam3lite(
            "parity", "--checkpoint", places["CHECKPOINT"], "--converted", out, "--save-activations", "my taps"
        ).out,
    ]
    lines = [line for text in shown for line in text.splitlines()]
    typed = [line[line.index("sam3lite ") :] for line in lines if "sam3lite " in line]
    assert [shlex.split(line)[1] for line in typed] == ["convert", "verify", "verify", "parity"]
    for line in typed:
        words = shlex.split(line)[1:]
        assert sam3lite(*words, *(["--dry-run"] if words[0] == "convert" else [])).code == 0, line


def test_a_linked_checkpoint_is_the_one_that_it_links_to(places, tmp_path):
    link = tmp_path / "link.pt"
    link.symlink_to(places["CHECKPOINT"])
    folder = convert(link, tmp_path / "out")
    assert_proven(folder, link)
    files = [(d / "model.safetensors").read_bytes() for d in (folder, Path(places["FOLDER"]))]
    assert files[0] == files[1]
    assert link.is_symlink()


def test_a_linked_parent_of_the_output_stays_a_link(places, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    convert(places["CHECKPOINT"], tmp_path / "link" / "out")
    assert (tmp_path / "link").is_symlink()
    assert_proven(tmp_path / "real" / "out", places["CHECKPOINT"])
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["out"]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an earlier conversion"])
def test_an_output_that_is_a_link_stays_one(there, places, tmp_path):
    link, real = tmp_path / "link", tmp_path / "elsewhere" / "real"
    real.parent.mkdir()
    link.symlink_to(real)
    if there == "an empty folder":
        real.mkdir()
    elif there == "an earlier conversion":
        convert(places["CHECKPOINT"], real, "--component", "text")
    convert(places["CHECKPOINT"], link, *(["--overwrite"] if there == "an earlier conversion" else []))
    assert link.is_symlink()
    assert_proven(real, places["CHECKPOINT"])
    assert [p.name for p in real.parent.iterdir()] == ["real"]


def test_links_in_a_circle_are_a_fault_and_no_traceback(places, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for words in (
        ["convert", "--checkpoint", places["CHECKPOINT"], "--output", tmp_path / "a"],
        ["convert", "--checkpoint", tmp_path / "a", "--output", tmp_path / "out"],
        ["verify", tmp_path / "a", "--checkpoint", places["CHECKPOINT"]],
        ["inspect", tmp_path / "a"],
        [*words_of("parity", places), "--report", tmp_path / "a"],
    ):
        done = sam3lite(*words)
        assert (done.code, done.err[:7]) == (2, "error: "), done
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_name_with_stars_and_brackets_is_no_pattern(places, tmp_path):
    (tmp_path / ".mine.partial-1").mkdir()
    (tmp_path / ".[x]*.partial-1").mkdir()
    assert [p.name for p in leftovers(tmp_path / "*")] == []
    assert [p.name for p in leftovers(tmp_path / "[x]*")] == [".[x]*.partial-1"]
    convert(places["CHECKPOINT"], tmp_path / "[x]*")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.partial-1", "[x]*"]


# ---- encodings ----------------------------------------------------------------------------------

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1, narrow": {"PYTHONIOENCODING": "latin-1", "COLUMNS": "20"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_what_an_encoding_lacks_is_shown_as_an_escape(locale, places, tmp_path):
    commands = [words_of(command, places) for command in ON_A_CHECKPOINT]
    commands += [["inspect", str(tmp_path / "fehlt 模.pt")], ["explain", places["CHECKPOINT"], "模"]]
    code = (
        "import sys; from sam3lite_convert.cli.app import run\n"
        "print([run(words.split('|')) for words in sys.argv[1:]], file=sys.stderr)\n"
    )
    done = run(["|".join(words) for words in commands], tmp_path, main=[sys.executable, "-c", code], **LOCALES[locale])
    assert done.stderr.splitlines()[-1:] == [str([0] * len(ON_A_CHECKPOINT) + [2, 2]).encode()], done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"\\u" in done.stdout


def test_json_is_the_same_in_every_encoding(places, tmp_path):
    words = ["inspect", places["CHECKPOINT"], "--json"]
    said = [run(words, tmp_path, PYTHONIOENCODING=encoding).stdout for encoding in ("ascii", "utf-8")]
    assert said[0] == said[1] and json.loads(said[0])["checkpoint"] == places["CHECKPOINT"]


# ---- terminals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 40])
@pytest.mark.parametrize("command", ["inspect", "parity"])
def test_a_very_narrow_terminal_cuts_no_number(columns, command, places, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = sam3lite(*words_of(command, places)).out
    assert "…" not in out
    if command == "inspect":
        row = next(line for line in out.splitlines() if line.startswith("total "))
        assert row.split()[1] == str(len(tiny_state()))
        assert row.split()[-1] == "M"
    else:
        assert all(line.split()[1:2] for line in out.splitlines() if line.startswith(("layers.", "pooled ")))


def on_a_terminal(words, cwd, **variables):
    """What a command sends to a terminal."""
    ours, theirs = pty.openpty()
    env = {k: v for k, v in environment().items() if k not in ("NO_COLOR", "TERM", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [*MAIN, *words], cwd=cwd, env=env | variables, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:
        pass  # how the end of a terminal reads
    os.close(ours)
    assert process.wait(60) == 0, said.decode()
    return said


@pytest.mark.parametrize(
    ("variables", "colours", "escapes"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "COLUMNS": "40"}, False, False),
    ],
)
def test_a_terminal_gets_what_it_can_show(variables, colours, escapes, places, tmp_path):
    said = on_a_terminal(["convert", "--checkpoint", places["CHECKPOINT"], "--output", "new"], tmp_path, **variables)
    assert b"Wrote new" in said
    assert (b"\x1b[1;32m" in said) == colours
    assert (b"\x1b" in said) == escapes


# ---- readers that go away -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "as_json"),
    [*((command, False) for command in COMMANDS), ("inspect", True), ("convert", True)],
)
def test_no_command_minds_a_reader_that_goes_away(command, as_json, places, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = [*words_of(command, places), *(["--json"] if as_json else [])]
    done = run(words, tmp_path, main=LEAN if command == "demo" else MAIN, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert command != "convert" or (tmp_path / "new" / "conversion.json").exists()


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_closed_stdout_is_no_fault(as_json, places, tmp_path):
    words = [*words_of("convert", places), *(["--json"] if as_json else [])]
    done = run(words, tmp_path, before=["sh", "-c", 'exec "$@" >&-', "sh"])
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert_proven(tmp_path / "new", Path(places["CHECKPOINT"]))


def test_a_closed_stderr_keeps_the_exit_code(tmp_path):
    assert run(["inspect", "nowhere.pt"], tmp_path, before=["sh", "-c", 'exec "$@" 2>&-', "sh"]).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full, which is always full, is of Linux alone")
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_full_disk_behind_stdout_is_said_on_stderr(as_json, places, tmp_path):
    with open("/dev/full", "wb") as full:
        done = run([*words_of("inspect", places), *(["--json"] if as_json else [])], tmp_path, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and b"No space" in done.stderr and b"Traceback" not in done.stderr
