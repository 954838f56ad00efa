"""The pieces a report page is made of: escaped text, numbers, tables, lists, the page around them."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sam3lite_convert import figures
from sam3lite_convert.report.html.style import style_sheet
from sam3lite_convert.report.terminal import printable

Record = dict[str, Any]
GENERATOR = "sam3lite-convert report"  # stands in every report's head
LISTED = 200  # rows of a list; a page of thousands is read by nobody and slow on a phone
_MORE = "--json lists all of them"
# No request can leave the page, whatever got into it: neither scripts nor anything to load is allowed.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def visible(value: object) -> str:
    """Anything as one line, not yet escaped. Names come out of files: what would break the line, steer
    the page or turn the direction of what follows is shown and not sent."""
    return printable(str(value)).replace("\n", "\\n")


def text(value: object) -> str:
    """Anything as one line of escaped text."""
    return html.escape(visible(value))


def lines(value: object) -> str:
    """Text that keeps its lines, for ``pre``."""
    plain = str(value).replace("\r\n", "\n").expandtabs(4)
    return html.escape(printable(plain))


def code(value: object) -> str:
    """A name: a key, a path, a hash. It may break behind a dot or an underscore before it breaks anywhere."""
    return f"<code>{text(value).replace('.', '.<wbr>').replace('_', '_<wbr>')}</code>"


def quoted(prompt: object) -> str:
    """A prompt, in any script: what it is made of does not reorder what stands around it."""
    return f'<span class="prompt">&ldquo;<bdi>{text(prompt)}</bdi>&rdquo;</span>'


def measure(record: Mapping[str, Any] | None, key: str) -> float | None:
    """A number of a record: None where there is none, infinity where the record has null, which is how JSON
    says infinite or not a number."""
    if record is None or key not in record:
        return None
    return as_number(record[key])


def as_number(value: Any) -> float:
    """A value of a record, infinite where it is null or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.inf
    return float(value)


def number(value: float | None) -> str:
    """An error as the terminal shows it: 0.0, 4.38e-01, inf; a dash where there is none."""
    return "-" if value is None else figures.number(None if math.isinf(value) else value)


def shown(value: float | None) -> str:
    """The same within a sentence: it stays in one line."""
    return f'<span class="v">{number(value)}</span>'


def cosine(record: Mapping[str, Any] | None) -> str:
    """A cosine, or a dash: it has none where a side is zero or not finite."""
    value = measure(record, "cosine")
    return "-" if value is None or math.isinf(value) else f"{value:.6f}"


def count(value: Any) -> str:
    """A whole number with separators, or a dash."""
    return f"{value:,}" if isinstance(value, int) else "-"


def plural(n: int, noun: str) -> str:
    """1 prompt, 2 prompts."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def paragraph(content: str, css: str = "") -> str:
    """A paragraph of finished HTML."""
    return f'<p class="{css}">{content}</p>' if css else f"<p>{content}</p>"


def facts(rows: Iterable[tuple[str, str | None]]) -> str:
    """A definition list of finished HTML; rows without a value are left out."""
    kept = [f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in rows if value]
    return f'<dl class="facts">{"".join(kept)}</dl>' if kept else ""


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Iterable[int] = (),
    foot: Sequence[str] | None = None,
    css: Sequence[str] | None = None,
    kind: str = "",
) -> str:
    """A table of finished HTML in a box that scrolls by itself. The first cell of a row is its heading;
    ``numbers`` are the columns that are aligned to the right; ``css`` has a class for each row, ``kind`` is
    that of the table."""
    right = set(numbers)

    def row(cells: Sequence[str], name: str = "", heading: str = "row") -> str:
        out = []
        for at, cell in enumerate(cells):
            kinds = ["n"] * (at in right) + ["status"] * (bool(css) and at == len(cells) - 1)
            attribute = f' class="{" ".join(kinds)}"' if kinds else ""
            if heading == "col" or at == 0:
                out.append(f'<th scope="{heading}"{attribute}>{cell}</th>')
            else:
                out.append(f"<td{attribute}>{cell}</td>")
        return f'<tr class="{name}">{"".join(out)}</tr>' if name else f"<tr>{''.join(out)}</tr>"

    shown = rows[:LISTED]
    body = "".join(row(cells, css[at] if css else "") for at, cells in enumerate(shown))
    last = f"<tfoot>{row(foot)}</tfoot>" if foot else ""
    return (
        f'<figure class="sheet"><figcaption>{text(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{kind}">'
        f"<thead>{row(head, heading='col')}</thead><tbody>{body}</tbody>{last}</table></div></figure>{more(len(rows))}"
    )


def more(total: int) -> str:
    """What is said behind a list that was cut."""
    return paragraph(f"... and {total - LISTED:,} more; {_MORE}", "muted small") if total > LISTED else ""


def listing(items: Sequence[str], css: str = "") -> str:
    """A list of finished HTML, cut where it gets too long."""
    rows = "".join(f"<li>{item}</li>" for item in items[:LISTED])
    return f'<ul class="{css}">{rows}</ul>{more(len(items))}' if css else f"<ul>{rows}</ul>{more(len(items))}"


def folded(summary: str, content: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def section(title: str, *content: str) -> str:
    """A section; nothing where it would be empty."""
    inner = "".join(content)
    return f"<section><h2>{text(title)}</h2>{inner}</section>" if inner else ""


def document(value: object) -> str:
    """A record as JSON in a box."""
    return f"<pre>{lines(json.dumps(value, indent=2, ensure_ascii=False, default=str))}</pre>"


_TONES = {
    "exact": ("good", "&check;", "Exact"),
    "within_tolerance": ("good", "&asymp;", "Within tolerance"),
    "proven": ("good", "&check;", "Proven"),
    "differs": ("bad", "&#10005;", "Differs"),
    "mismatch": ("bad", "&#10005;", "Mismatch"),
}


def tone(verdict: object) -> tuple[str, str, str]:
    """The class, the sign and the words of a verdict; what is unknown is shown as it is."""
    if verdict is None:
        return "none", "&ndash;", "Not looked at"
    return _TONES.get(str(verdict)) or ("none", "?", text(str(verdict).replace("_", " ").capitalize()))


def card(kind: str, verdict: object, *content: str) -> str:
    """A verdict in a box, in words, by a sign and by a colour."""
    css, icon, words = tone(verdict)
    return (
        f'<article class="card {css}"><h2 class="kicker">{text(kind)}</h2>'
        f'<p class="verdict"><span class="icon" aria-hidden="true">{icon}</span>{words}</p>{"".join(content)}</article>'
    )


def badge(verdict: object) -> str:
    """A verdict within a line."""
    css, icon, words = tone(verdict)
    return f'<span class="badge {css}"><span aria-hidden="true">{icon}</span> {words}</span>'


def page(title: str, *content: str) -> str:
    """A whole file that needs nothing but itself."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        '<link rel="icon" href="data:,">\n'  # or a browser asks a server for one
        f"<title>{text(title)}</title>\n<style>{style_sheet()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in content if part)
        + "\n</main>\n</body>\n</html>\n"
    )
