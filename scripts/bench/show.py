"""`make show`: measures the tables of the documents, one job after another.

Runs the quickstart with three seeds, every built-in selector once and again with audits, then the
programs of `scripts.bench.benches`, and writes `docs/measured.md` from their files. A job
takes about 90 seconds on two cores; one whose result exists is not run again, so an interrupted
show continues where it stopped. `--only NAME` runs one. The page includes a comparison (`darts
bench compare --folder RUNS/compare`, which takes hours) if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.run_files.jsonl import all_lines
from pipeline.config.load import dump, load
from scripts.bench.benches import BENCHES, PEER
from scripts.bench.bias_table import BIAS_HEAD, bias_row

CONFIG = "configs/quickstart.yaml"


class Job(msgspec.Struct, frozen=True):
    name: str
    overrides: tuple[str, ...] = ()
    audited: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        return (*self.overrides, *(AUDIT if self.audited else ()))


SEEDS = [Job(f"seed {seed}", (f"seed={seed}",)) for seed in (0, 1, 2)]
SELECTORS = [
    Job("all, no spare (the baseline)", ("selector=all", "budget.redundancy=1")),
    Job("first_m", ("selector=first_m",)),
    Job("shortest", ("selector=shortest",)),
    Job("dual_end, long_wait: group", ("selector.dual_end.long_wait=group",)),
    Job("dual_end, long_wait: step (the default)", ("seed=0",)),
    Job("concise_confident, depth: step", ("selector.concise_confident.depth=step",)),
    Job("concise_confident, depth: none", ("selector.concise_confident.depth=none",)),
]
AUDIT = ("audit.every=4", "step.count=24", "eval.every=0")
AUDITED = [Job(job.name, job.overrides, audited=True) for job in SELECTORS[1:]]
BIAS = "What selection changes in what is learned from (the bias account, 24 steps)"
VARIANTS = [
    Job("the default", ("seed=0",)),
    Job("learner.overlap: off", ("learner.overlap=off",)),
    Job("groups of equal rewards replaced", ("advantage.drop_equal=true",)),
]


def folder(base: Path, job: Job) -> Path:
    """Returns the folder of a job, named by its settings so that tables can share a run."""
    different = "".join(c if c.isalnum() else "-" for c in "-".join(job.overrides))
    return base / ("audited" if job.audited else "") / different


def carry_out(base: Path, job: Job) -> dict[str, Any]:
    """Runs a job unless its result exists. Raises RuntimeError if it fails."""
    run = folder(base, job)
    result = run / "result.json"
    if not result.exists():
        print(f"--- {job.name}: {' '.join(job.settings)}", flush=True)
        command = [sys.executable, "-m", "launch.cli", "train", CONFIG, "--out", str(run)]
        if subprocess.run([*command, *job.settings], check=False).returncode:
            raise RuntimeError(f"{job.name} failed; see {run}; remove the folder to run it again")
    if (run / "config.yaml").read_text() != dump(load(Path(CONFIG), job.settings)):
        raise RuntimeError(
            f"{run}: a finished run with other settings; remove it, or choose --runs"
        )
    found = json.loads(result.read_text())
    lines = all_lines(run / "metrics.jsonl")
    found["revision"] = json.loads((run / "about.json").read_text())["revision"]
    found["steps"] = [line for line in lines if line["what"] == "step"]
    found["evals"] = [line for line in lines if line["what"] == "eval"]
    return found


def run_row(name: str, r: dict[str, Any]) -> str:
    tokens = r["tokens"]
    sampled = r["tokens_reported_by_engines"] - tokens["eval"]
    shorter = r["mean_tokens_after"] / r["mean_tokens_before"] - 1
    return (
        f"| {name} | {r['accuracy_before']:.3f} | {r['accuracy_after']:.3f} "
        f"| {r['mean_tokens_before']:.1f} | {r['mean_tokens_after']:.1f} ({shorter:+.0%}) "
        f"| {r['evals'][-1]['tokens_p95']} | {r['train_seconds']:.0f} "
        f"| {statistics.median(step['seconds'] for step in r['steps']):.2f} "
        f"| {sampled / 1000:.0f}k | {tokens['trained'] / 1000:.0f}k "
        f"| {tokens['aborted'] / 1000:.0f}k | {sampled / max(1, tokens['trained']):.2f} |"
    )


HEAD = (
    "| run | accuracy before | after | mean tokens before | after | p95 after | train s "
    "| median step s | sampled | trained | aborted | sampled per trained |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def _bias_row(name: str, r: dict[str, Any]) -> str:
    return bias_row(name, r["steps"])


INTRODUCTION = (
    "Written by `make show` (`scripts/bench/show.py`) from the runs' own files: held-out "
    "accuracy and lengths of {config}, 256 prompts x 4 samples; tokens without evaluation. "
    "One machine, {cores} cores, no GPU, one job at a time."
)


def write_page(base: Path, out: Path) -> None:
    """Writes the tables of all finished runs."""
    parts: list[str] = []
    revisions: list[str] = []
    for title, jobs in (
        ("Three seeds of the quickstart", SEEDS),
        ("Every selector, seed 0", SELECTORS),
        ("Variants, seed 0", VARIANTS),
        (BIAS, AUDITED),
    ):
        head, line = (BIAS_HEAD, _bias_row) if jobs is AUDITED else (HEAD, run_row)
        runs = [
            (job.name, carry_out(base, job))
            for job in jobs
            if (folder(base, job) / "result.json").exists()
        ]
        revisions += [run["revision"] for _, run in runs]
        rows = [line(name, run) for name, run in runs]
        if rows:
            parts += ["", f"## {title}", "", head, *rows]
    for bench in (*BENCHES, PEER):
        parts += bench.markdown_lines(base)
    compared = base / "compare" / "comparison.md"
    if compared.exists():
        parts += ["", "## Methods side by side", "", compared.read_text().rstrip()]
    head = INTRODUCTION.format(config=CONFIG, cores=os.cpu_count())
    known = ", ".join(dict.fromkeys(filter(None, revisions)))
    head += f" Runs of revision {known}." if known else ""
    out.write_text("\n".join(["# Measured", "", *textwrap.wrap(head, 100), *parts]) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/show"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/measured.md"), help="page to write")
    parser.add_argument(
        "--only",
        help="run only jobs whose name starts with this, or one of: "
        + ", ".join(bench.name for bench in (*BENCHES, PEER)),
    )
    args = parser.parse_args(arguments)
    for job in [*SEEDS, *SELECTORS, *VARIANTS, *AUDITED]:
        if not args.only or job.name.startswith(args.only):
            found = carry_out(args.runs, job)
            if job not in AUDITED:
                print(f"{HEAD}\n{run_row(job.name, found)}", flush=True)
    for bench in (*BENCHES, PEER):
        if args.only == bench.name or (not args.only and bench is not PEER):
            bench.run_if_missing(args.runs)
    write_page(args.runs, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
