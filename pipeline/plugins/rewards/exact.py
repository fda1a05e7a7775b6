"""Reward `exact`: 1 when the text after the last marker is the answer, else 0.

A response that did not end by itself is wrong: its answer may be cut. With `compare: number` the
first number behind the marker counts, as verl scores GSM8K (`verl/utils/reward_score/gsm8k.py`),
here also with a currency before it and compared by its value.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from pipeline.plugins.interfaces import RewardOptions
from pipeline.plugins.registry import register
from pipeline.plugins.views import Sampled

_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\s*(?:\\?\$|[\u20ac\u00a3\u00a5])?\s*(?P<sign2>[-+\u2212]?)"
    r"(?P<whole>[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?![0-9])|[0-9]*)(?P<part>\.[0-9]+)?"
    r"(?:\s*/\s*(?P<below>[0-9]+))?"
)


_MOST_DIGITS = 1000  # of a number: no gold answer has more, and Python refuses to read 4,300


class ExactOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `exact` reward."""

    marker: str = "#"
    """The answer follows the last of these; empty: the whole response is the answer."""
    compare: Literal["text", "number"] = "text"
    """What of it counts: the `text`, without spaces around it, or the first `number` in it,
    whatever its thousands marks, its currency and what follows. A gold answer with the marker, as
    in GSM8K, is read behind it, too."""


@register("reward", "exact")
class Exact:
    Options = ExactOptions
    needs_answer = True
    columns = frozenset[str]()  # of the data: none but the answer

    def __init__(self, options: ExactOptions | None = None) -> None:
        self._options = options or ExactOptions()

    def score(self, sample: Sampled) -> float:
        if sample.finish != "stop":
            return 0.0
        text = sample.response
        if self._options.marker:
            _, found, text = text.rpartition(self._options.marker)
            if not found:
                return 0.0
        if self._options.compare == "text":
            return float(text.strip() == sample.answer.strip())
        number = number_in(text)
        return float(number is not None and number == self._gold(sample))

    def complaint(self, sample: Sampled) -> str:
        """Returns why no response can have a gold answer; '' if one can."""
        found, marker = f"found {sample.answer!r:.80}", self._options.marker
        if self._options.compare == "number":
            return f"{found}, expected a number" if self._gold(sample) is None else ""
        if marker and marker in sample.answer:
            return (
                f"{found}, which holds the marker {marker!r}, so nothing behind the last one is "
                "equal to it; set reward.exact.compare: number, or another marker"
            )
        return ""

    def _gold(self, sample: Sampled) -> Fraction | None:
        marker = self._options.marker
        return number_in(sample.answer.rpartition(marker)[2] if marker else sample.answer)


def number_in(text: str) -> Fraction | None:
    """The first number in a text; None: there is none, or it has more than a thousand digits.

    >>> number_in("$1,234.50 a day"), number_in("-3/6"), number_in("none")
    (Fraction(2469, 2), Fraction(-1, 2), None)
    """
    for found in _NUMBER.finditer(text):
        whole, part = re.sub(r"[^0-9]", "", found["whole"]), found["part"] or ""
        if not whole and not part:
            continue
        if len(whole) + len(part) + len(found["below"] or "") > _MOST_DIGITS:
            return None
        value = Fraction(f"{whole or 0}{part}")
        if found["below"] and int(found["below"]):
            value /= int(found["below"])
        return -value if found["sign"] + found["sign2"] in ("-", "\u2212") else value
    return None
