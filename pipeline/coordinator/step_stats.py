"""Counts what happens in the open step, in one place.

Members and groups are counted as they end, learner metrics as ranks report them.
A checkpoint keeps the struct; what ranks measured is left out, since a resume
trains the step's groups again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from pipeline.coordinator.selection_bias import SelectionBias
from pipeline.coordinator.token_ledger import TokenLedger

_COUNTS_OF_A_PLAN = {"total", "known", "unseen"}
"""Figures of a budget that are candidates or prompts."""


class StepStats(msgspec.Struct, kw_only=True):
    """Counts since the step opened, or since the evaluation before it began: with
    `learner.max_staleness` training responses are sampled and end in that, too."""

    since: float = 0.0
    between: bool = False  # an evaluation runs, and the step has not opened
    ahead_s: float = 0.0
    """Seconds of that evaluation up to the newest token of a training response."""
    lengths: list[int] = msgspec.field(default_factory=list[int])
    """Sampled tokens of members that have ended."""
    rewards: list[float] = msgspec.field(default_factory=list[float])
    """Rewards of members that were scored."""
    parts: dict[str, tuple[float, int]] = msgspec.field(
        default_factory=dict[str, tuple[float, int]]
    )
    """Parts of those rewards: sum and count, by name."""
    fates: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Groups that have ended, by fate and reason."""
    equal: int = 0  # of those, groups with two rewards or more, all equal
    sampled_before: int = 0  # tokens of no evaluation in the ledger when these books were begun
    trained_before: int = 0
    turns: int = 0  # of training responses, passed to environments
    appended: int = 0  # tokens that those answered
    nonfinite: int = 0  # groups whose loss was not finite
    learner: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Metrics of ranks, summed over tokens; the largest for names that end in _max."""
    plan: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """What the budget said of its plans: counts of prompts and candidates summed over the plans
    of the step, other figures of the first plan."""
    shaped: int = 0  # chosen members whose reward the advantage rule changed
    streamed: int = 0  # response tokens sent to learner ranks before their groups were taken
    kinds: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Other actions of the selector and the batch rule, by the kind that they name."""
    replayed: int = 0  # response tokens trained on once more
    foreign: int = 0  # members trained on that were not sampled for their group
    foreign_tokens: int = 0  # of those
    choices: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Groups chosen, by the rule of the selector that chose."""
    topped_up: int = 0  # candidates that a budget gave to open groups
    placed_sooner: int = 0  # legs that got a slot before one of an older group
    waited_for_memory: int = 0  # legs that waited for memory while a slot was free
    predicted: int = 0  # ended responses whose length was predicted before they began
    predicted_off: float = 0.0  # tokens, sum of what it was wrong by
    bias: SelectionBias = msgspec.field(default_factory=SelectionBias)

    @classmethod
    def begin(cls, ledger: TokenLedger, now: float, *, between: bool = False) -> StepStats:
        """A step opens with these books, or the evaluation before it begins."""
        return cls(
            between=between,
            since=now,
            sampled_before=ledger.unevaluated,
            trained_before=ledger.accounts["trained"],
        )

    def token_came(self, now: float) -> None:
        """A token of a training response has come while an evaluation ran."""
        self.ahead_s = now - self.since

    def opened(self, ledger: TokenLedger, now: float) -> StepStats:
        """Return the books of a step that opens now.

        What was sampled for it during the evaluation before it counts as its own, and so do the
        seconds up to then: a run without evaluations needs them, too.
        """
        if not self.between:
            return StepStats.begin(ledger, now)
        self.between, self.since = False, now - self.ahead_s
        return self

    def add_length(self, tokens: int, predicted: float | None) -> None:
        """Count the length of a response that has come to its end.

        Args:
            predicted: what it was expected to be before it began, if anything was.
        """
        self.lengths.append(tokens)
        if predicted is not None:
            self.predicted += 1
            self.predicted_off += abs(tokens - predicted)

    def add_reward(self, reward: float, parts: Mapping[str, float]) -> None:
        """Count the reward of a member."""
        self.rewards.append(reward)
        for name, value in parts.items():
            total, count = self.parts.get(name, (0.0, 0))
            self.parts[name] = (total + value, count + 1)

    def add_fate(self, label: str, rewards: Collection[float] = ()) -> None:
        """Count a group that has ended, with the rewards of its members."""
        self.fates[label] = self.fates.get(label, 0) + 1
        self.equal += len(rewards) > 1 and len(set(rewards)) == 1

    def add_foreign(self, tokens: int) -> None:
        """Count a member that was trained on and not sampled for its group."""
        self.foreign += 1
        self.foreign_tokens += tokens

    def add_plan(self, figures: Mapping[str, float]) -> None:
        """Count what the budget says of a plan; the first one of a step is the largest."""
        if not self.plan:
            self.plan = dict(figures)
            return
        for name in _COUNTS_OF_A_PLAN & figures.keys():
            self.plan[name] = self.plan.get(name, 0.0) + figures[name]

    def add_kind(self, kind: str, *, chosen: bool = False) -> None:
        """Count an action that names its kind; `chosen`: it chose a group's members."""
        if kind:
            counts = self.choices if chosen else self.kinds
            counts[kind] = counts.get(kind, 0) + 1

    def add_learner(self, metrics: Mapping[str, float]) -> None:
        """Count what a rank measured while it trained on a group."""
        for name, value in metrics.items():
            known = self.learner.get(name, 0.0)
            self.learner[name] = max(known, value) if name.endswith("_max") else known + value

    def saved(self, now: float) -> StepStats:
        """A copy for a checkpoint; `since` is how long the step has been open."""
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=StepStats)
        copy.since, copy.nonfinite = round(now - self.since, 3), 0
        copy.learner, copy.bias = {}, SelectionBias()
        return copy
