"""Exceptions that no check foresaw: one message with what to do, and one JSON document, from the first import on."""

from __future__ import annotations

import errno
import json
import os

import numpy
import pytest
import torch
from huggingface_hub import constants
from support.folders import python, sam3lite

from sam3lite_convert.cli import app
from sam3lite_convert.errors import Untrusted

with pytest.raises(MemoryError) as _array:
    numpy.empty(1 << 46, dtype=numpy.float64)
with pytest.raises(RuntimeError) as _tensor:
    torch.empty(1 << 46)
SURROGATE = UnicodeEncodeError("utf-8", "a\udc80b", 1, 2, "surrogates not allowed")
FAULTS = {
    "MemoryError": (MemoryError(), 2, "no_memory"),
    "numpy": (_array.value, 2, "no_memory"),
    "torch": (_tensor.value, 2, "no_memory"),
    "no thread": (RuntimeError("can't start new thread"), 2, "no_memory"),
    "of the system": (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "no_memory"),
    "a library that does not fit": (
        ImportError("libx.so: failed to map segment from shared object"), 2, "no_memory",
    ),
    "C++": (RuntimeError("std::bad_alloc"), 2, "no_memory"),
    "import": (ImportError("cannot import name 'x' from 'y'"), 2, "broken_package"),
    "no module": (ModuleNotFoundError("No module named 'numpy'"), 2, "broken_package"),
    "too many files": (OSError(errno.EMFILE, "Too many open files", "x.pt"), 2, "os_error"),
    "no text": (SURROGATE, 2, "not_text"),
    "our own": (Untrusted("this file is damaged."), 4, "untrusted_file"),
    "RecursionError": (RecursionError("maximum recursion depth exceeded"), 70, "internal"),
    "OverflowError": (OverflowError("int too large to convert to float"), 70, "internal"),
    "another": (KeyError("x"), 70, "internal"),
    "with control characters": (ValueError("\x1b[31m\udc80\x00 \u202e"), 70, "internal"),
    "without text": (AssertionError(), 70, "internal"),
    "long": (ValueError("x" * 1_000_000), 70, "internal"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_any_exception_is_one_message_and_one_document(kind, options, monkeypatch):
    fault, exit_code, code = FAULTS[kind]

    def fail(**ignored):
        raise fault

    monkeypatch.setattr(app, "app", fail)
    done = sam3lite("demo", *options)
    assert done.code == exit_code
    assert ("Traceback" in done.err) is (exit_code == 70)  # which whoever mends it needs
    if options:
        assert done.json["error"]["code"] == code and len(done.json["error"]["message"]) < 1000
    else:
        assert done.out == "" and sum(line.startswith("error: ") for line in done.err.splitlines()) == 1


@pytest.mark.parametrize("first", ["MemoryError()", "ImportError('no x')", "OSError(12, 'Cannot allocate memory')"])
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_what_fails_while_the_program_is_imported_is_told(first, options):
    program = (
        "import sys\n"
        "class Fails:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == 'sam3lite_convert.cli.app': raise {first}\n"
        "sys.meta_path.insert(0, Fails())\n"
        "from sam3lite_convert.__main__ import main\n"
        "main()\n"
    )
    done = python("-c", program, "demo", *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    code = "broken_package" if "Import" in first else "no_memory"
    if options:
        error = json.loads(done.stdout)["error"]
        assert error["code"] == code and error["message"]
    else:
        assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_nothing_can_be_imported_any_more():
    program = (
        "import sys\n"
        "from sam3lite_convert.__main__ import main\n"
        "class Fails:\n"
        "    def find_spec(self, *ignored): raise MemoryError\n"
        "sys.meta_path.insert(0, Fails())\n"
        "main()\n"
    )
    done = python("-c", program, "demo", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "no_memory")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "variable, value",
    [
        ("HF_HUB_ETAG_TIMEOUT", "abc"), ("HF_HUB_ETAG_TIMEOUT", ""), ("HF_HUB_DOWNLOAD_TIMEOUT", "-1.5"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "²"), ("HF_ENDPOINT", "http://[::"), ("HF_ENDPOINT", "http://x:99999999"),
    ],
)  # fmt: skip
def test_a_variable_that_the_hubs_client_cannot_read_is_named(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)

    def fail(**ignored):
        raise ValueError("invalid literal for int() with base 10: 'abc'")

    monkeypatch.setattr(app, "app", fail)
    error = sam3lite("demo", "--json").json["error"]
    assert error["code"] == "bad_environment" and error["message"].startswith(f"{variable} is ")


def test_a_current_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = sam3lite("convert", "s0.pt", "--json")
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert done.json["error"]["message"]


@pytest.mark.parametrize("kind", ["device", "pipe", "large"])
def test_the_token_is_not_read_of_what_has_no_end(kind, hub, tmp_path, monkeypatch):
    token = tmp_path / "token"
    if kind == "device":
        token.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(token)
    else:
        with token.open("wb") as file:
            file.truncate(1 << 30)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(token))
    done = sam3lite("inspect", "s0", "--json")
    assert done.code == 2 and str(token) in done.json["error"]["message"]
