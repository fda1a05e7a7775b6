r"""Reward `math`: 1 when the response's answer equals the gold one as mathematics, else 0.

Graded by the package math-verify: `\frac{1}{2}`, `0.5` and `1/2` are equal. It compares
values, not words. A gold answer that it cannot read is an error before anything starts.
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.plugins.interfaces import RewardOptions
from pipeline.plugins.registry import register
from pipeline.plugins.views import Sampled


class MathOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `math` reward."""

    graded: Literal["boxed", "whole"] = "boxed"
    r"""What of the response is graded: the content of its last `\boxed{}` (`boxed`; without one it
    is wrong), or what math-verify finds in the `whole` of it, the last `\boxed{}` first."""
    gold_after: str = ""
    """The gold answer follows the last of these in the data's answer, as `####` in GSM8K; empty:
    it is the whole of it."""
    cut: bool = False
    """Grade also what reached `sampling.max_tokens`; else that is wrong."""


@register("reward", "math")
class Math:
    Options = MathOptions
    needs_answer = True

    def __init__(self, options: MathOptions | None = None) -> None:
        # Seconds: here, before the first call's limit counts.
        import math_verify
        from latex2sympy2_extended.math_normalization import extract_boxed_content

        self._options = options or MathOptions()
        self._parse, self._verify = math_verify.parse, math_verify.verify
        self._boxed_of = extract_boxed_content
        self._equal(self._read(r"\boxed{\frac{1}{2}}"), self._read("$0.5$"))  # its own caches

    def score(self, sample: Sampled) -> float:
        if sample.finish != "stop" and not self._options.cut:
            return 0.0
        text = self._graded(sample.response)
        return float(bool(text) and self._equal(self._gold(sample.answer), self._read(text)))

    def complaint(self, sample: Sampled) -> str:
        """Returns why a gold answer cannot be graded against; '' if it can."""
        marker = self._options.gold_after
        if marker and marker not in sample.answer:
            return f"found {sample.answer!r:.80}, expected {marker!r} before it (gold_after)"
        if any(not isinstance(found, str) for found in self._gold(sample.answer)):
            return ""
        return f"found {sample.answer!r:.80}, which math-verify cannot read as a number or formula"

    def _graded(self, response: str) -> str:
        """Returns the part of a response that is graded, '' for nothing."""
        last = self._last_boxed(response)
        return last if last or self._options.graded == "boxed" else response

    def _last_boxed(self, text: str) -> str:
        r"""The last `\boxed{}` with its content; math-verify itself takes all of them as a set."""
        start = text.rfind(r"\boxed{")
        content = self._boxed_of(text[start:], "last") if start >= 0 else ""
        return rf"\boxed{{{content}}}" if content else ""

    def _gold(self, answer: str) -> list[Any]:
        if self._options.gold_after:
            answer = answer.rpartition(self._options.gold_after)[2]
        # In a box, or it would not be read as LaTeX.
        return self._read(self._last_boxed(answer) or rf"\boxed{{{answer.strip()}}}")

    def _read(self, text: str) -> list[Any]:
        # Without its own limits, which are alarms of the process: `limit_s` is the limit.
        return self._parse(text, parsing_timeout=None)  # type: ignore[arg-type]

    def _equal(self, gold: list[Any], found: list[Any]) -> bool:
        return self._verify(gold, found, timeout_seconds=None)
