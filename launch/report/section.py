"""A section of the page: a heading, a sentence on what to see, plots and plain HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from bokeh.model import Model
from markupsafe import Markup

_SHORT_S, _LONG_S = 0.1, 1000.0  # below: milliseconds; above: no more than whole seconds


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One section; without content it says why in `missing`."""

    id: str
    title: str
    see: str  # one sentence
    use: str = ""  # how to use it on a screen; not printed
    content: Sequence[Model | Markup] = ()
    columns: bool = False  # plots side by side if there is room
    missing: str = ""  # why there is no data, and its cure

    def showing(self, *content: Model | Markup) -> Section:
        """Returns the section with this content."""
        return msgspec.structs.replace(self, content=content)

    def without_data(self, why: str) -> Section:
        """Returns the section with the reason for which it is empty."""
        return msgspec.structs.replace(self, missing=why)


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], *, texts: int = 1, attributes: str = ""
) -> Markup:
    """Makes a table of numbers; the first `texts` columns are text, aligned left."""

    def cells(tag: str, row: Sequence[Any]) -> Markup:
        return Markup("").join(
            Markup('<{0} class="{1}">{2}</{0}>').format(tag, "" if i < texts else "n", value)
            for i, value in enumerate(row)
        )

    body = Markup("").join(Markup("<tr>{}</tr>").format(cells("td", row)) for row in rows)
    return Markup(
        '<div class="wide"{}><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(Markup(attributes), cells("th", head), body)


def folded(parts: Iterable[tuple[str, Markup]]) -> Iterator[Markup]:
    """Yields named parts that a click opens; the first one is open."""
    for i, (name, part) in enumerate(parts):
        yield Markup("<details{}><summary>{}</summary>{}</details>").format(
            Markup(" open") if i == 0 else "", name, part
        )


def number_text(value: float | None, digits: int = 2) -> str:
    """Formats a number; None is a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def seconds_text(value: float | None) -> str:
    """Formats seconds, short times as milliseconds; None is a dash.

    >>> seconds_text(0.0123), seconds_text(12.3)
    ('12.3 ms', '12.3 s')
    """
    if value is None:
        return "–"
    if abs(value) < _SHORT_S:
        return f"{value * 1e3:.3g} ms"
    return f"{value:,.3g} s" if value < _LONG_S else f"{value:,.0f} s"
