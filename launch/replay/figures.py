"""Figures of one run, recorded or simulated, from the coordinator's reports; and their table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.coordinator.events import AnyCommand, AnyEvent, Report
from pipeline.simulation.recorded_workload import Basis


class Figures:
    """An observer of a run. Means are over steps that trained on something; steps that were
    audited count in no figure of time or tokens.

    Args:
        basis: (group, member) -> what its response rests on; {}: everything was recorded.
    """

    def __init__(self, basis: Mapping[tuple[int, int], Basis] | None = None) -> None:
        self._basis = {} if basis is None else basis  # it fills while the run goes on
        self._steps: list[dict[str, Any]] = []
        self._lengths: list[int] = []  # of members trained on
        self._rewards: list[float] = []
        self.trained = self.signal = 0  # groups
        self.rests_on: Counter[Basis] = Counter()
        """Members trained on, by what they rest on."""

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        del now, event
        for command in commands:
            match command:
                case Report(what="step", fields=fields):
                    self._steps.append(fields)
                case Report(what="group", fields=fields) if fields["fate"] == "trained":
                    self._group(fields["group"], fields["members"])
                case _:
                    pass

    def _group(self, group: int, members: Sequence[Sequence[Any]]) -> None:
        rewards: list[float] = []
        for number, (_, _, tokens, _, reward, chosen, *_) in enumerate(members):
            if chosen:
                self._lengths.append(tokens)
                rewards.append(reward)
                self.rests_on[self._basis.get((group, number), Basis.WHOLE)] += 1
        self._rewards += rewards
        self.trained += 1
        self.signal += len(set(rewards)) > 1

    @property
    def steps(self) -> int:
        """Steps that trained on something."""
        return len(self._trained_steps())

    def _trained_steps(self) -> list[dict[str, Any]]:
        return [step for step in self._steps if step["tokens_trained"]]

    def _mean(self, name: str) -> float:
        plain = [step for step in self._trained_steps() if "audit" not in step]
        return _mean([step[name] for step in plain if step.get(name) is not None])

    @property
    def estimated_share(self) -> float:
        """Share of the members trained on whose length or reward is not their own."""
        total = self.rests_on.total()
        return 1.0 - self.rests_on[Basis.WHOLE] / total if total else 0.0

    def rows(self) -> dict[str, str]:
        """Name -> value, as the table shows them."""
        return {
            "generation of a step, s": f"{self._mean('generation_s'):.3f}",
            "tokens sampled, a step": f"{self._mean('tokens_sampled'):.0f}",
            "tokens trained on, a step": f"{self._mean('tokens_trained'):.0f}",
            "mean length trained on": f"{_mean(self._lengths):.1f}",
            "depth": f"{self._mean('depth'):.2f}",
            "mean reward trained on": f"{_mean(self._rewards):.3f}",
            "groups with unlike rewards": f"{self.signal} of {self.trained}",
            "members that rest on an estimate": f"{self.estimated_share:.1%}",
        }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def table(columns: Sequence[tuple[str, Figures]]) -> str:
    """One column for each run."""
    rows = [(name, figures.rows()) for name, figures in columns]
    lines = [f"| | {' | '.join(name for name, _ in rows)} |", "|---" * (1 + len(rows)) + "|"]
    labels = rows[0][1]
    lines += [f"| {label} | {' | '.join(of[label] for _, of in rows)} |" for label in labels]
    return "\n".join(lines)


def estimates(name: str, figures: Figures) -> list[str]:
    """What the figures of a replay rest on, a line for each kind of estimate."""
    total = figures.rests_on.total()
    return [
        f"{name}: {figures.rests_on[basis]} of {total} members trained on: {basis.value}"
        for basis in Basis
        if basis is not Basis.WHOLE and figures.rests_on[basis]
    ]
