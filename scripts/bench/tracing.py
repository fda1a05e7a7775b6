"""Measures the cost of timing and tracing.

    python -m scripts.bench.tracing [--out FILE]

Runs the same steps three ways, interleaved, in fresh processes: `off` (`metrics.timing=false`),
`timing` (latencies and critical paths), `trace` (also every step in the trace). All candidates are
trained on and the learning rate is almost zero, so that all ways sample the same tokens. The ratio
of step times is noisy; so the stage's own time for recording is measured too.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.load import load
from scripts.bench.engine_overhead import SHORT, metrics_of
from scripts.bench.program import options_parser, ways_in_turn, write_json

_SAME = ("selector=all", "budget.uniform.redundancy=1", "learner.lr=1e-12", *SHORT)
WAYS = {
    "off": ("metrics.timing=false",),
    "timing": ("metrics.timing=true", "metrics.trace_steps=0"),
    "trace": ("metrics.timing=true", "metrics.trace_steps=1000000"),
}


def step_and_own_s(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns the median seconds of a step and of recording it, without the first step.

    Raises: ValueError if there are fewer than two steps.
    """
    steps = [line["seconds"] for line in lines if line["what"] == "step"][1:]
    if not steps:
        raise ValueError("a run of two steps or more is needed")
    own = [line["recording_s"] for line in lines if line["what"] == "timing"][1:]
    return statistics.median(steps), statistics.median(own) if own else 0.0


def measure_tracing(repeats: int, overrides: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Runs every way, interleaved. Raises BenchError, ConfigError and ValueError."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for way, path in ways_in_turn(WAYS, repeats):
        config = load(Path("configs/quickstart.yaml"), (*_SAME, *overrides, *WAYS[way]))
        step_s, own_s = step_and_own_s(metrics_of(config, path, "learner"))
        found[way].append((step_s, own_s))
        print(f"{way:7}{step_s:8.4f} s a step, {1e3 * own_s:6.2f} ms to record", flush=True)
    return found


def tracing_summary(found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Returns medians over repetitions; ratios to `off` are taken within each."""
    document: dict[str, Any] = {}
    for way, runs in found.items():
        pairs = zip(runs, found["off"], strict=True)
        document[way] = {
            "step_s": [step_s for step_s, _ in runs],
            "ratio": statistics.median(step_s / off_s for (step_s, _), (off_s, _) in pairs),
            "own_share": statistics.median(own_s / step_s for step_s, own_s in runs),
        }
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=60, repeats=3, overrides="settings of the quickstart")
    options = parser.parse_args(arguments)
    given = (f"step.count={options.steps}", "learner.warmup_steps=0", *options.overrides)
    found = tracing_summary(measure_tracing(options.repeats, given))
    for way, metrics in found.items():
        print(f"{way:7} {metrics['ratio']:.3f} of off; recording takes {metrics['own_share']:.2%}")
    write_json(options.out, found)


if __name__ == "__main__":
    main()
