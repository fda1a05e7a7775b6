"""Evaluation: held-out prompts, sampled between a publish and the next step's prompts.

Also the figures of lengths and rewards that steps and evaluations are reported by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.core import Core
from pipeline.groups import Group, State
from pipeline.roster import Roster


def length_figures(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, 95th percentile and maximum of response lengths, tokens; zeros for none."""
    ordered = sorted(lengths)
    count = len(ordered)
    return {
        "tokens_mean": sum(ordered) / max(1, count),
        "tokens_p95": ordered[min(count - 1, int(0.95 * count))] if count else 0,
        "tokens_max": ordered[-1] if count else 0,
    }


def step_figures(core: Core, roster: Roster, opened: int, since: float) -> dict[str, Any]:
    """What is reported of a step that has ended; lengths and rewards of all its candidates."""
    return {
        "version": core.version,
        "groups": dict(roster.fates),
        "opened": opened,
        "samples": len(roster.lengths),
        "reward": sum(roster.rewards) / max(1, len(roster.rewards)),
        **length_figures(roster.lengths),
        "seconds": core.now - since,
        "ledger": {"sampled": core.ledger.sampled, **core.ledger.accounts},
    }


class Evaluations:
    def __init__(self, core: Core) -> None:
        self._core = core
        self.last_step = -1  # step at which the last one was finished
        self.history: list[dict[str, float]] = []
        self._open = 0
        self._rewards: list[float] = []
        self._lengths: list[int] = []
        self._truncated = 0
        self._missing = 0
        self._since = 0.0

    def due(self, final: bool) -> bool:
        """Before the first step, every `eval_every` steps, and after the last."""
        every = self._core.settings.eval_every
        step = self._core.step
        return bool(every) and self.last_step != step and (step % every == 0 or final)

    def begin(self, roster: Roster) -> None:
        settings = self._core.settings
        self._rewards, self._lengths, self._truncated, self._missing = [], [], 0, 0
        self._since = self._core.now
        self._open = settings.held_out
        for prompt in range(settings.held_out):
            roster.open(
                "eval", prompt, 0, settings.eval_samples, settings.max_tokens, settings.eval_samples
            )

    def add(self, group: Group) -> None:
        """All samples of a held-out prompt are scored."""
        self._open -= 1
        for member in group.members:
            if member.state is State.ABORTED:
                continue
            self._lengths.append(member.held)
            self._truncated += member.state is State.TRUNCATED
            if member.reward is None:
                self._missing += 1
            else:
                self._rewards.append(member.reward)

    @property
    def done(self) -> bool:
        return self._open == 0

    @property
    def open(self) -> int:
        return self._open

    def finish(self) -> None:
        count = max(1, len(self._lengths))
        figures: dict[str, float] = {
            "accuracy": sum(self._rewards) / max(1, len(self._rewards)),
            **length_figures(self._lengths),
            "truncated": self._truncated / count,
            "samples": len(self._lengths),
            "missing": self._missing,
            "seconds": self._core.now - self._since,
        }
        self.last_step = self._core.step
        self.history.append({"step": self._core.step, **figures})
        self._core.report("eval", **figures, version=self._core.version)
