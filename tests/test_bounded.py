"""Regular expressions of others: what is refused when it is read, and what is stopped while it matches."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading

import pytest

from sam3lite_convert import bounded

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


# In a process of its own: a worker in which many libraries were loaded was ended, without a word, by the first timer
# that ran out in it, whatever the handler; and what ends it, if not the message, shows in its exit code.
IN_A_PROCESS = """
import signal, sys, time
from sam3lite_convert import bounded
from sam3lite_convert.errors import CannotRun
bounded.LONGEST_MATCH = 0.3
start = time.process_time()
pattern = bounded.BoundedPattern(sys.argv[1], "here")
try:
    for _ in range(int(sys.argv[3])):
        pattern.fullmatch(sys.argv[2])
except CannotRun as fault:
    assert time.process_time() - start < 3
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    signal.raise_signal(signal.SIGVTALRM)  # one that comes late
    print(fault.code, fault.message)
"""


def stopped(pattern: str, text: str, times: int = 1) -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", IN_A_PROCESS, pattern, text, str(times)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, (run.returncode, run.stderr)
    assert re.match("slow_pattern here: matching the pattern .* took more than", run.stdout), run


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.stress if n else ()) for n, k in enumerate(SLOW)])
def test_a_match_that_takes_ages_is_stopped(kind):
    stopped(*SLOW[kind])


@pytest.mark.stress
def test_the_time_of_all_matches_of_a_pattern_counts():
    stopped(r"(?:a|a)*", "a" * 17 + "!", 10_000)  # some milliseconds each


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


EARLIER = r"""
import signal
from sam3lite_convert import bounded
from sam3lite_convert.errors import CannotRun
pattern = bounded.BoundedPattern(r"(?:[^.]+\.)*weight", "here")
with pattern._timer():
    signal.raise_signal(signal.SIGVTALRM)
try:
    with pattern._timer():
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.raise_signal(signal.SIGVTALRM)
except CannotRun:
    print("stopped")
"""


def test_a_signal_of_an_earlier_match_does_not_stop_the_next():
    run = subprocess.run([sys.executable, "-c", EARLIER], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "stopped\n"), run.stderr


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
