"""Published speed-ups against simulated ones: one constant is fitted, the rest is predicted.

Publications do not give lengths. For each of them one constant (the deviation of the log length
within a prompt, or the median) is fitted so that one cell is as published; the rest follows from
hardware, method, and the assumptions below. "K shortest and L longest of M'" has two readings:
`barrier` (the longest that has finished when the step's last group has M; column `simulated`) and
`waiting` (literally: every group waits for its longest). Both are simulated with shaping (the
policy learns, at an assumed rate) and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from launch.simulate.methods_at_scale import SYNC
from launch.simulate.scenario import Scenario, run_method
from pipeline.simulation.workload import Lengths

STEPS = 16
DATASET = 512
"""Prompts: few enough for four epochs, as in the published runs."""
RATE = 1.0


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A publication: the assumptions about its prompts, and the fitted constant.

    `constant` lies between `low`, where the speed-up is small, and `high`, where it is large:
    beyond, the limit cuts every method's longest responses and the ratio falls again.
    """

    fitted: str  # the cell for the fit
    constant: str  # a field of Lengths
    low: float
    high: float
    lengths: Lengths

    def lengths_for(self, constant: float) -> Lengths:
        return msgspec.structs.replace(self.lengths, **{self.constant: constant})


SOURCES = {
    "DARTS": Source(
        fitted="ablation 14B: plus sampling",
        constant="within",
        low=0.15,
        high=0.45,
        lengths=Lengths(median=800, between=0.4, within=0.0, uneven=0.3),
    ),
    "RollPacker": Source(
        fitted="RollPacker, low end",
        constant="within",
        low=0.05,
        high=0.6,
        lengths=Lengths(median=2000, between=0.45, within=0.0, uneven=0.3),
    ),
    "APRIL": Source(
        fitted="APRIL, average",
        constant="median",
        low=16_000,
        high=2000,
        lengths=Lengths(median=0, between=0.45, within=0.6, uneven=0.3),
    ),
}
_FIT_STEPS = 7

_OFF = "learner.overlap=off"
_UNIFORM = ("budget=uniform", "budget.redundancy=1.25")
_ADAPTIVE = ("budget=length_variance", "budget.mean=1.25", "selector.dual_end.prune_at=2")
_TAIL = ("recipe=tail_batching",)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One published speed-up of a method over synchronous rollout."""

    name: str
    source: str = "DARTS"
    published: float
    about: str  # source of the number and the set-up
    overrides: tuple[str, ...]  # settings of the method
    scenario: Scenario
    by_tokens: bool = False  # trained tokens a second of generation, not steps a second
    ends: bool = False  # the method keeps a long end, so the readings differ


def _scenario(shape: str, gpus: int, of_engine: int, streamed: bool = False) -> Scenario:
    return Scenario(
        shape=shape,
        device="h20",
        engines=gpus // of_engine,
        gpus_of_engine=of_engine,
        learner_gpus=gpus,
        streamed=streamed,
        steps=STEPS,
        dataset=DATASET,
    )


def _darts(*more: str) -> tuple[str, ...]:
    return (*_ADAPTIVE, *more, _OFF)


def published_cells() -> list[Cell]:
    """Returns all cells, in the order of the publications."""
    darts = "arXiv 2605.30859"
    sizes = (
        ("3B", "qwen2.5-3b", 32, 1, 1.07, 1.29),
        ("7B", "qwen2.5-7b", 32, 1, 1.3, 1.45),
        ("14B", "qwen2.5-14b", 32, 2, 1.4, 1.63),
        ("32B", "qwen2.5-32b", 64, 4, 1.62, 1.77),
        ("30B-A3B", "qwen3-30b-a3b", 64, 4, 1.62, 1.77),
    )
    found: list[Cell] = []
    for size, shape, gpus, of_engine, tail, whole in sizes:
        about = f"{darts}, end to end, {gpus} H20"
        found += [
            Cell(
                name=f"end to end {size}: tail batching",
                published=tail,
                about=about,
                overrides=(*_TAIL, _OFF),
                scenario=_scenario(shape, gpus, of_engine),
            ),
            Cell(
                name=f"end to end {size}: DARTS",
                published=whole,
                about=about,
                overrides=_darts(),
                scenario=_scenario(shape, gpus, of_engine, streamed=True),
                ends=True,
            ),
        ]
    of_14b = _scenario("qwen2.5-14b", 32, 2, streamed=True)
    for name, published, overrides, ends in (
        ("streaming", 1.09, SYNC, False),
        ("plus sampling", 1.40, (*_UNIFORM, _OFF), True),
        ("plus allocation", 1.63, _darts(), True),
    ):
        found.append(
            Cell(
                name=f"ablation 14B: {name}",
                published=published,
                about=f"{darts}, ablation, 32 H20",
                overrides=overrides,
                scenario=of_14b,
                ends=ends,
            )
        )
    for longest, published in ((1, 1.45), (2, 1.43), (4, 1.25)):
        found.append(
            Cell(
                name=f"K:L of {8 - longest}:{longest}, 7B",
                published=published,
                about=f"{darts}, 7B",
                overrides=_darts(f"selector.dual_end.longest={longest}"),
                scenario=_scenario("qwen2.5-7b", 32, 1, streamed=True),
                ends=True,
            )
        )
    return [*found, *_others()]


def _others() -> Iterator[Cell]:
    for end, shape, of_engine, published in (
        ("low", "qwen2.5-7b", 1, 2.03),
        ("high", "qwen2.5-32b", 4, 2.56),
    ):
        yield Cell(
            name=f"RollPacker, {end} end",
            source="RollPacker",
            published=published,
            about=f"arXiv 2509.21009, 128 H800, range over models; here {shape}",
            overrides=(*_TAIL, "learner.overlap=group"),
            scenario=msgspec.structs.replace(
                _scenario(shape, 128, of_engine), device="h800", limit=16_384
            ),
        )
    for end, prompts, published in (("average", 64, 1.225), ("most", 32, 1.44)):
        yield Cell(
            name=f"APRIL, {end}",
            source="APRIL",
            published=published,
            about=f"APRIL, rollout throughput; here 8 engines, {prompts} prompts x 8",
            overrides=(*SYNC, "learner.max_staleness=2"),
            scenario=msgspec.structs.replace(
                _scenario("qwen2.5-7b", 8, 1), prompts=prompts, learner_factor=1e-3, limit=16_384
            ),
            by_tokens=True,
        )


def speed_up(cell: Cell, reading: str, rate: float, constant: float) -> float:
    """Simulates the cell's speed-up over synchronous rollout, in one reading."""
    lengths = SOURCES[cell.source].lengths_for(constant)
    scenario = msgspec.structs.replace(cell.scenario, rate=rate, lengths=lengths)
    wait = {"barrier": "step", "waiting": "group"}[reading]
    ends = (f"selector.dual_end.long_wait={wait}",) if cell.ends else ()
    base, _ = run_method(msgspec.structs.replace(scenario, streamed=False), SYNC)
    own, _ = run_method(scenario, (*ends, *cell.overrides))
    if cell.by_tokens:  # the learner takes no time here: steps are generation
        return (own.trained_tokens / own.step_s) / (base.trained_tokens / base.step_s)
    return base.step_s / own.step_s


def fit_constant(source: str, progress: Callable[[str], None]) -> float:
    """Finds by bisection the constant for which the source's cell is as published, or the nearest.

    Uses the barrier reading with shaping, as the column `simulated`.
    """
    about = SOURCES[source]
    cell = next(cell for cell in published_cells() if cell.name == about.fitted)
    low, high = about.low, about.high
    middle = low
    for _ in range(_FIT_STEPS):
        middle = (low + high) / 2
        found = speed_up(cell, "barrier", RATE, middle)
        progress(f"{source}: {about.constant} {middle:.4g} gives {found:.3f} of {cell.published}")
        low, high = (middle, high) if found < cell.published else (low, middle)
    return middle


def reproduce(
    progress: Callable[[str], None],
    only: Sequence[Cell] | None = None,
    constants: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Simulates all cells in both readings, with and without shaping; fits missing constants."""
    chosen = constants or {source: fit_constant(source, progress) for source in SOURCES}
    rows: list[dict[str, Any]] = []
    for cell in only or published_cells():
        own = chosen[cell.source]
        row: dict[str, Any] = {"name": cell.name, "published": cell.published}
        row["simulated"] = speed_up(cell, "barrier", RATE, own)
        row["simulated_without_shaping"] = speed_up(cell, "barrier", 0.0, own)
        if cell.ends:
            row["waiting"] = speed_up(cell, "waiting", RATE, own)
            row["waiting_without_shaping"] = speed_up(cell, "waiting", 0.0, own)
        row["error"] = row["simulated"] / cell.published - 1.0
        row["fitted"] = cell.name == SOURCES[cell.source].fitted
        row["about"] = cell.about
        rows.append(row)
        progress(f"{cell.name}: published {cell.published}, simulated {row['simulated']:.2f}")
    fitted = {source: [SOURCES[source].constant, value] for source, value in chosen.items()}
    return {"fitted": fitted, "rate": RATE, "steps": STEPS, "cells": rows}


def published_table(document: dict[str, Any]) -> str:
    titles = "cell | published | simulated | error | without shaping | waiting | without shaping"
    lines = [f"| {titles} |", "|---" * 7 + "|"]
    for row in document["cells"]:
        waiting = [row.get("waiting"), row.get("waiting_without_shaping")]
        cells_ = [
            row["name"] + (" (fitted)" if row["fitted"] else ""),
            f"{row['published']:g}",
            f"{row['simulated']:.2f}",
            f"{row['error']:+.0%}",
            f"{row['simulated_without_shaping']:.2f}",
            *("" if value is None else f"{value:.2f}" for value in waiting),
        ]
        lines.append(f"| {' | '.join(cells_)} |")
    return "\n".join(lines)
