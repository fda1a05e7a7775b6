"""Colours and patterns: told apart by people who do not tell red from green, on white and black."""

from __future__ import annotations

COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
    "#bbbbbb", "#e07b39", "#7a5195", "#2f9e8f", "#8c564b", "#999933",
)  # fmt: skip
"""Of lines."""


Look = tuple[str, str]
"""Colour, hatch pattern (none: empty)."""
REST: Look = ("#9a9a9a", "")
FATES: dict[str, Look] = {  # colours of Okabe and Ito, told apart by brightness and pattern, too
    "trained": ("#0072b2", ""),
    "redundant": ("#e69f00", "/"),
    "aborted": ("#d55e00", "x"),
    "lost": ("#cc79a7", "."),
    "dropped": ("#009e73", "-"),
    "stale": ("#56b4e9", "|"),
    "failed": ("#f0e442", "o"),
}
"""What became of tokens."""
PARTS: tuple[Look, ...] = (
    ("#56b4e9", ""), ("#009e73", "/"), ("#e69f00", ""), ("#0072b2", "x"), ("#cc79a7", ""),
    ("#f0e442", "-"), ("#d55e00", "|"), ("#8c564b", "."),
)  # fmt: skip
"""Of parts of a critical path, the one with most seconds first."""
