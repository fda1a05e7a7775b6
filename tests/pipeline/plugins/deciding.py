"""Questions to selectors, as their tests ask them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Finalize
from pipeline.plugins.interfaces import Rewarded, SelectorEvent
from pipeline.plugins.testing import group_of, illegal
from pipeline.plugins.views import GroupView

EVENT = Rewarded(trajectory=0)


def decide(
    selector: interfaces.Selector, group: GroupView, event: SelectorEvent = EVENT
) -> list[AnyAction]:
    """Its answer, every action of which is legal."""
    actions = list(selector.decide(group, event))
    assert illegal(group, actions) == []
    return actions


def chosen(actions: list[AnyAction]) -> tuple[int, ...]:
    """The members that an answer chooses and is nothing else than that."""
    [action] = actions
    assert isinstance(action, Finalize)
    return action.ids


def scored_group(rewards: Sequence[float], *, size: int, **given: Any) -> GroupView:
    """All have ended, in this order, with 10 tokens each unless `finished` says more."""
    finished = given.pop("finished", dict.fromkeys(range(len(rewards)), 10))
    known = dict(zip(finished, rewards, strict=True))
    return group_of(size=size, finished=finished, rewards=known, **given)
