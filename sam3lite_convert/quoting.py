"""Text of others, such as names from files and from the Hub, written so that it stays text where it is shown or pasted:
on one line, in a command, in Python, in Markdown, in YAML."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import PurePath

# Of underscores, those at the edge of a word.
_MARKUP = re.compile(r"[\\`*\[\]<>|&~^$]|(?<![^\W_])_|_(?![^\W_])")
# What begins a heading, a list, a quote, a rule, a table or a fence where it stands first.
_BEGINS = re.compile(r"[#+\-=:]|\d{1,9}[.)]")
# GitHub and the Hub make links of bare addresses too.
_ADDRESS = re.compile(r":(?=//)|(?<=www)\.|@", re.IGNORECASE)
_WORD = re.compile(r"""(?:\$'(?:\\.|[^'\\])*'|'[^']*'|"[^"]*"|[^\s'"])+""")
_WEB = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?(/[A-Za-z0-9._~/%?=&#+,:;@-]*)?")


def visible(text: str) -> str:
    """The text on one line, with every character that is not printed written as an escape: line breaks, control
    characters, marks that turn the direction of writing, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def python_text(text: str) -> str:
    """A Python literal in double quotes, on one line, that gives the text."""
    return '"' + "".join(f"\\{c}" if c in '"\\' else visible(c) for c in text) + '"'


def yaml_text(text: str) -> str:
    """A YAML string in double quotes, on one line. YAML has no lone surrogates: they are written as escapes."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in plain) + '"'


def shell_word(text: str) -> str:
    """One word of a command line, for POSIX shells. A text with characters that are not printed is written as
    ``$'...'``, which bash, zsh and ksh read, so that it stays on one line."""
    if text.isprintable():
        # zsh replaces a word =NAME by the path of a command.
        return f"'{text}'" if re.match(r"=[\w@%+=:,./-]*$", text) else shlex.quote(text)
    return "$'" + "".join(map(_in_shell, text)) + "'"


def _in_shell(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    # Bytes of a file name that are not UTF-8 are given back as they are; other lone surrogates are in no file name.
    escaped = "surrogateescape" if "\udc80" <= character <= "\udcff" else "backslashreplace"
    # Octal digits: three at most, so that what follows is never taken for one of them.
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", escaped))


def shell_path(path: str | PurePath) -> str:
    """A file or folder as one word of a command line, which no program takes for an option."""
    text = str(path)
    return shell_word(f"./{text}" if text.startswith("-") else text)


def shell_line(words: Iterable[str]) -> str:
    """A command line of these words."""
    return " ".join(map(shell_word, words))


def quoted_words(line: str) -> list[str]:
    """The words of a line that ``shell_line`` made, still quoted."""
    return _WORD.findall(line)


def markdown_text(text: str) -> str:
    """Words in Markdown, also in a cell of a table and where a line begins: no markup, no HTML, no link."""
    words = _MARKUP.sub(r"\\\g<0>", " ".join(visible(text).split()))
    words = _ADDRESS.sub(r"\\\g<0>", words)
    if begin := _BEGINS.match(words):
        words = f"{words[: begin.end() - 1]}\\{words[begin.end() - 1 :]}"
    return words


def markdown_code(text: str, cell: bool = False) -> str:
    """A span of code in Markdown. ``cell``: in a cell of a table, where even in code a bar ends the cell."""
    code = visible(text)
    if not code.strip():
        code = f'"{code}"'
    fence = "`" * (1 + max(map(len, re.findall("`+", code)), default=0))
    space = " " if code[0] in " `" or code[-1] in " `" else ""
    return f"{fence}{space}{code.replace('|', chr(92) + '|') if cell else code}{space}{fence}"


def markdown_link(address: str) -> str:
    """An address in Markdown: a link if it is a plain one of the web, otherwise words."""
    return f"<{address}>" if _WEB.fullmatch(address) else markdown_text(address)
