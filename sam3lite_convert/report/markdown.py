"""What the results printed as Markdown share: a heading, facts in a table, and names of others as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sam3lite_convert.quoting import markdown_code, markdown_text, visible
from sam3lite_convert.report.terminal import conclude

_LONGEST = 400  # characters of a name or a cause


# Cut before they are escaped: a cut behind that could take the end of a span of code with it.
def as_text(words: str) -> str:
    """Words as Markdown that shows them and does nothing else."""
    return markdown_text(_cut(words))


def as_code(words: str, cell: bool = False) -> str:
    """Words as a span of code. ``cell``: in a table."""
    return markdown_code(_cut(words), cell)


def headed(title: str, summary: str, facts: Mapping[str, str]) -> list[str]:
    """The lines of a result: its title, its summary in words, and facts, Markdown by name, in a table."""
    lines = [f"### {title}", "", as_text(summary), "", "| | |", "|---|---|"]
    return lines + [f"| {name} | {fact} |" for name, fact in facts.items()]


def listed(words: Sequence[str]) -> list[str]:
    """Lines of a list with an empty line in front; none if there is nothing to list."""
    return ["", *(f"- {as_text(each)}" for each in words)] if words else []


def print_markdown(markdown: str) -> None:
    """Print it on stdout, with ``--quiet`` too."""
    for line in markdown.splitlines():
        conclude(line)


def _cut(words: str) -> str:
    words = visible(words)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."
