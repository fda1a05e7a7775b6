"""Our methods at published scale, and the best method by workload: tables of simulated runs.

`scale_table`: 7B on H20, 128 prompts x 8, limits of 8k and 16k, 8 to 64 engines.
`heat_map`: methods x severity of the tail x engines x cost of the learner.
Speed-ups are over synchronous rollout in the same scenario; all methods but `k1` are on-policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.bench.compare.methods import BASELINE
from launch.bench.compare.methods import METHODS as BENCH
from launch.simulate.scenario import PROMPT_TOKENS, Metrics, Scenario, run_method
from pipeline.simulation.workload import Lengths

SYNC = BENCH[BASELINE].overrides
_SAME = (
    "sync_streamed",
    "darts_published",
    "darts_barrier",
    "concise_confident",
    "first_m",
    "top_up",
    "top_up_quorum",
    "tail_batching",
    "top_up_deferred",
    "top_up_deferred_quorum",
    "k1",
)
_BENCH = {name: BENCH[name].overrides for name in _SAME}
METHODS: dict[str, tuple[str, ...]] = {
    **_BENCH,
    "top_up_deferred_half_quorum": (*_BENCH["top_up_deferred_quorum"], "step.reserve_share=0.5"),
    "top_up_deferred_barrier": (*_BENCH["top_up_deferred"], "selector.dual_end.long_wait=step"),
}
"""Settings by method. `deferred` adds tail batching's long rounds to top-up, and samples more than
M candidates in them too; `half` has 50% more prompts in reserve, the others 25%."""

SCALE = (
    "first_m",
    "tail_batching",
    "top_up",
    "top_up_quorum",
    "top_up_deferred",
    "top_up_deferred_quorum",
    "top_up_deferred_half_quorum",
    "top_up_deferred_barrier",
    "k1",
)
MAP = ("darts_published", "darts_barrier", "first_m", "tail_batching", "top_up_quorum",
       "top_up_deferred_quorum", "k1")  # fmt: skip
TAILS = (0.3, 0.6, 0.9, 1.2)
ENGINES = (4, 16, 64)
LEARNERS = (0.25, 1.0, 4.0)
_STEPS, _MAP_STEPS = 20, 10  # whole cycles of four short rounds and a long one


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One method in one scenario, against synchronous rollout."""

    method: str
    engines: int
    limit: int
    speed_up: float
    per_token: float  # speed-up per token trained on
    trained: float  # tokens trained on, as a share of synchronous rollout's
    sampled_per_trained: float
    depth: float
    load: float  # ended responses for each engine and step
    bound: float  # lower bound as a share of the step: max(all slots' throughput, learning)


def bound_seconds(scenario: Scenario, metrics: Metrics) -> float:
    """Returns a bound for every schedule of these tokens: the learner, or engines that always run
    the best number of sequences; prompts and loads cost nothing."""
    cost = scenario.engine_cost()
    table = cost.table(scenario.slots)
    mean = metrics.trained_tokens / (scenario.prompts * scenario.size)
    token_s = min(  # one after another in a slot: on average half of each is cached
        (table[running] + cost.kv_s * running * (mean / 2 + PROMPT_TOKENS)) / running
        for running in range(1, scenario.slots + 1)
    )
    learner = scenario.learner_cost()
    learning_s = metrics.trained_tokens * (learner.train_s + learner.forward_s)
    return max(metrics.trained_tokens / scenario.engines * token_s, learning_s)


def compare_methods(
    scenario: Scenario, methods: Sequence[str], progress: Callable[[str], None]
) -> list[Row]:
    """Compares each method with synchronous rollout."""
    base, _ = run_method(scenario, SYNC)
    rows = [method_row("sync", scenario, base, base)]
    for method in methods:
        metrics, _ = run_method(scenario, METHODS[method])
        rows.append(method_row(method, scenario, base, metrics))
        progress(f"{method}, {scenario.engines} engines: {rows[-1].speed_up:.2f}x")
    return rows


def method_row(method: str, scenario: Scenario, base: Metrics, own: Metrics) -> Row:
    """Compares a method's metrics with those of synchronous rollout."""
    trained = own.trained_tokens / base.trained_tokens
    speed_up = base.step_s / own.step_s
    return Row(
        method=method,
        engines=scenario.engines,
        limit=scenario.limit,
        speed_up=speed_up,
        per_token=speed_up * trained,
        trained=trained,
        sampled_per_trained=own.sampled_per_trained,
        depth=own.depth,
        load=own.load,
        bound=bound_seconds(scenario, own) / own.step_s,
    )


def scale_table(progress: Callable[[str], None], steps: int = _STEPS) -> list[Row]:
    """Compares the methods at published scale: 7B, 128 prompts x 8."""
    rows: list[Row] = []
    for limit, lengths in (
        (8192, Lengths(median=1200, between=0.45, within=0.8)),
        (16_384, Lengths(median=2000, between=0.45, within=0.9)),
    ):
        for engines in (8, 32, 64):
            scenario = Scenario(
                engines=engines, limit=limit, lengths=lengths, steps=steps, learner_gpus=4 * engines
            )
            rows += compare_methods(scenario, SCALE, progress)
    return rows


def heat_map(progress: Callable[[str], None], steps: int = _MAP_STEPS) -> list[dict[str, Any]]:
    """Returns the speed-up of each method by tail, engines and learner (in units of 32 GPUs)."""
    found: list[dict[str, Any]] = []
    for within in TAILS:
        for engines in ENGINES:
            for learner in LEARNERS:
                scenario = Scenario(
                    engines=engines,
                    lengths=Lengths(median=1200, between=0.45, within=within),
                    learner_factor=learner,
                    steps=steps,
                )
                for row in compare_methods(scenario, MAP, progress):
                    about = {"tail": within, "learner": learner}
                    found.append({**about, **msgspec.structs.asdict(row)})
    return found


def scale_markdown(rows: Sequence[Row]) -> str:
    titles = "limit | engines | method | x | x per token | tokens trained | sampled per trained"
    lines = [f"| {titles} | depth | load | bound of step |", "|---" * 10 + "|"]
    lines += [
        f"| {r.limit} | {r.engines} | {r.method} | {r.speed_up:.2f} | {r.per_token:.2f} "
        f"| {r.trained:.2f} | {r.sampled_per_trained:.2f} | {r.depth:.1f} | {r.load:.0f} "
        f"| {r.bound:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def map_markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """Makes a table for each learner: rows are tail and engines; the best method is bold."""
    parts: list[str] = []
    for learner in sorted({c["learner"] for c in cells}):
        parts += [f"Learner x {learner:g}", ""]
        lines = [f"| tail | engines | {' | '.join(MAP)} |", "|---" * (2 + len(MAP)) + "|"]
        for tail in sorted({c["tail"] for c in cells}):
            for engines in sorted({c["engines"] for c in cells}):
                here = {
                    c["method"]: c["speed_up"]
                    for c in cells
                    if (c["learner"], c["tail"], c["engines"]) == (learner, tail, engines)
                }
                best = max(here[m] for m in MAP if m != "k1")
                shown = [f"**{here[m]:.2f}**" if here[m] == best else f"{here[m]:.2f}" for m in MAP]
                lines.append(f"| {tail:g} | {engines} | {' | '.join(shown)} |")
        parts += [*lines, ""]
    return "\n".join(parts)


def map_page(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the heat map as one HTML file with bokeh."""
    from bokeh.embed import file_html
    from bokeh.layouts import gridplot
    from bokeh.models import BasicTicker, ColorBar, FactorRange, LinearColorMapper
    from bokeh.palettes import Cividis256  # legible without red and green
    from bokeh.plotting import figure
    from bokeh.resources import INLINE

    mapper = LinearColorMapper(palette=Cividis256, low=0.8, high=3.5)
    plots: list[list[Any]] = []
    for method in MAP:
        line: list[Any] = []
        for learner in LEARNERS:
            here = [c for c in cells if c["method"] == method and c["learner"] == learner]
            source: dict[str, Any] = {
                "tail": [str(c["tail"]) for c in here],
                "engines": [str(c["engines"]) for c in here],
                "x": [c["speed_up"] for c in here],
                "text": [f"{c['speed_up']:.2f}" for c in here],
            }
            plot = figure(
                title=f"{method}, learner x {learner:g}",
                x_range=FactorRange(factors=[str(t) for t in TAILS]),
                y_range=FactorRange(factors=[str(e) for e in ENGINES]),
                x_axis_label="deviation of log length within a prompt",
                y_axis_label="engines",
                width=330,
                height=230,
                toolbar_location=None,
            )
            plot.rect(
                "tail", "engines", 1, 1, source=source, line_color=None,
                fill_color={"field": "x", "transform": mapper},
            )  # fmt: skip
            plot.text(
                "tail", "engines", text="text", source=source, text_align="center",
                text_baseline="middle", text_font_size="11px", text_color="white",
                text_outline_color="black",
            )  # fmt: skip
            line.append(plot)
        line[-1].add_layout(ColorBar(color_mapper=mapper, ticker=BasicTicker()), "right")
        plots.append(line)
    title = "speed-up over synchronous rollout, 7B on H20, 128 prompts x 8"
    path.write_text(file_html(gridplot(plots), INLINE, title), encoding="utf-8")
