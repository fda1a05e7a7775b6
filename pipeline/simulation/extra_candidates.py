"""Plug-ins around others that ask for variants and forks at random, for the fuzzer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pipeline.plugins.actions import Allocation, AnyAction, Sample
from pipeline.plugins.interfaces import Budget, Finish, Selector, SelectorEvent
from pipeline.plugins.views import BudgetView, GroupView, PromptView

COLUMN = "hint"
_CHANCE = 0.3  # that a member's end makes one more


class _Around:
    """Has all that the plug-in inside has."""

    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


class MoreCandidates(_Around):
    """A selector that also samples a variant, or forks a member, when the one inside is silent.

    Args:
        most: candidates of a group.
    """

    def __init__(self, inside: Selector, most: int) -> None:
        super().__init__(inside)
        self._most = most

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        actions = list(self._inside.decide(group, event))
        if not actions and isinstance(event, Finish) and group.budget < self._most:
            rng = group.rng(f"more/{group.budget}/{event.trajectory}")
            holds = [member for member in group.members if member.tokens > 1]
            if rng.random() < _CHANCE:
                if holds and rng.random() < 0.5:
                    origin = rng.choice(holds)
                    actions.append(Sample(1, fork=(origin.id, rng.randint(1, origin.tokens - 1))))
                else:
                    shares = ("", ":0.5", ":0")
                    actions.append(Sample(1, variant=COLUMN + rng.choice(shares)))
        return actions


class SomeVariants(_Around):
    """A budget whose candidates are of a variant in part, for every second prompt."""

    def __init__(self, inside: Budget) -> None:
        super().__init__(inside)

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        return [
            msgspec.structs.replace(allocation, variants=((1, COLUMN), (1, f"{COLUMN}:0.5")))
            if prompt.prompt % 2 and allocation.candidates > 1
            else allocation
            for prompt, allocation in zip(
                prompts, self._inside.allocate(prompts, view), strict=True
            )
        ]
