"""Selector `xrpo`: hold a group after each round until no group of the step gets more.

Turns a group whose candidates have all been scored into a `Hold`; the budget (`xrpo` too) then
gives rounds of candidates to those that gain most. When nothing runs any more the step closes, and
all candidates of every group are trained on. With `example` a group without any reward is
sampled up to M with another prompt: its own, and behind it a column of the data that shows a
similar problem solved. Remembers nothing between calls.
Held groups are replaced by others unless no more prompts may be opened: `step.tries: 1`.
Source: XRPO, arXiv 2510.06672; sharpening of its advantages is the advantage's. Ours: the example
is a column of the data, not looked up among what was solved in the run.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Hold, Sample
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, mean_reward, reward_of, scored, settled
from pipeline.plugins.views import GroupView


class XrpoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `xrpo` selector."""

    example: str = ""
    """Column of the data with a solved example, for prompts without any reward. Empty: none."""


@register("selector", "xrpo")
class Xrpo:
    Options = XrpoOptions
    wants = Wants(reward=True)

    def __init__(self, options: XrpoOptions | None = None) -> None:
        self._options = options or XrpoOptions()

    @property
    def variants(self) -> tuple[str, ...]:
        """Columns that it names, looked up before a run."""
        return (self._options.example,) if self._options.example else ()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        members, example = scored(group), self._options.example
        if not members or isinstance(event, Barrier):
            yield finalize(members, f"{group.budget} candidates in rounds")
        elif (
            example
            and group.budget < group.size
            and not any(reward_of(m) or m.variant for m in members)
        ):
            why = f"no reward in {len(members)}: {example} is shown"
            yield Sample(n=group.size - group.budget, variant=example, why=why, kind="seeded")
        elif not group.held:
            why = f"mean reward {mean_reward(members):.2f} of {len(members)}"
            yield Hold(why=why, kind="round")
