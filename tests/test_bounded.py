"""Regular expressions of others: what is refused when it is read, and what is stopped while it matches."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from sam3lite_convert import bounded
from sam3lite_convert.errors import CannotRun

NAME = "a" * 60 + "!"
# Each takes ages on NAME, or on its own text.
SLOW = {
    "a repetition of a repetition": (r"(a+)+", NAME),
    "with stars": (r"(?:a*)*b", NAME),
    "an alternation of the same": (r"(?:a|a)*", NAME),
    "an alternation that overlaps": (r"(?:a|aa)+", NAME),
    "bounds in place of marks": (r"(?:a{1,60}){1,60}", NAME),
    "lazy": (r"(?:a+?)+?", NAME),
    "many optional ones": ("a?" * 60 + "b", "a" * 60),
    "many repetitions in a row": (r"a*" * 30 + "b", "a" * 200),
    "in a lookahead": (r"(?=(a+)+b)a*!", NAME),
    "in a negative lookahead": (r"(?!(a+)+b)(b|!)", NAME),
    "behind a lookbehind": (r"(?:(?<=a)a|a)*b", NAME),
    "a class": (r"(?:[ab]+)+", NAME),
    "unicode": (r"(?:\w+)+", "é" * 60 + "!"),
    "repeated to the largest count": (r"(?:(?:a|a){0,65535}){0,65535}b", NAME),
    "a backreference": (r"(a*)*\1b", NAME),
}


IN_A_PROCESS = """
import sys
from sam3lite_convert import bounded
bounded.LONGEST_MATCH = 0.3
bounded.BoundedPattern(sys.argv[1], "here").fullmatch(sys.argv[2])
"""


def test_a_match_that_takes_ages_is_stopped(monkeypatch):
    monkeypatch.setattr(bounded, "LONGEST_MATCH", 0.3)
    pattern, text = SLOW["a repetition of a repetition"]
    start = time.process_time()
    with pytest.raises(CannotRun, match=r"here: matching the pattern .* took more than") as found:
        bounded.BoundedPattern(pattern, "here").fullmatch(text)
    assert time.process_time() - start < 3
    assert found.value.code == "slow_pattern"
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    signal.raise_signal(signal.SIGVTALRM)  # one that comes late


@pytest.mark.stress
@pytest.mark.parametrize("kind", SLOW)
def test_no_slow_match_ends_the_process(kind):
    """In a process of its own: what ends it, if not the message, is told by its exit code and its traceback."""
    command = [sys.executable, "-X", "faulthandler", "-c", IN_A_PROCESS, *SLOW[kind]]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "here: matching the pattern" in run.stderr, (run.returncode, run.stderr)


def test_the_handler_of_the_program_comes_back(monkeypatch):
    called = []

    def own(*ignored):
        called.append(1)

    before = signal.signal(signal.SIGVTALRM, own)
    try:
        assert bounded.BoundedPattern(r"(?:[^.]+\.)*weight", "here").fullmatch("a.weight")
        assert signal.getsignal(signal.SIGVTALRM) is own and not called
    finally:
        signal.signal(signal.SIGVTALRM, before)


def test_a_signal_of_an_earlier_match_does_not_stop_the_next():
    pattern = bounded.BoundedPattern(r"(?:[^.]+\.)*weight", "here")
    with pattern._timer():
        signal.raise_signal(signal.SIGVTALRM)
    with pytest.raises(CannotRun), pattern._timer():
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.raise_signal(signal.SIGVTALRM)


@pytest.mark.stress
def test_the_time_of_all_matches_of_a_pattern_counts(monkeypatch):
    monkeypatch.setattr(bounded, "LONGEST_MATCH", 0.3)
    pattern = bounded.BoundedPattern(r"(?:a|a)*", "here")
    start = time.process_time()
    with pytest.raises(CannotRun):
        for _ in range(10_000):
            pattern.fullmatch("a" * 17 + "!")  # some milliseconds
    assert time.process_time() - start < 3


def test_what_a_match_finds_is_what_python_finds():
    pattern = bounded.BoundedPattern(r"(?P<head>(?:[^.]+\.)*)weight", "here")
    assert pattern.fullmatch("a.b.weight")["head"] == "a.b." and pattern.fullmatch("a.b.bias") is None
    assert dict(pattern.groupindex) == {"head": 1}


@pytest.mark.parametrize(
    "text, why",
    [
        ("(" * 5000 + "a" + ")" * 5000, "10,001 characters"),
        ("(?:" * 51 + "a" + ")" * 51, "nested more than 50 deep"),
        ("(" * 200, "nested more than 50 deep"),
        ("a" * 2001, "2,001 characters"),
        ("a{4294967296}", "too large"),
        ("(?<=a+)b", "fixed-width"),
        ("(?P<a>b)(?P<a>c)", "redefinition"),
        ("a)", "unbalanced"),
        ("[", "unterminated"),
        ("*", "nothing to repeat"),
        (r"\N{no such name}", "undefined character name"),
    ],
)
def test_what_is_no_pattern_is_told(text, why):
    with pytest.raises(ValueError, match=why):
        bounded.compile_pattern(text)


@pytest.mark.parametrize("text", [r"\(" * 300, "[(]" * 300, r"[\](]" * 60, "[]((((]" * 60, "(a)" * 90, "[[a]"])
def test_brackets_that_open_no_group_are_not_counted(text):
    bounded.compile_pattern(text)


def test_in_another_thread_a_pattern_is_matched_without_a_timer():
    found: list[object] = []
    pattern = bounded.BoundedPattern(r"(?:[^.]+\.)*weight", "here")
    worker = threading.Thread(target=lambda: found.append(pattern.fullmatch("a.weight")))
    worker.start()
    worker.join()
    assert found[0] is not None
