"""Selector `dart_gui`: where every response failed, one is replaced by a stored success.

Turns a group whose members have all ended and failed into one `Include` of the newest success of
its prompt that was trained on earlier, and into a choice of all but one of its own: a task that is
solved now and then still teaches when it is not. All other groups are trained on whole. The core
keeps the successes and saves them in checkpoints; nothing is remembered here.
Source: DART-GUI, arXiv 2509.23866: the replacement. Ours: which failure gives way (the longest, of
which the group learns the least for each token), and how many successes are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Include
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.ranges import NonNegativeInt, PositiveFloat
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, longest_first, reward_of, scored, settled
from pipeline.plugins.views import GroupView


class DartGuiOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `dart_gui` selector."""

    stored: NonNegativeInt = 1024
    """Prompts of which the newest success is kept; of more, those that succeeded last. 0: none, and
    nothing is replaced. A checkpoint holds 8 bytes for each token of them."""
    right: PositiveFloat = 1.0
    """Reward from which on a response is a success."""


@register("selector", "dart_gui")
class DartGui:
    Options = DartGuiOptions

    def __init__(self, options: DartGuiOptions | None = None) -> None:
        self._options = options or DartGuiOptions()
        self.wants = Wants(reward=True, stored=self._options.stored, right=self._options.right)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        members = scored(group)
        own = [member for member in members if not member.foreign]
        failed = len(own) > 1 and all(reward_of(m) < self._options.right for m in own)
        if failed and "stored" in group.foreign:
            yield Include("stored", why=f"all {len(own)} failed", kind="stored")
        elif failed and len(own) < len(members):
            left_out = longest_first(own)[0].id
            chosen = [member for member in members if member.id != left_out]
            yield finalize(chosen, f"a stored success instead of {left_out}")
        else:
            yield finalize(members, "all that were sampled")
