r"""Reward `math`: 1 when the response's answer equals the gold one as mathematics, else 0.

Graded by the package math-verify: `\frac{1}{2}`, `0.5` and `1/2` are equal; units, currency and
thousands marks do not count (`_math_text`). Words are compared as text. What cannot be computed in
`limit_s` is a wrong answer. A gold answer that cannot be read is an error before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pipeline.plugins.interfaces import RewardOptions, WorkerSettings
from pipeline.plugins.ranges import PositiveFloat
from pipeline.plugins.registry import register
from pipeline.plugins.rewards._child import Child
from pipeline.plugins.rewards._math_text import (
    answer_in,
    behind_thoughts,
    choice_in,
    cleaned,
    golds_of,
    is_prose,
    text_of,
    words_of,
)
from pipeline.plugins.views import Sampled

_LONGEST = 1000
"""Characters of a gold answer. One in a response may have four times as many more: what is longer
is not equal to it, and cleaning it could take longer than computing it."""


class MathOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `math` reward."""

    graded: Literal["boxed", "whole"] = "boxed"
    r"""What of the response is graded: the content of its last `\boxed{}` (`boxed`; without one it
    is wrong), or what math-verify finds in the `whole` of it, the last `\boxed{}` first. Thoughts,
    up to `</think>`, are not looked at."""
    gold_after: str = ""
    """The gold answer follows the last of these in the data's answer, as `####` in GSM8K; empty:
    it is the whole of it."""
    cut: bool = False
    """Grade also what reached `sampling.max_tokens`; else that is wrong."""
    limit_s: PositiveFloat = 3.0
    """Seconds of computing that one answer may take; then it is wrong. Less than `workers.limit_s`,
    at which the call has failed."""

    def worker_problems(self, workers: WorkerSettings) -> Iterator[str]:
        if self.limit_s > workers.limit_s:
            yield (
                f"limit_s is {self.limit_s:g}, but workers.limit_s is {workers.limit_s:g}, at "
                "which a call has failed: set it lower"
            )


@register("reward", "math")
class Math:
    Options = MathOptions
    needs_answer = True
    columns = frozenset[str]()  # of the data: none but the answer

    def __init__(self, options: MathOptions | None = None) -> None:
        # Seconds: here, before the first call's limit counts.
        import math_verify

        self._options = options or MathOptions()
        self._parse, self._verify = math_verify.parse, math_verify.verify
        self._compute({"gold": r"\frac{1}{2}", "found": "$0.5$"})  # its own caches
        self._child = Child(self._compute, self._options.limit_s)

    def score(self, sample: Sampled) -> float:
        if sample.finish != "stop" and not self._options.cut:
            return 0.0
        found = answer_in(sample.response)
        if found is None and self._options.graded == "whole":
            text = behind_thoughts(sample.response)
            question = {"found": text, "whole": True}
            return float(any(self._is_in(question, gold) for gold in self._golds(sample)))
        return float(bool(found) and any(self._equal(g, found) for g in self._golds(sample)))

    def complaint(self, sample: Sampled) -> str:
        """Returns why a gold answer cannot be graded against; '' if it can."""
        found, marker = f"found {sample.answer!r:.80}", self._options.gold_after
        if marker and marker not in sample.answer:
            return f"{found}, expected {marker!r} before it (gold_after)"
        golds = self._golds(sample)
        if any(len(gold) > _LONGEST for gold in golds):
            return f"{found}, expected an answer of at most {_LONGEST} characters"
        golds = [cleaned(gold) for gold in golds]
        for gold in golds:
            if is_prose(gold):
                return f"{found}, a sentence with a number in it: leave the number alone"
            if gold and (words_of(gold) or self._is_readable(gold)):
                continue
            golds = []
        return "" if golds else f"{found}, which math-verify cannot read as a number or formula"

    def _is_readable(self, gold: str) -> bool:
        return bool(self._child.ask({"gold": gold})) or self._child.starved

    def _golds(self, sample: Sampled) -> list[str]:
        marker = self._options.gold_after
        return golds_of(sample.answer.rpartition(marker)[2] if marker else sample.answer)

    def _equal(self, gold: str, found: str) -> bool:
        if len(gold) > _LONGEST or len(found) > _LONGEST + 4 * len(gold):
            return False
        gold, found = cleaned(gold), cleaned(found)
        if not gold or gold == found:
            return bool(gold)
        words, others = words_of(gold), words_of(found)
        if words is not None or others is not None:
            return words == others
        if len(gold) == 1 and gold.isupper() and (choice := choice_in(found)):
            return choice == gold
        return self._child.ask({"gold": gold, "found": found}) is True

    def _is_in(self, question: dict[str, Any], gold: str) -> bool:
        if len(gold) > _LONGEST:
            return False
        gold = cleaned(gold)
        if (words := words_of(gold)) is not None:
            return f" {text_of(question['found'])}".endswith(f" {words}")
        return self._child.ask({**question, "gold": gold}) is True

    # --- in the child ---------------------------------------------------------------------

    def _compute(self, question: dict[str, Any]) -> bool:
        """Whether an answer equals the gold one; without an answer, whether that can be read."""
        gold = self._read(rf"\boxed{{{question['gold']}}}")
        if "found" not in question:
            readable = any(not isinstance(found, str) for found in gold)
            return readable and self._verify(gold, gold, timeout_seconds=None)
        text = question["found"] if question.get("whole") else rf"\boxed{{{question['found']}}}"
        return bool(self._verify(gold, self._read(text), timeout_seconds=None))

    def _read(self, text: str) -> list[Any]:
        # Without its own limits, which are alarms that no computation in C hears.
        return self._parse(text, parsing_timeout=None)  # type: ignore[arg-type]
