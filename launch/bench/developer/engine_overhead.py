"""What darts costs its engine: tokens per second through the pipeline against vLLM alone.

    python -m launch.bench.developer.engine_overhead [--requests 2048] [--repeats 3] [--out FILE]

The same requests three ways, one after another and all of it `--repeats` times, each
in fresh processes: `raw` is `AsyncLLM` streaming (`launch.bench.developer.raw_engine`), `sink`
engine worker, sockets, stage and rewards with a learner that does nothing
(`launch.bench.developer.sink`), `learner` the same with the real one training beside it. vLLM's
threads have the first core in all of them. Seconds run from the first request to the
end of the last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.bench.developer.raw_engine import Span
from launch.commands.train import identify
from launch.launcher.local import Launcher
from launch.launcher.processes import Child, clean_environment, end_all
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.system.run_folder import RunFolder

CONFIG = Path("configs/quickstart.yaml")
SHORT = ("eval.every=0", "data.held_out=0", "checkpoint.every=0")  # steps and nothing beside them
STEP = (  # one step that trains on all that is sampled
    "selector=all",
    "budget.uniform.redundancy=1",
    "step.count=1",
    *SHORT,
)
RAW_LIMIT_S = 900.0
QUIET_LOAD = 0.5
"""Load average above which somebody else's work is measured too: with a load of 6 on two
cores, repetitions of one way differed by a factor of two."""
WAYS = ("raw", "sink", "learner")


class BenchError(Exception):
    """A measurement failed; the message ends with the log of what did."""


class Complaints:
    """Shows what a run warns of, and nothing else."""

    def on_line(self, line: dict[str, Any]) -> None:
        if "say" in line:
            print(f"  ! {line['say']}", flush=True)


def configuration(requests: int, overrides: Sequence[str] = ()) -> Config:
    """The quickstart as one step of `requests`, a multiple of its group size.

    Raises ConfigError, and ValueError if it is none.
    """
    size = load(CONFIG, overrides).group.size
    if requests < size or requests % size:
        raise ValueError(f"--requests is {requests}, expected a multiple of group.size {size}")
    return load(CONFIG, [*STEP, f"step.prompts={requests // size}", *overrides])


def metrics_of(config: Config, path: Path, learner: str) -> list[dict[str, Any]]:
    """One run in the folder `path`, and the lines of its metrics.

    Args:
        learner: "learner", or "sink" for one that learns nothing.

    Raises: BenchError if the run fails.
    """
    run = RunFolder(path)
    run.make_folders()
    run.hold_lock()
    try:
        identify(run, config)
        launcher = Launcher(config, run, Complaints())
        if learner == "sink":
            launcher.children["l0"].command[0] = "launch.bench.developer.sink"
        if launcher.run():
            raise BenchError(f"{learner}: {launcher.error or 'interrupted'}")
    finally:
        run.release_lock()
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def through_the_pipeline(config: Config, path: Path, learner: str) -> Span:
    """One run of one step, with a learner as in `metrics_of`. Raises BenchError."""
    [step] = [line for line in metrics_of(config, path, learner) if line["what"] == "step"]
    return Span(tokens=step["ledger"]["sampled"], seconds=step["generation_s"])


def raw(config: Config, path: Path) -> Span:
    """vLLM alone, with its log and its result in the folder `path`. Raises BenchError."""
    run = RunFolder(path)
    run.make_folders()
    identify(run, config)
    out = path / "span.json"
    command = ["launch.bench.developer.raw_engine", "--config", str(run.config), "--out", str(out)]
    child = Child("raw", command, run.logs / "raw.log", clean_environment())
    deadline = time.monotonic() + RAW_LIMIT_S
    child.start()
    try:
        while (how := child.ended()) is None and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        end_all([child], 0.0)
    if not out.exists():
        raise BenchError(f"raw: {how or 'not done in time'}; its log ends:\n{child.tail()}")
    return msgspec.json.decode(out.read_bytes(), type=Span)


def summary(spans: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Rates by way, and each repetition's share of its own `raw` with the median.

    >>> s = [Span(tokens=100, seconds=2.0)]
    >>> summary({"raw": [Span(tokens=100, seconds=1.0)], "sink": s})["sink"]
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2048, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON with every repetition")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the quickstart")
    options = parser.parse_args(arguments)
    config = configuration(options.requests, options.overrides)
    load_before = os.getloadavg()[0]
    if load_before > QUIET_LOAD:
        print(f"  ! the load is {load_before:.1f} before anything was started: no quiet machine")
    spans: dict[str, list[Span]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="darts-overhead-") as folder:
        for repeat in range(options.repeats):
            for way in WAYS:
                path = Path(folder) / f"{way}-{repeat}"
                measured = (
                    raw(config, path) if way == "raw" else through_the_pipeline(config, path, way)
                )
                spans[way].append(measured)
                print(
                    f"{way:8}{measured.tokens:>9} tokens{measured.seconds:>8.2f} s"
                    f"{measured.rate:>8.0f} tokens/s",
                    flush=True,
                )
    found = summary(spans)
    for way in WAYS:
        shares = "  ".join(f"{ratio:.3f}" for ratio in found[way]["ratios"])
        print(f"{way:8} of raw: {found[way]['ratio']:.3f}  ({shares})")
    if options.out:
        about = {
            "requests": options.requests,
            "cores": os.cpu_count(),
            "load_before": round(load_before, 2),
        }
        options.out.write_text(json.dumps({**about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
