"""Reward `exact`: 1 when the text after the last marker is the answer, else 0.

A response that did not end by itself is wrong: its answer may be cut.
"""

from __future__ import annotations

from pipeline.plugins.interfaces import RewardOptions
from pipeline.plugins.registry import register
from pipeline.plugins.views import Sampled


class ExactOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `exact` reward."""

    marker: str = "#"
    """The answer follows the last of these; empty: the whole response is the answer."""


@register("reward", "exact")
class Exact:
    Options = ExactOptions
    needs_answer = True

    def __init__(self, options: ExactOptions | None = None) -> None:
        self._marker = (options or ExactOptions()).marker

    def score(self, sample: Sampled) -> float:
        if sample.finish != "stop":
            return 0.0
        text = sample.response
        if self._marker:
            _, found, text = text.rpartition(self._marker)
            if not found:
                return 0.0
        return float(text.strip() == sample.answer.strip())
