"""Selector `duet`: candidates that pass a checkpoint are stopped by chance, without bias.

Turns a candidate's growth past `checkpoint` tokens into an `Abort` with probability 1 - `keep`.
One that passes has loss weight 1 / `keep`, one that had ended before has 1, so that for a fixed
baseline the gradient expected is that of all candidates (Horvitz-Thompson). The draw follows from
seed, group and candidate. Remembers which candidates of open groups have passed.
Source: DUET, arXiv 2605.08441, in our reading; its budget is the budget `duet`. Left out: there a
candidate that has shown a marker of an answer by then is not drawn for, and has weight 1. Views
have no tokens, so every candidate is taken as unmarked, and what has answered but not ended is
drawn for too: the estimate stays unbiased, with more waste.
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
    """Tokens at which a candidate that has not ended is drawn for; c in the paper's terms."""
    keep: PositiveShare = 0.5
    """Probability that it continues; kappa."""


@register("selector", "duet")
class Duet:
    Options = DuetOptions

    def __init__(self, options: DuetOptions | None = None) -> None:
        self._options = options or DuetOptions()
        self.wants = Wants(every=self._options.checkpoint)
        self._passed: dict[int, list[int]] = {}  # open group -> its candidates that have passed

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        passed = self._passed.get(group.id, [])
        gone = -1
        if isinstance(event, Every) and event.trajectory not in passed:
            keep = self._options.keep
            if group.rng(f"gate {event.trajectory}").random() < keep:
                passed = self._passed[group.id] = [*passed, event.trajectory]
            else:
                gone = event.trajectory
                why = f"not ended by {self._options.checkpoint} tokens; {keep:g} continue"
                yield Abort(ids=(gone,), why=why, kind="gated")
        if any(member.id != gone for member in group.unended):
            return
        members = [member for member in group.ended if not member.reward_failed]
        weights = tuple(1 / self._options.keep if m.id in passed else 1.0 for m in members)
        why = f"{sum(m.id in passed for m in members)} of {len(members)} passed the checkpoint"
        yield finalize(members, why, weights=weights)

    def ended(self, group: EndedView) -> None:
        self._passed.pop(group.group, None)

    def state(self) -> dict[str, Any]:
        """Returns which candidates of open groups have passed."""
        return {"version": 1, "passed": [[group, ids] for group, ids in self._passed.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of duet: version {state.get('version')}, not 1")
        self._passed = {int(group): [int(i) for i in ids] for group, ids in state["passed"]}
