"""Batch rule `replay`: part of each step are groups that were trained on before.

When a step begins, (1 - `fresh`) of the groups needed are drawn from those that are kept
(`step.keep`): of each prompt its newest group, unless its mean reward is 0 or 1; fewer while
there are not so many, so the first step is all fresh. The rest is as with `fifo`. Replayed tokens
keep advantages and behaviour logprobs, and the loss clips the ratio to these. Rewards are from
0 to 1.

`draw: uniform` is the published replay. `draw: pool` weighs as TTI does its pool of successful
trajectories: half by recency, (rank + 1)^`power`, half by the rarity of the group's tag.
Source: rollout replay, arXiv 2506.05316 (fresh .5, 512 kept); TTI, arXiv 2506.07976. Remembers
nothing: the draw follows from `seed` and the step.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from pipeline.plugins import interfaces
from pipeline.plugins.actions import BatchAction
from pipeline.plugins.actions import Replay as ReplayAction
from pipeline.plugins.batch_rules.fifo import Fifo
from pipeline.plugins.ranges import NonNegativeFloat, NonNegativeInt, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.views import BatchView, KeptView


class ReplayOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `replay` batch rule."""

    fresh: PositiveShare = 0.5
    """Share of the step's groups that are new, above 0 and at most 1; sigma."""
    draw: Literal["uniform", "pool"] = "uniform"
    """`uniform`: each kept group is as likely; `pool`: newer ones and rarer tags are likelier."""
    power: NonNegativeFloat = 1.0
    """With `draw: pool`, how much newer ones are preferred; 0: not at all."""
    seed: NonNegativeInt = 0
    """Another seed, another draw."""


def eligible(kept: Sequence[KeptView]) -> list[KeptView]:
    """The newest group of each prompt, unless all or none of it was right; oldest first."""
    newest = {group.prompt: group for group in kept}
    return [group for group in kept if newest[group.prompt] is group and 0 < group.reward < 1]


def pool_weights(tags: Sequence[str], power: float) -> list[float]:
    """Weights of a pool, oldest first: half by recency, half by rarity of the tag; they sum to 1.

    >>> [round(weight, 6) for weight in pool_weights(["A", "A", "B"], 1.0)]
    [0.208333, 0.291667, 0.5]
    """
    recency = [(rank + 1) ** power for rank in range(len(tags))]
    counts = Counter(tags)
    rarity = [1 / counts[tag] for tag in tags]
    return [
        0.5 * new / sum(recency) + 0.5 * rare / sum(rarity)
        for new, rare in zip(recency, rarity, strict=True)
    ]


@register("batch", "replay")
class Replay:
    Options = ReplayOptions

    def __init__(self, options: ReplayOptions | None = None) -> None:
        self._options = options or ReplayOptions()
        self._fifo = Fifo()

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        begins = not view.taken and not view.closing
        if begins and not any(view.facts(group).replay for group in view.groups()):
            drawn = self._drawn(view)
            if drawn:
                yield ReplayAction(groups=drawn, why=f"{len(drawn)} of {len(view.kept)} kept")
                view = msgspec.structs.replace(view, taken=len(drawn))
        yield from self._fifo.decide(view)

    def _drawn(self, view: BatchView) -> tuple[int, ...]:
        pool = eligible(view.kept)
        wanted = min(round((1 - self._options.fresh) * view.need), len(pool))
        rng = random.Random(f"{self._options.seed}/replay/{view.step}")
        if self._options.draw == "uniform":
            return tuple(group.group for group in rng.sample(pool, wanted))
        drawn: list[int] = []
        for _ in range(wanted):
            weights = pool_weights([group.tag for group in pool], self._options.power)
            [index] = rng.choices(range(len(pool)), weights)
            drawn.append(pool.pop(index).group)
        return tuple(drawn)
