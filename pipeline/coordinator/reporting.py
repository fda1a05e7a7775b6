"""The record of a step: what the ranks measured, summed up, beside what the coordinator saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.coordinator.group_manager import Roster
from pipeline.coordinator.scheduler import Placement
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.state import Core
from pipeline.coordinator.step_metrics import step_figures, token_figures


class StepReport:
    """Of the open step; `begin` forgets the one before."""

    def __init__(
        self, core: Core, placement: Placement, roster: Roster, selection: Selection
    ) -> None:
        self._core, self._placement = core, placement
        self._roster, self._selection = roster, selection
        self._sums: dict[str, float] = {}  # over tokens; the largest for names in _max
        self.newest: dict[str, Any] = {}  # figures of the step that was reported last
        self.normaliser = 0.0
        self._logprob_s = self._hidden_s = 0.0  # over all steps since the start or resume

    @property
    def hidden_share(self) -> float | None:
        """Of the seconds of forwards for old and reference logprobs, the share that ran while
        groups of the step were still to come; None if there were none."""
        return round(self._hidden_s / self._logprob_s, 4) if self._logprob_s else None

    def begin(self) -> None:
        self._sums = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """What a rank measured while it trained on a group."""
        for name, value in metrics.items():
            known = self._sums.get(name, 0.0)
            self._sums[name] = max(known, value) if name.endswith("_max") else known + value

    def write(
        self,
        figures: Mapping[str, float],
        learner: Mapping[str, float],
        *,
        opened: int,
        since: float,
        sampled_before: int,
        trained_before: int,
    ) -> None:
        """Report the step, and warn of what its audit shows."""
        core = self._core
        self._logprob_s += learner.get("logprob_s", 0.0)
        self._hidden_s += learner.get("logprob_hidden_s", 0.0)
        bias = self._selection.account.take()
        alarm, shift = core.settings.audit_alarm, bias.get("advantage_shift", 0.0)
        if alarm and abs(shift) > alarm:
            text = f"audit: selection moves the mean advantage by {shift:+.2f} (audit.alarm)"
            core.report("warning", text=text)
        whole = max(1.0, self.normaliser)
        computed = self._sums.pop("computed", whole)
        means = {
            name: value
            if name.endswith("_max")
            else value / (whole if name == "loss" else computed or 1.0)
            for name, value in self._sums.items()
        }
        if self._sums:
            means["computed_share"] = min(1.0, computed / whole)  # a forgotten group's are in it
        ledger = core.ledger
        epochs = getattr(core.seams.prompts, "epochs", dict[str, float]())
        self.newest = {
            "step": core.step,
            "opened": opened,
            **step_figures(core, self._roster, since),
            **token_figures(
                ledger.sampled - sampled_before, ledger.accounts["trained"] - trained_before
            ),
            **({"epochs": epochs} if epochs else {}),
            **figures,
            **self._placement.occupancy.figures(core.now),
            **({"audit": bias} if bias else {}),
            "learner": {**means, **learner},
        }
        core.report("step", **self.newest)
