"""Colours and patterns that colour-blind people can distinguish, on white and on black."""

from __future__ import annotations

COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
    "#bbbbbb", "#e07b39", "#7a5195", "#2f9e8f", "#8c564b", "#999933",
)  # fmt: skip
"""Colours of lines."""

Look = tuple[str, str]
"""Colour, hatch pattern (none: empty)."""
REST: Look = ("#9a9a9a", "")
# They differ in lightness first, so that the three common ones are distinct without colour:
# dark, light, middle. Patterns are for bars that are tall enough to show them.
FATES: dict[str, Look] = {
    "trained": ("#0b4f9c", ""),
    "redundant": ("#f3dc95", ""),
    "aborted": ("#a974b8", "x"),
    "lost": ("#d55e00", "."),
    "dropped": ("#009e73", "-"),
    "stale": ("#56b4e9", "|"),
    "failed": ("#6b3d12", ""),
}
"""Looks of tokens by fate."""
# No colour is that of a fate: both are in one picture.
PARTS: tuple[Look, ...] = (
    ("#7fb2e5", ""), ("#1f5c57", ""), ("#ee8866", "/"), ("#ffc4cf", ""),
    ("#7a6a00", ""), ("#59c3a3", "-"), ("#7d2e3b", ""), ("#c5ecff", "."),
)  # fmt: skip
"""Looks of the parts of a critical path, the longest first."""
