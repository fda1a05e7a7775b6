"""A state machine's table -> a drawing: states in a column, moves as arcs beside it. Pure.

Moves down the column are arcs on its right, moves back up on its left; what causes them is in the
table below the drawing. It needs no script, so it is seen offline and wherever Markdown is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_ROW, _TOP, _BOX, _HALF = 44, 24, 26, 64  # pixels: of a row, above the first, of a box
_BEND = 24  # of an arc, for each row that it spans
_STYLE = (
    "svg{color:#222}.sheet{fill:#fff}.box{fill:#eef3f8;stroke:#0072b2}.end{fill:#f4f4f4;"
    "stroke:#8a8a8a}.move{fill:none;stroke:#5b6b7a;stroke-width:1.2}.back{stroke:#c05a00}"
    ".tip{fill:#5b6b7a}.tipback{fill:#c05a00}text{fill:currentColor}"
    "@media (prefers-color-scheme:dark){svg{color:#e6e6e6}.sheet{fill:#1b1d20}"
    ".box{fill:#22303c;stroke:#5fb4e6}.end{fill:#2a2d31;stroke:#8f8f8f}.move{stroke:#9fb0c0}"
    ".back{stroke:#f0a050}.tip{fill:#9fb0c0}.tipback{fill:#f0a050}}"
)


def moves_of(table: Mapping[Any, Any]) -> dict[str, dict[str, list[str]]]:
    """State -> the states that may follow it, each with what causes the move ([]: not named)."""
    found: dict[str, dict[str, list[str]]] = {}
    for state, moves in table.items():
        to: dict[str, list[str]] = {}
        if isinstance(moves, Mapping):
            for why, following in moves.items():
                to.setdefault(following.value, []).append(why.value)
        else:
            to = {following.value: [] for following in sorted(moves)}
        found[state.value] = to
    return found


def drawing(title: str, moves: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Draws the table as SVG; the first state is where it begins."""
    states = list(moves)
    place = {state: _TOP + number * _ROW for number, state in enumerate(states)}
    spans = [
        states.index(to) - number for number, state in enumerate(states) for to in moves[state]
    ]
    right = _HALF + _BEND * max([1, *spans]) * 0.75 + 30
    left = _HALF + _BEND * max([1, *(-span for span in spans)]) * 0.75 + 30
    width, height = left + right, _TOP + len(states) * _ROW
    tips = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path class="{name}" d="M0 1 10 5 0 9z"/></marker>'
        for name in ("tip", "tipback")
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}" font-family="system-ui, sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(title)}">'
    )
    parts = [
        head,
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<defs>{tips}</defs>",
        f'<rect class="sheet" width="{width:.0f}" height="{height}" rx="8"/>',
        *(_arc(left, place[state], place[to]) for state in states for to in moves[state]),
    ]
    for state in states:
        kind = "box" if moves[state] else "end"
        weight = ' font-weight="700"' if state == states[0] else ""
        parts.append(
            f'<rect class="{kind}" x="{left - _HALF:.0f}" y="{place[state] - _BOX / 2:.0f}" '
            f'width="{2 * _HALF}" height="{_BOX}" rx="5"/>'
            f'<text x="{left:.0f}" y="{place[state] + 4}" text-anchor="middle"{weight}>'
            f"{escape(state)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _arc(middle: float, start: float, end: float) -> str:
    down = end > start
    side = 1 if down else -1
    begin, stop = start + 5 * side, end - 5 * side
    edge = middle + side * _HALF
    bend = edge + side * (_BEND * abs(end - start) / _ROW + 6)
    kind, tip = ("move", "tip") if down else ("move back", "tipback")
    return (
        f'<path class="{kind}" d="M{edge:.1f} {begin:.1f}C{bend:.1f} {begin:.1f} '
        f'{bend:.1f} {stop:.1f} {edge:.1f} {stop:.1f}" marker-end="url(#{tip})"/>'
    )


def table_lines(moves: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """The same as a table in Markdown."""
    lines = ["| state | may become |", "|---|---|"]
    for state, following in moves.items():
        cells = [
            f"`{to}`" + (f" ({', '.join(causes)})" if causes else "")
            for to, causes in following.items()
        ]
        lines.append(f"| `{state}` | {', '.join(cells) or 'nothing: it has ended'} |")
    return lines
