"""Selector `duet`: candidates that pass a checkpoint are stopped by chance, without bias.

Turns a candidate's growth past `checkpoint` tokens into an `Abort` with probability 1 - `keep`,
unless it has shown a marker of its answer by then (`sampling.markers`). One that is drawn for and
passes has loss weight 1 / `keep`, every other one has 1, so that for a fixed baseline the gradient
expected is that of all candidates (Horvitz-Thompson). The draw follows from seed, group and
candidate. Remembers which candidates of open groups have passed, and which were spared.
Source: DUET, arXiv 2605.08441, in our reading; its budget is the budget `duet`. Without markers
every candidate that has not ended is drawn for: as unbiased, with more waste.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Abort, AnyAction
from pipeline.plugins.interfaces import Every, SelectorEvent, Wants
from pipeline.plugins.ranges import PositiveInt, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import EndedView, GroupView


class DuetOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `duet` selector."""

    checkpoint: PositiveInt = 512
    """Tokens at which a candidate that has neither ended nor shown a marker is drawn for; c in the
    paper's terms."""
    keep: PositiveShare = 0.5
    """Probability that it continues; kappa."""


@register("selector", "duet")
class Duet:
    Options = DuetOptions

    def __init__(self, options: DuetOptions | None = None) -> None:
        self._options = options or DuetOptions()
        self.wants = Wants(every=self._options.checkpoint)
        self._passed: dict[int, list[int]] = {}  # open group -> its candidates that have passed
        self._spared: dict[int, list[int]] = {}  # those that had a marker at the checkpoint

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        gone = -1
        if isinstance(event, Every) and event.trajectory not in self._judged(group.id):
            if not self._passes(group, event.trajectory):
                gone = event.trajectory
                options = self._options
                why = f"not ended by {options.checkpoint} tokens; {options.keep:g} continue"
                yield Abort(ids=(gone,), why=why, kind="gated")
        if any(member.id != gone for member in group.unended):
            return
        passed = self._passed.get(group.id, [])
        members = [member for member in group.ended if not member.reward_failed]
        weights = tuple(1 / self._options.keep if m.id in passed else 1.0 for m in members)
        spared = len(self._spared.get(group.id, []))
        why = f"{sum(m.id in passed for m in members)} of {len(members)} passed the checkpoint"
        why += f", {spared} had a marker there" if spared else ""
        yield finalize(members, why, "marked" if spared else "", weights)

    def _judged(self, group: int) -> list[int]:
        return [*self._passed.get(group, []), *self._spared.get(group, [])]

    def _passes(self, group: GroupView, candidate: int) -> bool:
        """Draw for a candidate at its checkpoint, if it has not shown a marker."""
        [member] = [member for member in group.members if member.id == candidate]
        if member.marked is not None:
            self._spared.setdefault(group.id, []).append(candidate)
            return True
        if group.rng(f"gate {candidate}").random() >= self._options.keep:
            return False
        self._passed.setdefault(group.id, []).append(candidate)
        return True

    def ended(self, group: EndedView) -> None:
        self._passed.pop(group.group, None)
        self._spared.pop(group.group, None)

    def state(self) -> dict[str, Any]:
        """Returns which candidates of open groups have passed, and which were spared."""
        known = {"passed": self._passed, "spared": self._spared}
        pairs = {name: [[g, ids] for g, ids in found.items()] for name, found in known.items()}
        return {"version": 2, **pairs}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 2:
            raise ValueError(f"state of duet: version {state.get('version')}, not 2")
        self._passed, self._spared = (
            {int(group): [int(i) for i in ids] for group, ids in state[name]}
            for name in ("passed", "spared")
        )
