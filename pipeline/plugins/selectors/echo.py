"""Selector `echo`: prune branches whose confidence falls; branch where the policy is undecided.

Turns windows of `window` tokens of each running candidate into an `Abort` of those that are weak:
the confidence of the last window is below `floor`; or it fell three times in a row and is `tail`
at most; or the entropy rose three times in a row, at last by more than `jump`. M members are always
left. With `branch` a candidate whose entropy is high and has risen, and whose confidence is low,
gets siblings that share its tokens so far, the more the higher the entropy. All that are left are
trained on. Remembers the last windows of the members of open groups.
Source: ECHO, arXiv 2602.02150, rules as in its code. There both signals are of single tokens, from
the engine's top logprobs. Ours, from what a view offers: confidence is the (geometric) mean
probability of a window's tokens, on a scale of 0 to 1, hence our own limits for it; entropy is the
mean over a response so far, from the learner, so that the published limits are seldom reached. The
siblings draw their next token; there they start from the top ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Abort, AnyAction, Sample
from pipeline.plugins.interfaces import Every, SelectorEvent, Wants
from pipeline.plugins.ranges import PositiveFloat, PositiveInt, PositiveShare, Share
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import ENDED, EndedView, GroupView, MemberView

_FALLS = 3  # windows in a row
_BEFORE = 4  # windows that a rise of the entropy is measured against, and before any branch
_WIDEST = 4


class EchoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `echo` selector."""

    window: PositiveInt = 64
    """Tokens between two looks at a member."""
    floor: Share = 0.4
    """Confidence of a window below which a member is pruned at once."""
    tail: Share = 0.7
    """Confidence at or below which a member is pruned whose confidence falls."""
    jump: PositiveFloat = 0.5
    """Rise of the entropy, nats, above which a member is pruned whose entropy rises."""
    branch: bool = False
    """Sample siblings of undecided members. Needs entropies (`learner.overlap: token`)."""
    entropy: Annotated[float, Meta(gt=1)] = 3.5
    """Entropy, nats, from which on a member is undecided, above 1."""
    rise: PositiveFloat = 0.2
    """By how much it must have risen over the last windows, nats."""
    unsure: PositiveShare = 0.7
    """Confidence at or below which it is undecided."""
    most: Annotated[float, Meta(ge=1, le=64)] = 2.0
    """Candidates of a group at most, siblings included, for each of M."""


def weak(confidences: Sequence[float], rises: Sequence[float], options: EchoOptions) -> str:
    """Why a member with these last windows is pruned; "": it is not."""
    last = confidences[-_FALLS - 1 :]
    if last and last[-1] < options.floor:
        return f"confidence {last[-1]:.2f} is below {options.floor:g}"
    falls = len(last) > _FALLS and all(a > b for a, b in itertools.pairwise(last))
    if falls and last[-1] <= options.tail:
        return f"confidence fell {_FALLS} times, to {last[-1]:.2f}"
    recent = rises[-_FALLS:]
    if len(recent) == _FALLS and min(recent) > 0 and recent[-1] > options.jump:
        return f"entropy rose {_FALLS} times, at last by {recent[-1]:.2f}"
    return ""


def width(entropy: float, confidence: float, high: float, unsure: float) -> int:
    """Branches of an undecided member, itself included, 1 to 4.

    Args:
        high, unsure: entropy from which on, and confidence up to which, it is undecided.
    """
    wide = 1 + 2 * (entropy - 1) / (high - 1) - (confidence - unsure) / unsure
    return min(max(round(wide), 1), _WIDEST)


class Windows(msgspec.Struct):
    """What has been seen of one member, the last windows."""

    tokens: int = 0
    logprob: float = 0.0  # sum over them, nats
    confidences: list[float] = []
    entropies: list[float] = []  # mean of the response so far, at the end of each

    def add(self, member: MemberView) -> None:
        total = member.confidence * member.tokens
        mean = (total - self.logprob) / max(1, member.tokens - self.tokens)
        self.tokens, self.logprob = member.tokens, total
        self.confidences = [*self.confidences, math.exp(mean)][-_BEFORE:]
        if member.entropy is not None:
            self.entropies = [*self.entropies, member.entropy][-_BEFORE - _FALLS :]

    @property
    def rises(self) -> list[float]:
        """Of the entropy over the mean of the four windows before, where there are as many."""
        e = self.entropies
        return [e[i] - math.fsum(e[i - _BEFORE : i]) / _BEFORE for i in range(_BEFORE, len(e))]


@register("selector", "echo")
class Echo:
    Options = EchoOptions

    def __init__(self, options: EchoOptions | None = None) -> None:
        self._options = options or EchoOptions()
        self.wants = Wants(every=self._options.window, entropy=self._options.branch)
        self._seen: dict[int, dict[int, Windows]] = {}  # open group -> member -> windows

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not group.unended:
            members = [member for member in group.ended if not member.reward_failed]
            yield finalize(members, "all that are left")
        elif isinstance(event, Every):
            for member in group.members:
                if member.id == event.trajectory:
                    yield from self._look(group, member)

    def _look(self, group: GroupView, member: MemberView) -> Iterable[AnyAction]:
        options = self._options
        windows = self._seen.setdefault(group.id, {}).setdefault(member.id, Windows())
        windows.add(member)
        confidence, rises = windows.confidences[-1], windows.rises
        left = [m for m in group.members if m.id != member.id and not m.reward_failed]
        why = weak(windows.confidences, rises, options)
        if why and len(left) >= group.size:
            yield Abort(ids=(member.id,), why=why, kind="weak")
            if all(m.state in ENDED for m in left):
                yield finalize(left, "all that are left")
        elif (
            options.branch
            and rises
            and rises[-1] >= options.rise
            and windows.entropies[-1] >= options.entropy
            and confidence <= options.unsure
        ):
            entropy = windows.entropies[-1]
            room = math.floor(options.most * group.size) - group.budget
            n = min(width(entropy, confidence, options.entropy, options.unsure) - 1, room)
            if n > 0:
                why = f"entropy {entropy:.2f}, confidence {confidence:.2f}"
                fork = (member.id, member.tokens)
                yield Sample(n=n, fork=fork, why=why, kind="branch")

    def ended(self, group: EndedView) -> None:
        self._seen.pop(group.group, None)

    def state(self) -> dict[str, Any]:
        """Returns the last windows of the members of open groups."""
        rows = [
            [group, member, *msgspec.structs.astuple(windows)]
            for group, members in self._seen.items()
            for member, windows in members.items()
        ]
        return {"version": 1, "windows": rows}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of echo: version {state.get('version')}, not 1")
        self._seen = {}
        for group, member, *row in state["windows"]:
            self._seen.setdefault(int(group), {})[int(member)] = Windows(*row)
