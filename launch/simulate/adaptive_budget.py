"""Adaptive budgets beside uniform ones that sample as much: a table of simulated runs.

7B on H20, 128 prompts x 8 of a data set of 512, so that each prompt is sampled about five times.
`length_variance` with `mean: 0` chooses how much it samples; the uniform budget beside it is
read off runs with 8 to 16 candidates a prompt, at the same number of sampled tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from launch.simulate.scenario import Scenario, run_method

ENGINES = (8, 32, 64)
BUDGETS: dict[str, tuple[str, ...]] = {
    "lambda 0.5": (),
    "lambda 2": ("time_weight=2",),
    "lambda 8": ("time_weight=8",),
    "lambda 8, spare 2": ("time_weight=8", "spare=2"),
    "lambda 8, by M-th finish": ("time_weight=8", "by=mth_finish"),
}
SELECTORS: dict[str, tuple[str, ...]] = {
    "published": ("selector.dual_end.long_wait=group", "selector.dual_end.prune_at=2"),
    "barrier": ("selector.dual_end.long_wait=step",),
}
_UNIFORM = (8, 9, 10, 12, 14, 16)  # candidates of a prompt
_DATASET, _PROMPTS, _STEPS = 512, 128, 20


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run; means over its steps after the first epoch."""

    seconds: float  # of a step
    sampled: float  # tokens a step
    trained: float  # tokens a step
    depth: float
    candidates: float  # a prompt
    pruned: float  # share of the groups
    expected: float  # predicted over measured seconds of generation, median; 0: not predicted


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An adaptive run, and the uniform one that samples as many tokens."""

    engines: int
    selector: str
    budget: str
    adaptive: Point
    uniform_s: float  # seconds of a uniform step with as many tokens sampled


def budget_table(progress: Callable[[str], None], steps: int = _STEPS) -> list[Row]:
    """Compares both budgets at 8, 32 and 64 engines."""
    rows: list[Row] = []
    for engines in ENGINES:
        scenario = Scenario(
            engines=engines,
            dataset=_DATASET,
            prompts=_PROMPTS,
            steps=steps,
            learner_gpus=4 * engines,
        )
        rows += compare_budgets(scenario, progress)
    return rows


def compare_budgets(scenario: Scenario, progress: Callable[[str], None]) -> list[Row]:
    """Compares both budgets in one scenario, with each selector."""
    rows: list[Row] = []
    for selector, choice in SELECTORS.items():
        uniform = [
            _point(scenario, (*choice, f"budget.uniform.redundancy={count / scenario.size}"))
            for count in _UNIFORM
        ]
        for name, options in BUDGETS.items():
            own = (f"budget.length_variance.{option}" for option in ("mean=0", *options))
            found = _point(scenario, (*choice, "budget=length_variance", *own))
            rows.append(
                Row(
                    engines=scenario.engines,
                    selector=selector,
                    budget=name,
                    adaptive=found,
                    uniform_s=seconds_at(uniform, found.sampled),
                )
            )
            progress(f"{scenario.engines} engines, {selector}, {name}: {found.seconds:.1f} s")
    return rows


def _point(scenario: Scenario, overrides: Sequence[str]) -> Point:
    _, simulation = run_method(scenario, overrides)
    first = scenario.dataset // scenario.prompts  # steps in which no prompt has been seen
    every = simulation.of("step")
    steps = every[first:]
    ratios = [
        step["generation_predicted_s"] / step["generation_s"]
        for step in steps
        if "generation_predicted_s" in step
    ]
    plans = [step["budget"]["mean"] for step in steps if "budget" in step]
    return Point(
        seconds=(steps[-1]["time"] - every[first - 1]["time"]) / len(steps),
        sampled=statistics.fmean(step["tokens_sampled"] for step in steps),
        trained=statistics.fmean(step["tokens_trained"] for step in steps),
        depth=statistics.fmean(step["depth"] for step in steps),
        candidates=statistics.fmean(plans) if plans else 0.0,
        pruned=statistics.fmean(step.get("choices", {}).get("pruned", 0) for step in steps)
        / scenario.prompts,
        expected=statistics.median(ratios) if ratios else 0.0,
    )


def seconds_at(points: Sequence[Point], sampled: float) -> float:
    """Seconds of a step in which so many tokens are sampled, on straight lines between the points
    by tokens; beyond the ends, those of the nearest."""
    ordered = sorted(points, key=lambda point: point.sampled)
    for few, many in pairwise(ordered):
        if few.sampled <= sampled <= many.sampled and many.sampled > few.sampled:
            share = (sampled - few.sampled) / (many.sampled - few.sampled)
            return few.seconds + share * (many.seconds - few.seconds)
    return min(ordered, key=lambda point: abs(point.sampled - sampled)).seconds


def budget_markdown(rows: Sequence[Row]) -> str:
    titles = "engines | selector | budget | candidates | pruned | predicted / measured"
    more = "depth | step, s | uniform at equal tokens, s | x"
    lines = [f"| {titles} | {more} |", "|---" * 10 + "|"]
    lines += [
        f"| {row.engines} | {row.selector} | {row.budget} | {row.adaptive.candidates:.1f} "
        f"| {row.adaptive.pruned:.0%} | {row.adaptive.expected:.2f} | {row.adaptive.depth:.1f} "
        f"| {row.adaptive.seconds:.1f} | {row.uniform_s:.1f} "
        f"| {row.uniform_s / row.adaptive.seconds:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)
