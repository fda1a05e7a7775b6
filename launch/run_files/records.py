"""Types for the lines of a run's metrics.jsonl and decisions.jsonl.

They have only the fields that are used, so that runs of other versions can be read too;
docs/run-folder.md explains the fields. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from pipeline.observability.critical_path import Segment

Count = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""What is put into arrays of int32: steps, and tokens of one response."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """`audit` of an audited step: what selection changed in what was trained on."""

    reward_shift: float | None = None
    tokens_shift: float | None = None
    advantage_moved: float | None = None  # mean absolute change of a member's advantage
    advantage_shift_by_kind: dict[str, float] = {}
    members_by_kind: dict[str, int] = {}


class StepLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `step` of metrics.jsonl."""

    step: Count
    seconds: float
    tokens_sampled: int
    tokens_trained: int
    generation_s: float
    sampled_per_trained: float | None = None  # None: nothing was trained on
    depth: float | None = None
    bubble_engine: float | None = None
    bubble_learner: float | None = None
    reward: float | None = None
    tokens_mean: float | None = None
    tokens_p95: float | None = None
    ledger: dict[str, int] = {}  # tokens by account, since the start of the run
    paced: str = ""  # emulated pace, in words
    tokens_max: float | None = None
    foreign: dict[str, int] = {}  # members trained on that were not sampled here, their tokens
    audit: Audit | None = None
    learner: dict[str, float | None] = {}  # metrics of the loss; None: not finite

    @property
    def learning_s(self) -> float:
        """Seconds in which a learner rank had work; mean over ranks."""
        return 0.0 if self.bubble_learner is None else self.seconds * (1.0 - self.bubble_learner)


class EvalLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `eval` of metrics.jsonl; `train_s` is added by `learning_curve`."""

    step: Count
    accuracy: float  # share of responses that are correct
    reward: float | None = None  # mean; None: a run of an older version, where it was `accuracy`
    tokens_mean: float
    tokens_p95: float
    samples: int = 0  # responses; 0: not said
    by_tag: dict[str, float] = {}  # mean reward by kind of prompt
    tokens_by_tag: dict[str, float] = {}
    train_s: float = 0.0  # seconds inside the steps before it, without evaluations

    @property
    def mean_reward(self) -> float:
        return self.accuracy if self.reward is None else self.reward

    @property
    def is_accuracy(self) -> bool:
        """True if its mean reward is an accuracy: every reward was 0 or 1."""
        return self.mean_reward == self.accuracy

    @property
    def deep_accuracy(self) -> float | None:
        """Accuracy on the last kind of prompt by name: the deepest, in the built-in tasks."""
        return self.by_tag[max(self.by_tag)] if self.by_tag else None


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """One latency within one step; seconds."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


class Lives(msgspec.Struct, frozen=True, kw_only=True):
    """Trajectories of one percentile group of response length; seconds of a phase are means."""

    group: str
    trajectories: int
    tokens_mean: float
    seconds: dict[str, float]


class Straggler(msgspec.Struct, frozen=True, kw_only=True):
    """The last trained member to end of a group that waited long."""

    group: int
    trajectory: int
    engine: str = ""
    tokens: int
    waited_s: float  # from the end of half of the trained members


class TimingLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `timing` of metrics.jsonl."""

    step: int
    seconds: float
    critical_path: tuple[Segment, ...] = ()
    percentiles: dict[str, Percentiles] = {}
    engines: dict[str, dict[str, float]] = {}
    lives: tuple[Lives, ...] = ()
    stragglers: tuple[Straggler, ...] = ()  # of the groups that waited longest


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A trajectory in a line `group`; its further fields are not read."""

    trajectory: int
    state: str
    tokens: Count
    confidence: float | None
    reward: float | None
    trained: bool


class GroupLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `group` of decisions.jsonl."""

    step: Count
    group: int
    kind: str
    fate: str
    members: tuple[Member, ...]


def pooled_audit(audits: Sequence[Audit]) -> Audit:
    """Returns several audits as one: reward and tokens as means over audits, advantages over
    members."""

    def mean(found: Iterable[tuple[float | None, float]]) -> float | None:
        known = [(value, weight) for value, weight in found if value is not None and weight]
        whole = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / whole if known else None

    members = Counter[str]()
    for audit in audits:
        members.update(audit.members_by_kind)
    by_kind = {
        kind: mean((a.advantage_shift_by_kind.get(kind), a.members_by_kind[kind])
                   for a in audits if kind in a.members_by_kind)
        for kind in members
    }  # fmt: skip
    return Audit(
        reward_shift=mean((audit.reward_shift, 1) for audit in audits),
        tokens_shift=mean((audit.tokens_shift, 1) for audit in audits),
        advantage_moved=mean((a.advantage_moved, sum(a.members_by_kind.values())) for a in audits),
        advantage_shift_by_kind={kind: m for kind, m in by_kind.items() if m is not None},
        members_by_kind=dict(members),
    )


def learning_curve(steps: list[StepLine], evaluations: list[EvalLine]) -> list[EvalLine]:
    """Returns the evaluations, each with the training seconds before it."""
    return [
        msgspec.structs.replace(found, train_s=sum(s.seconds for s in steps if s.step < found.step))
        for found in evaluations
    ]
