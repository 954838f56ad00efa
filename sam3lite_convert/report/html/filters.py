"""How the page writes names, numbers and ids. Names come out of files, so nothing in them is sent as it is."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from sam3lite_convert import figures, quoting
from sam3lite_convert.report.terminal import printable

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]{1,28}(?![\w-])")
_NAME = re.compile(r"\w+(?:\.\w+){2,}")
_FIGURE = re.compile(r"\d(?:\.\d+)?e[-+]\d+")


def visible(text: str) -> str:
    """Text as one line, not yet escaped. Characters that would break the line, steer the page or change the direction
    of the text are written as escapes."""
    return quoting.visible(printable(text))


def output(value: object) -> object:
    """What the template does to every value before it escapes and writes it: text becomes visible, whole numbers get
    separators.

    Raises TypeError for any other value: floats and None need a filter that says how they are written.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    raise TypeError(f"the page's template writes a {type(value).__name__} without a filter")


def lines(text: str) -> Markup:
    """Text that keeps its lines, for ``pre``."""
    return escape(printable(text.replace("\r\n", "\n").expandtabs(4)))


def breaking(name: str) -> Markup:
    """A name or a command whose line breaks after a dot or an underscore before it breaks anywhere else, and within no
    option."""
    said = _breaks(str(escape(visible(name))))
    return Markup(_OPTION.sub(lambda found: f'<span class="v">{found[0]}</span>', said))  # escaped before  # nosec B704


def prose(text: str) -> Markup:
    """A record's words, in which names of tensors break where ``breaking`` breaks them."""
    return Markup(_broken(str(escape(visible(text)))))  # escaped before  # nosec B704


def _breaks(escaped: str) -> str:
    return escaped.replace(".", ".<wbr>").replace("_", "_<wbr>")


def _broken(escaped: str) -> str:
    return _NAME.sub(lambda found: _breaks(found[0]), escaped)


def code(name: str) -> Markup:
    """A key, a path, a hash, a command."""
    return Markup("<code>{}</code>").format(breaking(name))


def quoted(prompt: str) -> Markup:
    """A prompt in any script. Its direction does not reorder the text around it."""
    return Markup('<span class="prompt">&ldquo;<bdi>{}</bdi>&rdquo;</span>').format(visible(prompt))


def sentence(text: str) -> Markup:
    """``prose`` as a sentence: a capital at the start, a full stop at the end, and no line break in a number."""
    said = visible(text)
    said = said[:1].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")
    return Markup(
        _FIGURE.sub(lambda found: f'<span class="v">{found[0]}</span>', _broken(str(escape(said))))
    )  # escaped before  # nosec B704


def figure(value: float) -> Markup:
    """An error within a sentence, as the terminal writes it, in one line: 0.0, 4.38e-01, inf."""
    return Markup('<span class="v">{}</span>').format(number(value))


def number(value: float | None) -> str:
    """An error as the terminal writes it. Infinity, NaN and the null that they are in JSON are all inf."""
    return figures.number(value)


def times(value: float) -> str:
    """How many noise floors an error is."""
    return f"{value:.2g}" if math.isfinite(value) else "inf"


def cosine(value: float) -> str:
    """A cosine, or a dash: there is none if a side is zero or not finite."""
    return f"{value:.6f}" if math.isfinite(value) else "-"


def coordinates(box: Sequence[float]) -> Markup:
    """The numbers of a box in one line."""
    return Markup('<span class="v">{}</span>').format(", ".join(f"{value:.4g}" for value in box))


def png(data: str) -> Markup:
    """A PNG file in base64 as an address that loads nothing; of anything else, the address of an empty picture."""
    return Markup(f"data:image/png;base64,{data}") if _BASE64.fullmatch(data) else Markup("data:,")  # escaped before  # nosec B704


def runs(ids: Sequence[int], other: Sequence[int] | None = None) -> Markup:
    """Ids in one line; three or more equal ones in a row are written once, with their number. An id is marked if
    ``other`` has another one at its position, or none."""
    marked = [other is not None and (i >= len(other) or other[i] != value) for i, value in enumerate(ids)]
    out: list[Markup] = []
    for (value, differs), run in itertools.groupby(zip(ids, marked, strict=True)):
        size = len(list(run))
        repeated = Markup('<span class="rep">{}&nbsp;&times;&nbsp;{}</span>').format(value, size)
        shown = [repeated] if size > 2 else [Markup(value)] * size  # escaped before  # nosec B704
        out += [Markup("<mark>{}</mark>").format(item) for item in shown] if differs else shown
    return Markup(" ").join(out)
