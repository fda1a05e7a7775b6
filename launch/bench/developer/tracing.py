"""What it costs to know where time goes: `python -m launch.bench.developer.tracing [--out FILE]`.

The same steps three ways, interleaved, each run in fresh processes: `off` (`metrics.timing=false`),
`timing` (latency figures and critical paths), `trace` (and every step in the trace). All candidates
are trained on and the learning rate is next to nothing: every way samples the same tokens. Beside
the ratio of step times, which noise blurs, stands the time that the stage itself spent on it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.bench.developer.engine_overhead import SHORT, metrics_of
from pipeline.config.load import load

_SAME = ("selector=all", "budget.uniform.redundancy=1", "learner.lr=1e-12", *SHORT)
WAYS = {
    "off": ("metrics.timing=false",),
    "timing": ("metrics.timing=true", "metrics.trace_steps=0"),
    "trace": ("metrics.timing=true", "metrics.trace_steps=1000000"),
}


def step_and_own_s(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Median step and the median of what noting it took, seconds, without the first step.

    Raises: ValueError if there are fewer than two steps.
    """
    steps = [line["seconds"] for line in lines if line["what"] == "step"][1:]
    if not steps:
        raise ValueError("a run of two steps or more is needed")
    own = [line["recording_s"] for line in lines if line["what"] == "timing"][1:]
    return statistics.median(steps), statistics.median(own) if own else 0.0


def measure(repeats: int, overrides: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Runs of every way, interleaved. Raises BenchError, ConfigError and ValueError."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="darts-tracing-") as folder:
        for repeat in range(repeats):
            for way, settings in WAYS.items():
                config = load(Path("configs/quickstart.yaml"), (*_SAME, *overrides, *settings))
                lines = metrics_of(config, Path(folder) / f"{way}-{repeat}", "learner")
                step_s, own_s = step_and_own_s(lines)
                found[way].append((step_s, own_s))
                print(f"{way:7}{step_s:8.4f} s a step, {1e3 * own_s:6.2f} ms to note", flush=True)
    return found


def summary(found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Medians over repetitions; ratios to `off` are taken within each."""
    told: dict[str, Any] = {}
    for way, runs in found.items():
        pairs = zip(runs, found["off"], strict=True)
        told[way] = {
            "step_s": [step_s for step_s, _ in runs],
            "ratio": statistics.median(step_s / off_s for (step_s, _), (off_s, _) in pairs),
            "own_share": statistics.median(own_s / step_s for step_s, own_s in runs),
        }
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="of one run; two or more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON with every repetition")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the quickstart")
    options = parser.parse_args(arguments)
    given = (f"step.count={options.steps}", *options.overrides)
    told = summary(measure(options.repeats, given))
    for way, metrics in told.items():
        print(f"{way:7} {metrics['ratio']:.3f} of off; noting it {metrics['own_share']:.2%} of it")
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
