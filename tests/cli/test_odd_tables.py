"""--mapping with tables that no author would write: each ends with a documented exit code and one document."""

from __future__ import annotations

import json
import time

import pytest
from support.folders import Outcome, python, sam3lite, tiny_state, write

from sam3lite_convert.plan.tables import builtin_directory

GOOD = {
    "op": "keep", "source": r"spare\.(?P<p>weight|bias)", "target": "spare.{p}", "example": "spare.weight",
}  # fmt: skip
HUGE = "9" * 5000
SURROGATE = "\udc80"
NEST = "(?P<p>weight|bias)"


def rule(name: str = "my rule", **changed: str | None) -> str:
    entries = GOOD | changed
    return f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items() if v is not None)


def source(pattern: str, example: str = "spare.weight", target: str = "spare.{p}") -> tuple[str, str]:
    return "dropped.ini", rule(source=pattern, example=example, target=target)


def spelling(pattern: str, example: str, target: str = "{p}", **more: str) -> tuple[str, str]:
    return "spellings.ini", rule(op=None, source=pattern, example=example, target=target, **more)


def edited(table: str, old: str, new: str) -> tuple[str, str]:
    text = (builtin_directory() / table).read_text(encoding="utf-8")
    assert old in text
    return table, text.replace(old, new, 1)


LONG = "detector." + "a" * 60 + "!"
# Name -> table and its text. Those whose pattern takes ages are stopped; the others are refused, or work.
TABLES = {
    "5,000 groups inside each other": source("(?:" * 5000 + "a" + ")" * 5000),
    "5,000 named ones": source("".join(f"(?P<g{n}>" for n in range(5000)) + "a" + ")" * 5000),
    "51 groups": source("(?:" * 51 + rf"spare\.{NEST}" + ")" * 51),
    "50 groups": source("(?:" * 49 + rf"spare\.{NEST}" + ")" * 49),
    "30 optional groups": source("(?:" * 30 + rf"spare\.{NEST}" + ")?" * 30),
    "30 repeated groups": source("(?:" * 30 + rf"spare\.{NEST}" + "){1,2}" * 30),
    "50 alternations inside each other": source("(?:a|" * 49 + rf"spare\.{NEST}" + ")" * 49),
    "alternations in named groups": source(
        "".join(f"(?P<g{n}>a|" for n in range(40)) + rf"spare\.{NEST}" + ")" * 40, target="{g0}"
    ),
    "only opening brackets": source("(" * 1900),
    "only closing brackets": source(")" * 1900),
    "a pattern of a megabyte": source("a" * 1_000_000),
    "a million alternatives": source("|".join(["a"] * 500_000)),
    "900 alternatives": source("|".join(["a"] * 900) + rf"|spare\.{NEST}"),
    "slow on its example": source(r"(?P<p>(?:a|a)*)", example="a" * 60 + "!", target="{p}"),
    "slow, nested": source(r"(?P<p>(?:a+)+)", example="a" * 60 + "!", target="{p}"),
    "slow on keys": spelling(r"(?P<p>x|(?:(?:\w|\w)*)*!)", example="x"),
    "slow and lazy": spelling(r"(?P<p>x|(?:(?:[a-z._0-9]+?)+?)+?!)", example="x"),
    "slow with optional ones": spelling(r"(?P<p>x|" + "[a-z.0-9_]?" * 60 + ".{60}!)", example="x"),
    "slow in a lookahead": spelling(r"(?P<p>x|(?=(?:\w|.)*!).*)", example="x"),
    "a repetition of 2^32": source(r"spare{4294967296}\.(?P<p>weight)"),
    "a repetition of 10^5000": source(f"spare{{{HUGE}}}"),
    "a repetition of 10^1000": source(f"spare{{{HUGE[:1000]}}}"),
    "a repetition of 65,535 of itself": source(r"(?:(?:spare\.){0,65535}){0,65535}(?P<p>weight)"),
    "repetitions whose width has 10,000 digits": source("(?:" * 40 + "a" + "{4294967294}" * 1 + "){4294967294}" * 40),
    "bounds in the wrong order": source(r"spare{5,2}\.(?P<p>weight)"),
    "a lookbehind": source(r"(?<=a)?spare\.(?P<p>weight)"),
    "a lookbehind without a width": source(r"(?<=a*)spare\.(?P<p>weight)"),
    "a lookbehind in a spelling": spelling(r"(?<!a)(?P<p>x)", example="x"),
    "a lookahead": source(r"spare(?=\.)\.(?P<p>weight)"),
    "a backreference": source(r"(?P<a>s)(?P=a)pare"),
    "a backreference to 99": source(r"(s)\99"),
    "a conditional": source(r"(?P<a>s)?(?(a)pare|x)"),
    "an atomic group": source(r"(?>spare)\.(?P<p>weight)"),
    "a possessive quantifier": source(r"spare\.(?P<p>weight)++"),
    "flags": source(r"(?i)spare\.(?P<p>weight)"),
    "flags in the middle": source(r"spare(?i)\.(?P<p>weight)"),
    "local flags": source(r"(?-i:spare)\.(?P<p>weight)"),
    "a flag of bytes": source(r"(?L)spare\.(?P<p>weight)"),
    "a comment": source(r"spare(?#x)\.(?P<p>weight)"),
    "a group of 1,000 letters": source(rf"spare\.(?P<{'g' * 1000}>weight)", target="spare.{" + "g" * 1000 + "}"),
    "a group with a number for a name": source(r"spare\.(?P<1>weight)"),
    "a group in other letters": source(r"spare\.(?P<é>weight)", target="spare.{é}"),
    "other letters": source(rf"été\.{NEST}", example="été.weight", target="été.{p}"),
    "emoji": source(rf"🦊\.{NEST}", example="🦊.weight", target="🦊.{p}"),
    "right-to-left": source(rf"\u202e\.{NEST}", example="\u202e.weight"),
    "combining marks": source(rf"e\u0301\.{NEST}", example="e\u0301.weight"),
    "a name of a character": source(r"\N{LATIN SMALL LETTER A}\.(?P<p>weight)", example="a.weight"),
    "a nested set": source(r"[[a-z]\.(?P<p>weight)", example="a.weight"),
    "a set without an end": source(r"[a-z\.(?P<p>weight)"),
    "a range upside down": source(r"[z-a]\.(?P<p>weight)"),
    "a NUL": source("spare\0\\.(?P<p>weight)"),
    "an empty pattern": source("", example=""),
    "a pattern that takes all": source("(?P<p>.*)", target="{p}"),
    "a pattern that takes nothing": source("(?P<p>)", example="", target="{p}"),
    "a target of a megabyte": source(rf"spare\.{NEST}", target="a" * 1_000_000),
    "100,000 targets": source(rf"spare\.{NEST}", target="a " * 100_000),
    "a target of 300,000 groups": source(rf"spare\.{NEST}", target="{p}" * 300_000),
    "a target of braces": source(rf"spare\.{NEST}", target="{" * 5000),
    "a target that leads out": source(rf"spare\.{NEST}", target="../../../etc/{p}"),
    "an example of a megabyte": source(r"(?P<p>a*)", example="a" * 1_000_000, target="{p}"),
    "a spelling that grows": spelling("(?P<p>.*)", example="x", target="{p}{p}"),
    "a spelling that grows, repeated": spelling("(?P<p>.*)", example="x", target="{p}{p}", repeat="yes"),
    "a spelling that shrinks to nothing": spelling("(?P<p>.).*", example="xy", target="{p}", repeat="yes"),
    "40 spellings that double": (
        "spellings.ini",
        "".join(
            rule(f"r{n}", op=None, source="(?P<p>.*)", example="x", target="{p}{p}") for n in range(40)
        ),
    ),
    "a spelling with an invalid boolean": spelling("(?P<p>x)y", example="xy", repeat="perhaps"),
    "999 rules": ("dropped.ini", "".join(rule(f"r{n}", source=f"s{n}{NEST}", example=f"s{n}bias") for n in range(999))),
    "a rule without a name": ("dropped.ini", rule("")),
    "a rule with a name of brackets": ("dropped.ini", rule("]]] [")),
    "control characters in a name": ("dropped.ini", rule("\x1b[31m\x07", op="none")),
    "markup in a name": ("dropped.ini", rule("[red]<b>", op="none")),
    "no section": ("dropped.ini", "a = b\n"),
    "interpolation": ("dropped.ini", rule(reason="%(source)s ${x}")),
    "a value without end": ("dropped.ini", "[a]\nsource = \n" + " x\n" * 100_000),
    "colons": ("dropped.ini", "[a]\nop: keep\n"),
    "an entry of 100,000 letters": ("dropped.ini", "[a]\n" + "k" * 100_000 + " = 1\n"),
    "one section 10,000 times": ("dropped.ini", "[a]\n" * 10_000),
    "a mark of the byte order": ("dropped.ini", "\ufeff" + rule()),
    "carriage returns": ("dropped.ini", rule().replace("\n", "\r")),
    "a table that is empty": ("dropped.ini", ""),
    "spellings that are empty": ("spellings.ini", ""),
    "targets that are empty": ("targets-detector.ini", ""),
    "a layout that is empty": ("layout-packed.ini", ""),
    "a layout of a million tables": ("layout-packed.ini", "[layout]\nrules = " + "x.ini " * 100_000),
    "a layout of itself": ("layout-mine.ini", "[layout]\nrules = layout-mine.ini\ntargets = layout-mine.ini\n"),
    "a layout of spellings": ("layout-mine.ini", "[layout]\nrules = spellings.ini\ntargets = spellings.ini\n"),
    "a layout of one rule table 10,000 times": (
        "layout-mine.ini", "[layout]\nrules = " + "dropped.ini " * 10_000 + "\ntargets = targets-detector.ini\n",
    ),
    "a layout with a name of control characters": edited("layout-packed.ini", "[layout]", "[layout]\nlayout = \x1b"),
    "levels of 10^5000": edited("layout-packed.ini", "[layout]", f"[layout]\nneck_levels = {HUGE}"),
    "levels of NaN": edited("layout-packed.ini", "[layout]", "[layout]\nneck_levels = nan"),
    "causal perhaps": edited("layout-packed.ini", "[layout]", "[layout]\nspellings = nothing.ini"),
    "a target table with a shape of 10^5000": (
        "targets-detector.ini", f"[text_encoder.x]\nweight = {HUGE}\n",
    ),
    "a target table with a power": ("targets-detector.ini", "[x]\nweight = 9**9**9**9\n"),
    "a target table with a call": ("targets-detector.ini", "[x]\nweight = __import__('os').system('false')\n"),
    "a target table with NaN": ("targets-detector.ini", "[x]\nweight = nan, -1, 1e400\n"),
    "a target table of deep brackets": ("targets-detector.ini", "[x]\nweight = " + "(" * 9999 + "1\n"),
    "a target table with 100,000 axes": ("targets-detector.ini", "[x]\nweight = " + "1," * 100_000 + "\n"),
    "a target table with an unknown list": ("targets-detector.ini", "[x.{i}]\neach = \x1b\nweight = 1\n"),
}  # fmt: skip
SUITE = ("5,000 groups inside each other", "slow on its example")


@pytest.fixture(scope="module")
def s0(tmp_path_factory):
    return write(tmp_path_factory.mktemp("odd"), tiny_state(), "s0.pt")


def in_a_process(*arguments: object) -> Outcome:
    """What the command line says in a process of its own, where a match may run out of time (tests/test_bounded.py)."""
    code = (
        "import sys; from sam3lite_convert import bounded; bounded.LONGEST_MATCH = 0.5; "
        "from sam3lite_convert.cli.app import run; sys.exit(run())"
    )
    done = python("-c", code, *arguments)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in SUITE else pytest.mark.stress) for k in TABLES])
def test_an_odd_table_ends_with_a_message_or_works(kind, s0, tmp_path):
    run = in_a_process if kind.startswith("slow") else sam3lite
    table, text = TABLES[kind]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / table).write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    start = time.process_time()
    done = run("convert", s0, "--output", tmp_path / "out", "--dry-run", "--mapping", tmp_path / "own", "--json")
    assert time.process_time() - start < 30
    assert done.code in (0, 2, 3, 4), done  # 4: with these spellings two tensors have one name
    assert "Traceback" not in done.err
    assert (done.code != 0) is ("error" in json.loads(done.out))
    if kind.startswith("slow"):
        assert "took more than" in done.json["error"]["message"] or "example" in done.json["error"]["message"]
    if done.code:
        message = done.json["error"]["message"]
        assert message and len(message) < 6000, len(message)
        said = run("convert", s0, "--output", tmp_path / "out", "--dry-run", "--mapping", tmp_path / "own")
        assert said.code == done.code and said.out == "" and "\x1b" not in said.err and "error: " in said.err
