r"""Reward `majority`: 1 for the answer that most responses of the group give, else 0.

Rewards without labels: the majority vote stands for the gold answer (TTRL, arXiv 2504.16084;
ECHO, 2602.02150). It is of the members that the selector has chosen, so a redundant one that was
aborted has no vote. Answers are compared as text; of equally many votes those that came first win
(our reading). Evaluations compare with the answer of the data, where there is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pipeline.plugins.actions import Score
from pipeline.plugins.interfaces import RewardOptions
from pipeline.plugins.ranges import Share
from pipeline.plugins.registry import register
from pipeline.plugins.views import Sampled

_SPACE = re.compile(r"\s+")


class MajorityOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `majority` reward."""

    graded: Literal["marker", "boxed"] = "marker"
    r"""The answer is what follows the last `marker`, or the content of the last `\boxed{}`. A
    response without one, or that reached `sampling.max_tokens`, has no vote."""
    marker: str = "#"
    """See `graded`; empty: the whole response is the answer."""
    least: Share = 0.0
    """Share of the group that the majority must have; below it the group has no reward at all."""


@register("reward", "majority")
class Majority:
    Options = MajorityOptions
    columns = frozenset[str]()  # of the data: none but the answer

    def __init__(self, options: MajorityOptions | None = None) -> None:
        self._options = options or MajorityOptions()

    def score(self, sample: Sampled) -> float:
        """One response alone: by the answer of the data."""
        return float(self._answer(sample) == _plain(sample.answer) != "")

    def score_group(self, samples: Sequence[Sampled]) -> list[Score | None]:
        answers = [self._answer(sample) for sample in samples]
        votes = Counter(filter(None, answers)).most_common(1)
        best, count = votes[0] if votes else ("", 0)
        share = count / len(samples)
        if share < self._options.least:
            return [None] * len(samples)
        return [Score(float(a == best != ""), {"majority": share}) for a in answers]

    def _answer(self, sample: Sampled) -> str:
        """The final answer of a response; '' if it has none."""
        if sample.finish != "stop":
            return ""
        if self._options.graded == "boxed":
            return _plain(_last_boxed(sample.response))
        marker = self._options.marker
        if not marker:
            return _plain(sample.response)
        _, found, text = sample.response.rpartition(marker)
        return _plain(text) if found else ""


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _last_boxed(text: str) -> str:
    r"""Content of the last `\boxed{}`; '' if it is not closed."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for place, character in enumerate(rest if found else ""):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[:place]
    return ""
