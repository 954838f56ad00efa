"""Text of others stays text: in Python, in YAML, in a shell, in Markdown."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from support.markdown import shape, words
from support.odd_names import ODD_NAMES

from sam3lite_convert import quoting


def test_python_and_yaml_give_the_text_back():
    for name in ODD_NAMES:
        literal = quoting.python_text(name)
        assert literal.isprintable()
        assert eval(literal, {}) == name
        read = yaml.safe_load(f"key: {quoting.yaml_text(name)}\nnext: 1\n")
        assert read == {"key": name.encode("utf-8", "backslashreplace").decode(), "next": 1}


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh"])
def test_a_shell_reads_one_word(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    # $'...' is of bash, zsh and ksh
    names = [n for n in ODD_NAMES if "\0" not in n and (shell != "sh" or n.isprintable())]
    lines = [f"printf '%s\\0' {quoting.shell_word(name)}" for name in names]
    assert all(line.isprintable() for line in lines)
    script = "\n".join(lines).encode("utf-8", "surrogateescape")
    done = subprocess.run([shell], input=script, cwd=tmp_path, capture_output=True, timeout=20)
    assert not done.stderr and not list(tmp_path.iterdir())
    lone = [n for n in names if any("\ud800" <= c <= "\udbff" for c in n)]
    expected = [n.encode("utf-8", "backslashreplace" if n in lone else "surrogateescape") for n in names]
    assert done.stdout.split(b"\0")[:-1] == expected


def test_a_line_is_split_into_the_words_that_it_was_made_of():
    line = quoting.shell_line(ODD_NAMES)
    assert quoting.quoted_words(line) == [quoting.shell_word(name) for name in ODD_NAMES]


def test_a_path_is_one_word_and_no_option():
    for name in ODD_NAMES:
        if name and name.isprintable():
            assert shlex.split(quoting.shell_path(name)) == [f"./{name}" if name.startswith("-") else name]


@pytest.mark.parametrize("around", ["{}", "- {}", "a {} b", "| a | b |\n|---|---|\n| {} | c |", "# {}"])
def test_in_markdown_words_are_words_and_code_is_code(around):
    for name in ODD_NAMES:
        plain = " ".join(quoting.visible(name).split())
        text, like = around.format(quoting.markdown_text(name)), around.format("name" if plain else "")
        assert shape(text) == shape(like), text
        assert words(text) == words(like).replace("name", plain)
        plain = quoting.visible(name)
        plain = plain if plain.strip() else f'"{plain}"'
        text, like = around.format(quoting.markdown_code(name, cell="|" in around)), around.format("`name`")
        assert shape(text) == shape(like), text
        assert words(text) == words(like).replace("name", plain)


@pytest.mark.parametrize(
    "address", ["https://example.org/x", "HTTP://example.org", "www.example.org", "someone@example.org", "ftp://a"]
)
def test_bare_addresses_are_no_links_for_those_who_make_some(address):
    text = quoting.markdown_text(f"see {address}")
    # Readers that make links of bare addresses leave escaped characters alone.
    assert not re.search(r"(?<!\\)(://|(?<=www)\.|@)", text)
    assert words(text) == f"see {address}"


@pytest.mark.parametrize(
    ("address", "is_link"),
    [
        ("https://example.org/LICENSE", True),
        ("http://example.org", True),
        ("https://example.org/a_b?c=d#e", True),
        ("javascript:alert(1)", False),
        ("https://example.org/a b", False),
        ("https://example.org/><script>", False),
        ("data:text/html,<b>", False),
        ("LICENSE.md", False),
        ("https://user@example.org/", False),
        ("[a](https://example.org)", False),
    ],
)
def test_only_a_plain_address_is_a_link(address, is_link):
    text = quoting.markdown_link(address)
    assert shape(text) == (shape("<https://example.org>") if is_link else shape("name"))
    assert words(text) == address
