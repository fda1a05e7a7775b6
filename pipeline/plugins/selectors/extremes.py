"""Selector `extremes`: of a larger group, train on the best and the worst by reward.

Turns the rewards of all candidates into half of M from each end, ties by arrival; with rewards of
0 and 1 that is as near half right and half wrong as the candidates allow. Remembers nothing.
Source: Sol-RL, arXiv 2604.06916 (96 candidates, the 12 best and the 12 worst). Its cheap
candidates are images, made again in full precision from their noise; a text is trained on as it
was sampled (ours).
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins.actions import AnyAction
from pipeline.plugins.interfaces import SelectorEvent, Stateless, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import by_reward, finalize, scored, settled
from pipeline.plugins.views import GroupView


@register("selector", "extremes")
class Extremes(Stateless):
    wants = Wants(reward=True)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        low = group.size // 2
        chosen = by_reward(scored(group), group.size - low, low)
        yield finalize(chosen, f"{group.size - low} best and {low} worst of {group.budget}")
