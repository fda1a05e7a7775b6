"""Compares metrics of jobs over two machines with those of one machine, seed by seed.

    python -m scripts.bench.two_machines [--seeds N] [--folder DIR] [--out FILE]
        [key=value ...]

Runs the same task, ranks and engines with `darts train`, and with a torchrun in each of two network
namespaces (needs root). A live run is not reproducible to the bit. So the two ways count as equal
if runs of one seed differ no more than runs of one way with different seeds.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.bench.namespaces import Started, two_machines, why_not
from scripts.bench.program import options_parser, write_json
from scripts.faults.records import records

RANKS = (3, 2)  # of torchrun on each machine: l0 l1 e0, and l2 e1
WAYS = ("one", "two")
_LIMIT_S = 3600.0  # of one run: on a busy machine the engines alone take minutes to start
_SETTINGS = [
    "learner.ranks=3",
    "engine.count=2",
    "nodes.learners=spread",
    "step.count=15",
    "step.prompts=8",
    "group.size=4",
    "eval.every=15",
    "data.held_out=64",
    "timeouts.join_s=1800",
    "metrics.tensorboard=false",
]

Curves = Mapping[str, Sequence[float]]
"""A run's metrics by name, a value for each step or evaluation."""


@dataclass(frozen=True)
class Row:
    """One metric. Distances are mean absolute differences over steps and pairs of runs."""

    metric: str
    one: float  # mean over steps and seeds
    two: float
    between_ways: float  # distance of runs of the same seed, one way and the other
    between_seeds: float  # distance of runs of the same way, one seed and another

    @property
    def ratio(self) -> float:
        """Distance between ways over distance between seeds: 1 or less counts as equal."""
        return self.between_ways / self.between_seeds if self.between_seeds else float("inf")


def curves(run: Path) -> dict[str, list[float]]:
    """Returns a finished run's metrics, step by step."""
    steps, evaluations = (records(run / "metrics.jsonl", what) for what in ("step", "eval"))
    return {
        "reward": [step["reward"] for step in steps],
        "response tokens": [step["tokens_mean"] for step in steps],
        "gradient norm": [step["learner"]["grad_norm"] for step in steps],
        "held-out accuracy": [line["accuracy"] for line in evaluations],
        "held-out tokens": [line["tokens_mean"] for line in evaluations],
    }


def compare_ways(one: Sequence[Curves], two: Sequence[Curves]) -> list[Row]:
    """Compares both ways; each has a run for each seed, in the same order, at least two.

    >>> [row] = compare_ways([{"x": [0, 4]}, {"x": [2, 2]}], [{"x": [1, 4]}, {"x": [2, 2]}])
    >>> row.one, row.two, row.between_ways, row.between_seeds
    (2.0, 2.25, 0.25, 1.75)
    """
    pairs = [pair for runs in (one, two) for pair in itertools.combinations(runs, 2)]
    return [
        Row(
            metric=metric,
            one=_mean(value for run in one for value in run[metric]),
            two=_mean(value for run in two for value in run[metric]),
            between_ways=_distance(metric, zip(one, two, strict=True)),
            between_seeds=_distance(metric, pairs),
        )
        for metric in one[0]
    ]


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _distance(metric: str, pairs: Iterable[tuple[Curves, Curves]]) -> float:
    return _mean(abs(a - b) for x, y in pairs for a, b in zip(x[metric], y[metric], strict=True))


def distance_table(rows: Sequence[Row]) -> list[str]:
    """Formats the rows as Markdown."""
    lines = [
        "| metric | one machine | two | between the two, same seed | between seeds | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        metrics = (row.one, row.two, row.between_ways, row.between_seeds)
        cells = [f"{figure:.3g}" for figure in metrics]
        lines.append(f"| {row.metric} | {' | '.join(cells)} | {row.ratio:.2f} |")
    return lines


def carry_out(way: str, run: Path, settings: Sequence[str]) -> None:
    """Runs one job to its end. Raises RuntimeError if it fails."""
    arguments = ["configs/quickstart.yaml", "--out", str(run), *settings]
    with ExitStack() as stack:
        if way == "one":
            command = [sys.executable, "-m", "launch.cli", "train", *arguments]
            parts = [(command, run.with_name(f"{run.name}.log"))]
        else:
            machines = stack.enter_context(two_machines())
            parts = [
                (machines.torchrun(m, ranks, arguments), run.with_name(f"{run.name}-{m}.log"))
                for m, ranks in enumerate(RANKS)
            ]
        jobs = [stack.enter_context(Started(command, log)) for command, log in parts]
        for job in jobs:
            if job.wait(_LIMIT_S) != 0:
                raise RuntimeError(f"{run.name} failed; end of {job.log}:\n{job.text[-3000:]}")


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="settings of every run, as key=value")
    parser.add_argument("--seeds", type=int, default=3, help="seeds; at least 2")
    parser.add_argument(
        "--folder", type=Path, help="folder of the runs; finished ones are not run again"
    )
    options = parser.parse_intermixed_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}: the distance between seeds needs two at least")
    if reason := why_not():
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    settings = [*_SETTINGS, *options.overrides]
    found: dict[str, list[dict[str, list[float]]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed, way in itertools.product(range(options.seeds), WAYS):
            run = folder / f"{way}-s{seed}"
            if not (run / "result.json").exists():
                carry_out(way, run, [*settings, f"seed={seed}"])
            found[way].append(curves(run))
            print(f"{run.name}: {found[way][-1]}", file=sys.stderr, flush=True)
    rows = compare_ways(found["one"], found["two"])
    print("\n".join(distance_table(rows)))
    rows_out = [{**asdict(row), "ratio": row.ratio} for row in rows]
    write_json(options.out, {"settings": settings, "rows": rows_out, "curves": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
