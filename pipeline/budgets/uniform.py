"""Budget `uniform`: every prompt gets the same number of candidates.

M' = redundancy x M, rounded to the nearest whole number, halves up, never below M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline import plugins
from pipeline.plugins import register
from pipeline.verbs import Allotment
from pipeline.views import PromptView


class UniformOptions(plugins.Options, frozen=True, kw_only=True):
    """Options of the `uniform` budget."""

    redundancy: float = 1.5
    """Candidates sampled for each trajectory trained on; 1: no spare."""

    def problems(self, group_size: int) -> Iterator[str]:
        if not 1 <= self.redundancy <= 64:
            yield f"redundancy is {self.redundancy}, expected from 1 to 64"


@register("budget", "uniform")
class Uniform:
    Options = UniformOptions

    def __init__(self, options: UniformOptions | None = None) -> None:
        self._options = options or UniformOptions()

    def allot(
        self, prompts: Sequence[PromptView], size: int, max_tokens: int
    ) -> Sequence[Allotment]:
        candidates = max(size, math.floor(self._options.redundancy * size + 0.5))
        return [Allotment(candidates=candidates, max_tokens=max_tokens) for _ in prompts]
