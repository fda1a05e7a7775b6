"""What is read of the lines that a run leaves: metrics.jsonl and decisions.jsonl.

Only the fields that a figure is made of, so that runs of other versions are read too; what
they mean is in docs/run-folder.md. Pure.
"""

from __future__ import annotations

import msgspec

from pipeline.observability.critical_path import Segment


class StepLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `step` of metrics.jsonl."""

    step: int
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

    @property
    def learning_s(self) -> float:
        """Seconds in which a learner rank had work, mean over ranks."""
        return 0.0 if self.bubble_learner is None else self.seconds * (1.0 - self.bubble_learner)


class EvalLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `eval` of metrics.jsonl; `train_s` is added by `curve`."""

    step: int
    accuracy: float
    tokens_mean: float
    tokens_p95: float
    by_tag: dict[str, float] = {}  # accuracy by kind of prompt
    tokens_by_tag: dict[str, float] = {}
    train_s: float = 0.0  # seconds inside steps up to it: evaluations cost nothing

    @property
    def deep_accuracy(self) -> float | None:
        """Of the last kind of prompt by name: the deepest, in the tasks of the house."""
        return self.by_tag[max(self.by_tag)] if self.by_tag else None


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of one latency within one step; seconds."""

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
    """Of a group that waited long: the last to end of those that it was trained on."""

    group: int
    trajectory: int
    engine: str = ""
    tokens: int
    waited_s: float  # since half of them had ended


class TimingLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `timing` of metrics.jsonl."""

    step: int
    seconds: float
    critical_path: tuple[Segment, ...] = ()
    percentiles: dict[str, Percentiles] = {}
    engines: dict[str, dict[str, float]] = {}
    lives: tuple[Lives, ...] = ()
    stragglers: tuple[Straggler, ...] = ()  # of the few groups that waited longest


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A trajectory in a line `group`; what follows in the line is left out."""

    trajectory: int
    state: str
    tokens: int
    confidence: float | None
    reward: float | None
    trained: bool


class GroupLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line `group` of decisions.jsonl."""

    step: int
    group: int
    kind: str
    fate: str
    members: tuple[Member, ...]


def learning_curve(steps: list[StepLine], evaluations: list[EvalLine]) -> list[EvalLine]:
    """The evaluations, with the training seconds at each."""
    return [
        msgspec.structs.replace(found, train_s=sum(s.seconds for s in steps if s.step < found.step))
        for found in evaluations
    ]
