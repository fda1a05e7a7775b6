"""Budget `pilot_commit`: a few pilots for every prompt, and the rest where rewards vary most.

Turns a plan into pilots, fewer than M, and the rewards of held groups into the candidates that are
missing to M: first where the rewards of the pilots deviate most, of equal ones the newest. As many
groups are committed to at once as a step trains on. The selector is `pilot_commit` too: it holds
the groups that are worth it, and ends the others.
Source: Pilot-Commit, arXiv 2605.26606: a quarter are pilots (32 of 128, 16 of 64), and three times
as many prompts are judged as a step trains on. There pilots and commits of one round are generated
together. Here the first commits wait for one such round, or for all pilots that were asked for;
later ones are made as soon as others are done, and any with slots that are idle.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Allocation
from pipeline.plugins.ranges import AtLeastOne
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView


class PilotCommitOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `pilot_commit` budget."""

    pilots: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    """Share of M that are pilots, above 0 to below 1; two at least."""
    judged: AtLeastOne = 3.0
    """Prompts that are judged before the first commit, for each that a step trains on."""

    def problems(self, group_size: int) -> Iterator[str]:
        if pilots_of(self, group_size) >= group_size:
            yield f"pilots is {self.pilots:g}, but group.size is {group_size}: none would be left"


def pilots_of(options: PilotCommitOptions, size: int) -> int:
    """Pilots for a group of `size`."""
    return max(2, math.floor(options.pilots * size + 0.5))


def deviation(group: OpenView) -> float:
    """Deviation of the rewards known of a group."""
    return statistics.pstdev(group.rewards) if group.rewards else 0.0


@register("budget", "pilot_commit")
class PilotCommit:
    Options = PilotCommitOptions
    on_rewards = True

    def __init__(self, options: PilotCommitOptions | None = None) -> None:
        self._options = options or PilotCommitOptions()
        self._need = 0  # groups of a step, as the last plan had it
        self._piloted = 0  # prompts in all

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        self._need, self._piloted = view.need, self._piloted + len(prompts)
        pilots = pilots_of(self._options, view.size)
        return [Allocation(pilots, view.max_tokens, f"{pilots} pilots")] * len(prompts)

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        pilots = [group for group in groups if group.sampled < group.size]
        held = [group for group in pilots if group.held]
        held.sort(key=lambda group: (-deviation(group), -group.opened, -group.id))
        undecided = len(pilots) - len(held)
        may = not undecided or self._piloted - undecided >= self._options.judged * self._need
        room = max(0, self._need - (len(groups) - len(pilots)))
        given: list[tuple[int, int]] = []
        for group in held[:room]:
            missing = group.size - group.sampled
            if not may and missing > idle:
                break
            idle -= missing
            given.append((group.id, missing))
        return given

    def state(self) -> dict[str, Any]:
        """Returns how many groups a step trains on, and how many prompts had pilots."""
        return {"version": 1, "need": self._need, "piloted": self._piloted}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of pilot_commit: version {state.get('version')}, not 1")
        self._need, self._piloted = int(state["need"]), int(state["piloted"])
