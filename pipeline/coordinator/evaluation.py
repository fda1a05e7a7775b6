"""Evaluation: held-out prompts, sampled between a publish and the next step's prompts.

All of one policy version: a response is placed only on an engine that has proved the newest
version, and the learner makes no other before the evaluation has ended (`other_version` counts
what would break this). The figures of each set are `SetTally`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import Group, TrajectoryState
from pipeline.coordinator.state import CoordinatorState
from pipeline.coordinator.step_metrics import length_metrics, pass_at
from pipeline.coordinator.step_stats import StepStats
from pipeline.plugins.views import EvalSet


class Evaluations:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self.last_step = -1  # step at which the last one was finished
        self.history: list[dict[str, float]] = []
        self._open = self._begun = 0  # groups
        self._tallies: list[SetTally] = []
        self._other_version = 0
        self._since = 0.0
        self.numbers_before = (0, 0)  # of the next group and trajectory, when it began

    def due(self, final: bool) -> bool:
        """Returns True before the first step, every `eval_every` steps, and after the last."""
        every = self._core.settings.eval_every
        step = self._core.step
        return bool(every) and self.last_step != step and (step % every == 0 or final)

    @property
    def left(self) -> int:
        """Evaluations that are still to be finished, one under way included."""
        settings, step = self._core.settings, self._core.step
        if not settings.eval_every:
            return 0
        later = range(step, settings.steps + 1)
        due = {s for s in later if s % settings.eval_every == 0} | {settings.steps}
        return len(due - {self.last_step})

    def begin(self, group_manager: GroupManager) -> None:
        core, settings = self._core, self._core.settings
        if not core.stats.between:  # else it starts again after a resume
            core.stats = StepStats.begin(core.ledger, core.now, between=True)
        limit = settings.eval_max_tokens or settings.max_tokens
        self._tallies = [SetTally(of, settings.eval_correct) for of in self._sets()]
        self._since, self._other_version = self._core.now, 0
        self.numbers_before = (self._core.next_group, self._core.next_trajectory)
        self._open = 0
        for tally in self._tallies:
            for prompt in tally.prompts:
                count = tally.of.samples
                group_manager.open("eval", prompt, 0, count, limit, count)
                self._open += 1
                if settings.eval_greedy:
                    group_manager.open("eval", prompt, 0, 1, limit, 1, greedy=True)
                    self._open += 1
        self._begun = self._open

    def _sets(self) -> tuple[EvalSet, ...]:
        settings = self._core.settings
        samples = settings.eval_samples
        whole = EvalSet(name="", first=0, count=settings.held_out, samples=samples, k=(samples,))
        return settings.eval_sets or (whole,)

    def add(self, group: Group) -> None:
        """All samples of a held-out prompt are scored."""
        self._open -= 1
        tags = self._core.settings.held_out_tags
        tag = tags[group.prompt] if tags else ""
        [tally] = [tally for tally in self._tallies if group.prompt in tally.prompts]
        tally.add(group, tag)
        version = [self._core.version]
        self._other_version += sum(m.versions not in ([], version) for m in group.members)

    @property
    def done(self) -> bool:
        return self._open == 0

    @property
    def open(self) -> int:
        return self._open

    @property
    def untouched(self) -> bool:
        """True if an evaluation is running and none of its groups has finished."""
        return 0 < self._open == self._begun

    def finish(self) -> None:
        found = {tally.of.name: tally.metrics() for tally in self._tallies}
        # Without prompts of `data.held_out` the first set stands for the run.
        metrics: dict[str, float] = {
            **(found.get("") or next(iter(found.values()))),
            "other_version": self._other_version,
            "seconds": self._core.now - self._since,
        }
        sets = {name: metrics for name, metrics in found.items() if name}
        self.last_step = self._core.step
        named = {f"{s}/{k}": value for s, of in sets.items() for k, value in of.items()}
        self.history.append({"step": self._core.step, **metrics, **named})
        by_tag: dict[str, Any] = {}
        for tally in self._tallies:
            if not tally.of.name:
                by_tag = {"by_tag": _means(tally.by_tag), "tokens_by_tag": _means(tally.tokens)}
        self._core.report(
            "eval",
            **metrics,
            **by_tag,
            **({"sets": sets} if sets else {}),
            version=self._core.version,
        )

    def ranked(self) -> list[int]:
        """Steps by `eval.best`, the best first; of equal ones the earlier. Without step 0, at
        which nothing is trained, and empty where nothing is asked for."""
        key = self._core.settings.eval_best
        known = [found for found in self.history if key in found and found["step"] > 0]
        return [int(f["step"]) for f in sorted(known, key=lambda f: -f[key])] if key else []

    @property
    def newest_is_best(self) -> bool:
        return self.ranked()[:1] == [self.last_step]


class SetTally:
    """Counts the results of one set in one evaluation.

    Args:
        correct: reward from which on a response counts as correct.
    """

    def __init__(self, of: EvalSet, correct: float) -> None:
        self.of, self._correct = of, correct
        self.prompts = range(of.first, of.first + of.count)
        self.by_tag: dict[str, list[float]] = {}  # rewards by kind of prompt
        self.tokens: dict[str, list[float]] = {}
        self._rewards: list[list[float]] = []  # of each prompt
        self._lengths: list[int] = []
        self._greedy: list[float] = []
        self._truncated = self._missing = 0

    def add(self, group: Group, tag: str) -> None:
        rewards = [m.reward for m in group.members if m.reward is not None]
        if group.greedy:
            self._greedy += rewards
            return
        self._rewards.append(rewards)
        ended = [m for m in group.members if m.state is not TrajectoryState.ABORTED]
        self._lengths += [m.sampled for m in ended]
        self._truncated += sum(m.state is TrajectoryState.TRUNCATED for m in ended)
        self._missing += sum(m.reward is None for m in ended)
        if tag:
            self.by_tag.setdefault(tag, []).extend(rewards)
            self.tokens.setdefault(tag, []).extend(float(m.sampled) for m in ended)

    def metrics(self) -> dict[str, float]:
        """`reward` is avg@k, the mean of k samples a prompt, and `accuracy` the share of them that
        are correct: the same where rewards are 0 or 1. Prompts of which fewer than k samples have
        a reward are left out of pass@k."""
        every = [reward for rewards in self._rewards for reward in rewards]
        found: dict[str, float] = {
            "reward": _mean(every),
            "accuracy": _mean([float(value >= self._correct) for value in every]),
            **length_metrics(self._lengths),
            "truncated": self._truncated / max(1, len(self._lengths)),
            "samples": len(self._lengths),
            "missing": self._missing,
        }
        right = [(len(r), sum(value >= self._correct for value in r)) for r in self._rewards]
        for k in self.of.k:
            found[f"pass@{k}"] = _mean([pass_at(k, n, c) for n, c in right if n >= k])
        if self._greedy:
            found["greedy"] = _mean(self._greedy)
        return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _means(by_tag: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {tag: _mean(found) for tag, found in sorted(by_tag.items())}
