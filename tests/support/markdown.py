"""How GitHub and the Hub read Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token


def reader() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def shape(markdown: str) -> list[str]:
    """The kinds of the tokens of a text, without the words."""
    words = ("text", "text_special", "softbreak")
    return [t.type for t in flat(reader().parse(markdown)) if t.type not in words]


def words(markdown: str) -> str:
    """What a reader sees of the text."""
    return "".join(t.content for t in flat(reader().parse(markdown)) if not t.children)
