"""What a part of the page is: a heading, a sentence on what to see, plots and plain HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from bokeh.model import Model
from markupsafe import Markup

_SHORT_S, _LONG_S = 0.1, 1000.0  # below: milliseconds; above: no more than whole seconds


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the page; a part without content says why in `missing`."""

    id: str
    title: str
    see: str  # one sentence
    use: str = ""  # what can be done on a screen; not on paper
    content: Sequence[Model | Markup] = ()
    columns: bool = False  # plots beside one another where there is room
    missing: str = ""  # what would bring the data


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], *, texts: int = 1, attributes: str = ""
) -> Markup:
    """A table of figures; the first `texts` columns are words and set to the left."""

    def cells(tag: str, row: Sequence[Any]) -> Markup:
        return Markup("").join(
            Markup('<{0} class="{1}">{2}</{0}>').format(tag, "" if i < texts else "n", value)
            for i, value in enumerate(row)
        )

    body = Markup("").join(Markup("<tr>{}</tr>").format(cells("td", row)) for row in rows)
    return Markup(
        '<div class="wide"{}><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(Markup(attributes), cells("th", head), body)


def number_text(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def seconds_text(value: float | None) -> str:
    """Seconds, or milliseconds where those are shorter to read.

    >>> seconds_text(0.0123), seconds_text(12.3)
    ('12.3 ms', '12.3 s')
    """
    if value is None:
        return "–"
    if abs(value) < _SHORT_S:
        return f"{value * 1e3:.3g} ms"
    return f"{value:,.3g} s" if value < _LONG_S else f"{value:,.0f} s"
