"""`make show`: the tables of the documents, measured here, one job after another.

Runs the quickstart with three seeds, then every selector of the house once,
and writes `docs/measured.md` from the runs' own files. Takes its time (about
three minutes a job on two cores); a job whose result is there is not run
again, so an interrupted show goes on where it was. `--only NAME` runs one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

CONFIG = "configs/quickstart.yaml"


class Job(msgspec.Struct, frozen=True):
    name: str
    overrides: tuple[str, ...] = ()


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
VARIANTS = [
    Job("the default", ("seed=0",)),
    Job("learner.overlap: off", ("learner.overlap=off",)),
    Job("groups of equal rewards replaced", ("advantage.drop_equal=true",)),
]


def folder(base: Path, job: Job) -> Path:
    """Named by what is different, so that two tables can share a run."""
    return base / "".join(c if c.isalnum() else "-" for c in "-".join(job.overrides))


def carry_out(base: Path, job: Job) -> dict[str, Any]:
    """Run a job unless its result is there. Raises RuntimeError if it fails."""
    run = folder(base, job)
    result = run / "result.json"
    if not result.exists():
        print(f"--- {job.name}: {' '.join(job.overrides)}", flush=True)
        command = [sys.executable, "-m", "launch.cli", "train", CONFIG, "--out", str(run)]
        begun = time.monotonic()
        if subprocess.run([*command, *job.overrides], check=False).returncode:
            raise RuntimeError(f"{job.name} failed; see {run}; remove the folder to run it again")
        (run / "wall_seconds").write_text(f"{time.monotonic() - begun:.1f}")
    found = json.loads(result.read_text())
    found["wall_seconds"] = float((run / "wall_seconds").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["what"] == "step"]
    found["p95_after"] = [line for line in lines if line["what"] == "eval"][-1]["tokens_p95"]
    found["median_step_s"] = sorted(s["seconds"] for s in steps)[len(steps) // 2]
    found["gap"] = max(line["gap"] for line in lines if line["what"] == "served")
    return found


def row(name: str, r: dict[str, Any]) -> str:
    tokens = r["tokens"]
    sampled = r["tokens_reported_by_engines"] - tokens["eval"]
    shorter = r["mean_tokens_after"] / r["mean_tokens_before"] - 1
    return (
        f"| {name} | {r['accuracy_before']:.3f} | {r['accuracy_after']:.3f} "
        f"| {r['mean_tokens_before']:.1f} | {r['mean_tokens_after']:.1f} ({shorter:+.0%}) "
        f"| {r['p95_after']} | {r['train_seconds']:.0f} | {r['median_step_s']:.2f} "
        f"| {sampled / 1000:.0f}k | {tokens['trained'] / 1000:.0f}k "
        f"| {tokens['aborted'] / 1000:.0f}k | {sampled / max(1, tokens['trained']):.2f} |"
    )


HEAD = (
    "| run | accuracy before | after | mean tokens before | after | p95 after | train s "
    "| median step s | sampled | trained | aborted | sampled per trained |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)

INTRODUCTION = """Written by `make show` (`launch/bench/show.py`) from the runs' own files: held-out
accuracy and lengths of {config}, 256 prompts x 4 samples; tokens without
evaluation. One machine, {cores} cores, no GPU, one job at a time."""


def write(base: Path, out: Path) -> None:
    """The tables of what has been run so far."""
    parts = [
        "# Measured",
        "",
        INTRODUCTION.format(config=CONFIG, cores=os.cpu_count()),
    ]
    for title, jobs in (
        ("Three seeds of the quickstart", SEEDS),
        ("Every selector, seed 0", SELECTORS),
        ("Variants, seed 0", VARIANTS),
    ):
        rows = [
            row(job.name, carry_out(base, job))
            for job in jobs
            if (folder(base, job) / "result.json").exists()
        ]
        if rows:
            parts += ["", f"## {title}", "", HEAD, *rows]
    out.write_text("\n".join(parts) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/show"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/measured.md"))
    parser.add_argument("--only", help="run only jobs whose name begins with this")
    args = parser.parse_args(arguments)
    for job in [*SEEDS, *SELECTORS, *VARIANTS]:
        if not args.only or job.name.startswith(args.only):
            found = carry_out(args.runs, job)
            print(f"{HEAD}\n{row(job.name, found)}", flush=True)
    write(args.runs, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
