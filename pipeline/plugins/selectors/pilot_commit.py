"""Selector `pilot_commit`: judge a prompt by a few pilots, then commit to it, or not.

Turns the accuracy of a group's first candidates, fewer than M, into one of: `Defer`, the prompt is
too hard now and is asked again; `Drop`, it is too easy; `Hold`, it waits with its pilots until the
budget (`pilot_commit` too, or any that gives held groups more) commits to it. A held group whose
oldest token is more than `oldest` versions old is dropped, and when a step closes one that could
not be trained on after it. Once M have been sampled and scored all are trained on. Remembers the
pilots of held groups where `pilots_kept` asks for it.
Source: Pilot-Commit, arXiv 2605.26606. There old logprobs are computed anew for all, which takes
pilots for on-policy; here they keep their versions, and `learner.max_staleness` must be `oldest`
at least. Exclusion from the next epoch is the prompt order's: such groups are dropped as kind
`solved`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Defer, Drop, Hold
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Wants
from pipeline.plugins.ranges import NonNegativeInt, Share
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import (
    by_reward,
    finalize,
    mean_reward,
    reward_of,
    scored,
    settled,
)
from pipeline.plugins.views import EndedView, GroupView, MemberView


class PilotCommitOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `pilot_commit` selector. How many pilots there are the budget says."""

    low: Share = 0.125
    """Accuracy of the pilots below which a prompt is too hard now."""
    up: Share = 0.25
    """A prompt is too easy if the accuracy of its pilots is above 1 - up."""
    solved: Share = 1.0
    """Accuracy of the pilots from which on an easy prompt counts as solved."""
    oldest: NonNegativeInt = 4
    """Versions that the oldest token of a held group may be behind the newest weights."""
    pilots_kept: NonNegativeInt = 0
    """Pilots that are trained on, those whose rewards vary most. 0: all."""

    def problems(self, group_size: int) -> Iterator[str]:
        if self.low > 1 - self.up:
            yield f"low is {self.low:g}, but up is {self.up:g}: at most {1 - self.up:g}"


def most_varied(members: Sequence[MemberView], count: int) -> list[MemberView]:
    """So many scored members with the greatest variance of reward, in their old order.

    No others vary more than some number of the best with the rest from the worst.
    """
    choices = [by_reward(members, high, count - high) for high in range(count + 1)]
    return max(choices, key=lambda chosen: statistics.pvariance(map(reward_of, chosen)))


@register("selector", "pilot_commit")
class PilotCommit:
    Options = PilotCommitOptions
    wants = Wants(reward=True, published=True)

    def __init__(self, options: PilotCommitOptions | None = None) -> None:
        self._options = options or PilotCommitOptions()
        self._pilots: dict[int, list[int]] = {}  # group -> ids, where not all are to be kept

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        members = scored(group)
        if not members:
            yield finalize(members, "no reward")
        elif group.budget >= group.size:
            yield from self._train(group, members)
        elif group.held:
            oldest = min((min(m.versions) for m in members if m.versions), default=group.version)
            too_late = isinstance(event, Barrier) and group.max_staleness > 0 and group.due
            if group.version - oldest > self._options.oldest or too_late:
                yield Drop(why=f"version {oldest} is too old after {group.version}", kind="old")
        else:
            yield self._judge(group, members)

    def _judge(self, group: GroupView, pilots: list[MemberView]) -> AnyAction:
        options, accuracy = self._options, mean_reward(pilots)
        why = f"accuracy {accuracy:.3f} of {len(pilots)} pilots"
        if accuracy < options.low:
            return Defer(why=why, kind="hard")
        if accuracy > 1 - options.up:
            return Drop(why=why, kind="solved" if accuracy >= options.solved else "easy")
        if options.pilots_kept:
            self._pilots[group.id] = [member.id for member in pilots]
        return Hold(why=why, kind="pilots")

    def _train(self, group: GroupView, members: list[MemberView]) -> Iterator[AnyAction]:
        known = self._pilots.get(group.id, ())
        pilots = [member for member in members if member.id in known]
        if len(pilots) > self._options.pilots_kept:
            kept = {m.id for m in most_varied(pilots, self._options.pilots_kept)}
            members = [m for m in members if m.id in kept or m.id not in known]
        yield finalize(members, f"{group.budget} pilots and commits", kind="committed")

    def ended(self, group: EndedView) -> None:
        self._pilots.pop(group.group, None)

    def state(self) -> dict[str, Any]:
        """Returns the pilots of held groups."""
        return {"version": 1, "pilots": [[group, ids] for group, ids in self._pilots.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of pilot_commit: version {state.get('version')}, not 1")
        self._pilots = {int(group): [int(i) for i in ids] for group, ids in state["pilots"]}
