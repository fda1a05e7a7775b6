"""Plug-ins around others that ask for variants, forks and foreign responses at random, for the
fuzzer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pipeline.plugins.actions import Allocation, AnyAction, Include, Sample
from pipeline.plugins.interfaces import Budget, Finish, Selector, SelectorEvent, Wants
from pipeline.plugins.views import BudgetView, GroupView, PromptView

COLUMN = "hint"
_CHANCE = 0.3  # that a member's end makes one more
_STORED = 3  # prompts whose newest success is kept


def solutions_of(prompts: int) -> list[bytes]:
    """A response of the data to each prompt, of a few tokens; every fourth has none."""
    return [bytes(range(1, 5)) * (prompt % 4) for prompt in range(prompts)]


class _Around:
    """Has all that the plug-in inside has."""

    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


class MoreCandidates(_Around):
    """A selector that also samples a variant, forks a member or includes a foreign response, when
    the one inside is silent.

    Args:
        most: candidates of a group.
    """

    def __init__(self, inside: Selector, most: int) -> None:
        super().__init__(inside)
        self._most = most

    @property
    def wants(self) -> Wants:
        """Those of the one inside, and successes: of any reward, as what is modelled is random."""
        return msgspec.structs.replace(self._inside.wants, stored=_STORED, right=0.0)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        actions = list(self._inside.decide(group, event))
        if not actions and isinstance(event, Finish) and group.budget < self._most:
            rng = group.rng(f"more/{group.budget}/{event.trajectory}")
            holds = [m for m in group.members if m.tokens > 1 and not m.foreign]
            if group.foreign and rng.random() < _CHANCE:
                actions.append(Include(rng.choice(group.foreign)))
            elif rng.random() < _CHANCE:
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
