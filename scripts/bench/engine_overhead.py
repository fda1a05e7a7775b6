"""Measures the overhead of darts: tokens per second through the pipeline against vLLM alone.

    python -m scripts.bench.engine_overhead [--requests 2048] [--repeats 3] [--out FILE]

Runs the same requests three ways in turn, `--repeats` times, each in fresh processes: `raw` is
`AsyncLLM` streaming (`scripts.bench.raw_engine`), `sink` is the pipeline with an idle
learner (`scripts.bench.sink`), `learner` the pipeline with the real learner. vLLM's
threads have the first core in all of them. Seconds count from the first request to the last
token.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.commands.train import identify
from launch.launcher.environment import clean_environment
from launch.launcher.local import Launcher
from launch.launcher.processes import Child, end_all
from launch.run_files.jsonl import all_lines
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.system.run_folder import RunFolder
from scripts.bench.program import options_parser, ways_in_turn, write_json
from scripts.bench.raw_engine import Span

CONFIG = Path("configs/quickstart.yaml")
SHORT = ("eval.every=0", "data.held_out=0", "checkpoint.every=0")  # only steps
STEP = (  # one step that trains on everything that is sampled
    "selector=all",
    "budget.uniform.redundancy=1",
    "step.count=1",
    "learner.warmup_steps=0",
    *SHORT,
)
RAW_LIMIT_S = 900.0
QUIET_LOAD = 0.5
"""Load average above which other work disturbs the measurement: with a load of 6 on two cores,
repetitions of one way differed by a factor of two."""
WAYS = ("raw", "sink", "learner")


class BenchError(Exception):
    """A measurement failed; the message ends with its log."""


class Complaints:
    """Prints only the warnings of a run."""

    def on_line(self, line: dict[str, Any]) -> None:
        if "say" in line:
            print(f"  ! {line['say']}", flush=True)


def one_step_config(requests: int, overrides: Sequence[str] = ()) -> Config:
    """Returns the quickstart as one step of `requests` requests.

    Raises: ConfigError; ValueError if `requests` is not a multiple of the group size.
    """
    size = load(CONFIG, overrides).group.size
    if requests < size or requests % size:
        raise ValueError(f"--requests is {requests}, expected a multiple of group.size {size}")
    return load(CONFIG, [*STEP, f"step.prompts={requests // size}", *overrides])


def metrics_of(config: Config, path: Path, learner: str) -> list[dict[str, Any]]:
    """Runs a job in the folder `path`, and returns the lines of its metrics.

    Args:
        learner: "learner", or "sink" for an idle one.

    Raises: BenchError if the run fails.
    """
    run = RunFolder(path)
    run.make_folders()
    run.hold_lock()
    try:
        identify(run, config)
        launcher = Launcher(config, run, Complaints())
        if learner == "sink":
            launcher.children["l0"].command[0] = "scripts.bench.sink"
        if launcher.run_job():
            raise BenchError(f"{learner}: {launcher.error or 'interrupted'}")
    finally:
        run.release_lock()
    return all_lines(run.metrics)


def through_the_pipeline(config: Config, path: Path, learner: str) -> Span:
    """Measures a run of one step, with a learner as in `metrics_of`. Raises BenchError."""
    [step] = [line for line in metrics_of(config, path, learner) if line["what"] == "step"]
    return Span(tokens=step["ledger"]["sampled"], seconds=step["generation_s"])


def run_raw(config: Config, path: Path) -> Span:
    """Measures vLLM alone, with log and result in the folder `path`. Raises BenchError."""
    run = RunFolder(path)
    run.make_folders()
    identify(run, config)
    out = path / "span.json"
    command = ["scripts.bench.raw_engine", "--config", str(run.config), "--out", str(out)]
    child = Child("raw", command, run.logs / "raw.log", clean_environment())
    deadline = time.monotonic() + RAW_LIMIT_S
    child.start()
    try:
        while (how := child.exit_text()) is None and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        end_all([child], 0.0)
    if not out.exists():
        raise BenchError(f"raw: {how or 'not done in time'}; end of its log:\n{child.tail()}")
    return msgspec.json.decode(out.read_bytes(), type=Span)


def overhead_summary(spans: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Returns rates by way, and each repetition's ratio to its own `raw`, with the median.

    >>> s = [Span(tokens=100, seconds=2.0)]
    >>> overhead_summary({"raw": [Span(tokens=100, seconds=1.0)], "sink": s})["sink"]
    {'tokens': [100], 'tokens_per_s': [50.0], 'ratios': [0.5], 'ratio': 0.5}
    """
    found: dict[str, Any] = {}
    for way, measured in spans.items():
        pairs = zip(measured, spans["raw"], strict=True)
        ratios = [round(span.rate / alone.rate, 4) for span, alone in pairs]
        found[way] = {
            "tokens": [span.tokens for span in measured],
            "tokens_per_s": [round(span.rate, 1) for span in measured],
            "ratios": ratios,
            "ratio": statistics.median(ratios),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser(__doc__, repeats=3, overrides="settings of the quickstart")
    parser.add_argument("--requests", type=int, default=2048, help="requests of one measurement")
    options = parser.parse_args(arguments)
    config = one_step_config(options.requests, options.overrides)
    load_before = os.getloadavg()[0]
    if load_before > QUIET_LOAD:
        print(f"  ! the load is {load_before:.1f} before anything was started: no quiet machine")
    spans: dict[str, list[Span]] = {way: [] for way in WAYS}
    for way, path in ways_in_turn(WAYS, options.repeats):
        raw = way == "raw"
        span = run_raw(config, path) if raw else through_the_pipeline(config, path, way)
        spans[way].append(span)
        print(
            f"{way:8}{span.tokens:>9} tokens{span.seconds:>8.2f} s{span.rate:>8.0f} tokens/s",
            flush=True,
        )
    found = overhead_summary(spans)
    for way in WAYS:
        shares = "  ".join(f"{ratio:.3f}" for ratio in found[way]["ratios"])
        print(f"{way:8} of raw: {found[way]['ratio']:.3f}  ({shares})")
    about = {"requests": options.requests, "cores": os.cpu_count()}
    write_json(options.out, {**about, "load_before": round(load_before, 2), **found})


if __name__ == "__main__":
    main()
