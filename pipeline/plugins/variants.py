"""The name of a variant says what stands behind a prompt: a column of the data, or the first share
of its tokens.

`hint` is the text of the column `hint`; of `hint:0.25` it is the first quarter of the tokens,
rounded down, without an error of binary fractions: 0.29 of 100 tokens are 29. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from fractions import Fraction


def column_and_share(variant: str, columns: Collection[str]) -> tuple[str, Fraction]:
    """The column that a variant names, and the share of its tokens.

    Raises: ValueError if no column is named, or no share from 0 to 1.

    >>> column_and_share("hint:0.25", ["hint"])
    ('hint', Fraction(1, 4))
    """
    if variant in columns:
        return variant, Fraction(1)
    column, colon, text = variant.rpartition(":")
    if not colon or column not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise ValueError(
            f"variant {variant!r} names no column that is loaded; data.variants: {known}"
        )
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError(f"variant {variant!r}: {text!r} is no share from 0 to 1")
    return column, share


def tokens_of(share: Fraction, tokens: int) -> int:
    """How many of a column's tokens a share of it has.

    >>> tokens_of(Fraction("0.29"), 100), tokens_of(Fraction("0.25"), 7)
    (29, 1)
    """
    return math.floor(share * tokens)
