"""Tables of what selection changes (the bias account): of real runs, and simulated ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from launch.run_files.records import Audit, pooled_audit
from launch.simulate.scenario import Scenario, run_method
from pipeline.coordinator.selection_bias import KINDS
from pipeline.simulation.workload import Lengths

BIAS_HEAD = (
    "| run | audited steps | reward | tokens | advantage, absolute | "
    + " | ".join(kind.replace("_", " and ") for kind in KINDS)
    + " |\n|"
    + "---|" * (5 + len(KINDS))
)
_SELECTORS = {
    "first_m": ("selector=first_m",),
    "shortest": ("selector=shortest",),
    "dual_end, long_wait: group": ("selector.dual_end.long_wait=group",),
    "dual_end, long_wait: step (the default)": ("selector.dual_end.long_wait=step",),
    "concise_confident, depth: step": ("selector.concise_confident.depth=step",),
    "concise_confident, depth: none": ("selector.concise_confident.depth=none",),
}
_PROMPTS = {"verbose": 0.0, "deep": 1.0}
"""Kind of prompts -> share of them whose longer responses are right more often."""


def bias_row(name: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """Formats what selection changed, over the audited steps: in mean reward and length (chosen
    candidates minus all), and in the advantages of what was trained on, by kind of member."""
    audits = [msgspec.convert(step["audit"], Audit) for step in steps if "audit" in step]
    found = pooled_audit(audits)
    signed = [found.advantage_shift_by_kind.get(kind) for kind in KINDS]
    moved = "-" if found.advantage_moved is None else f"{found.advantage_moved:.3g}"
    before, after = (
        ["-" if value is None else f"{value:+.3g}" for value in values]
        for values in ((found.reward_shift, found.tokens_shift), signed)
    )
    return f"| {name} | {len(audits)} | {' | '.join([*before, moved, *after])} |"


def simulated_bias(say: Callable[[str], None]) -> list[str]:
    """Measures every selector on verbose prompts, and on deep ones: rows of a table.

    128 prompts x 12 candidates, M = 8, on 8 engines of 7B; no learning, two audited steps.
    """
    rows: list[str] = []
    for kind, deep in _PROMPTS.items():
        lengths = Lengths(median=1200, between=0.45, within=0.8, deep=deep)
        scenario = Scenario(engines=8, steps=2, lengths=lengths, limit=32768)
        for name, overrides in _SELECTORS.items():
            _, simulation = run_method(scenario, (*overrides, "audit.every=1"))
            rows.append(bias_row(f"{kind} prompts: {name}", simulation.of("step")))
            say(rows[-1])
    return rows
