"""The programs that `make show` runs beside its own jobs, each with a table of its results.

Turns a program's JSON into lines of Markdown. A file that exists is not measured again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

Found = Mapping[str, Any]


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """One program that writes JSON with `--out`."""

    name: str  # name of the file, and for `--only`
    title: str
    module: str
    arguments: tuple[str, ...]
    table: Callable[[Found], list[str]]

    def run_if_missing(self, base: Path) -> None:
        """Runs it unless its file exists. Raises RuntimeError if it fails."""
        out = base / f"{self.name}.json"
        if out.exists():
            return
        base.mkdir(parents=True, exist_ok=True)
        print(f"--- {self.title}", flush=True)
        whole = out.with_suffix(".tmp")
        command = [sys.executable, "-m", self.module, *self.arguments, "--out", str(whole)]
        if subprocess.run(command, check=False).returncode:
            raise RuntimeError(f"{self.name} failed; run it alone: {' '.join(command[1:])}")
        whole.rename(out)

    def markdown_lines(self, base: Path) -> list[str]:
        """Returns its section of the document; [] if it has not been measured."""
        file = base / f"{self.name}.json"
        if not file.exists():
            return []
        shown = " ".join(["python -m", self.module, *self.arguments])
        table = self.table(json.loads(file.read_text()))
        return ["", f"## {self.title}", "", f"`{shown}`", "", *table]


def overhead_table(found: Found) -> list[str]:
    """Compares rates through the pipeline with vLLM alone."""
    rows = [
        f"| {about} | {statistics.median(found[way]['tokens_per_s']):.0f} "
        f"| {found[way]['ratio']:.3f} | {_span(found[way]['ratios'])} |"
        for way, about in (
            ("raw", "`AsyncLLM` alone"),
            ("sink", "through the pipeline, with an idle learner"),
            ("learner", "through the pipeline, with the learner training"),
        )
    ]
    return ["| way | tokens/s | of raw, median | lowest to highest |", "|---|---|---|---|", *rows]


def backward_table(found: Found) -> list[str]:
    """Compares a step with its bound: the longer of generation and learning, plus the rest."""
    limit = _medians(found["bounds"])
    lines = [
        "| | s |",
        "|---|---|",
        f"| generation alone | {limit['generation']:.2f} |",
        f"| learning alone | {limit['learning']:.2f} |",
        f"| last group, optimizer, publish, load, proof | {limit['serial']:.2f} |",
        f"| bound: the longer one and the serial part | {limit['bound']:.2f} |",
    ]
    for way in ("off", "group"):
        step = _medians(found[way])["step"]
        ratio = found[f"{way}_over_bound"]
        lines.append(f"| a step, overlap `{way}` | {step:.2f} ({ratio:.2f} of the bound) |")
    return lines


def logprobs_table(found: Found) -> list[str]:
    """Shows the share of forwards for old logprobs that ran during generation."""
    lines = ["| `learner.overlap` | s a step | logprobs s | hidden |", "|---|---|---|---|"]
    for way in ("off", "token"):
        middle = _medians(found[way])
        share = found[f"{way}_hidden_share"]
        lines.append(
            f"| {way} | {middle['step']:.2f} | {middle['logprobs']:.2f} "
            f"| {'-' if share is None else f'{share:.0%}'} |"
        )
    return lines


def tracing_table(found: Found) -> list[str]:
    """Compares steps with and without timing and trace."""
    rows = [
        f"| {way} | {statistics.median(metrics['step_s']):.4f} | {metrics['ratio']:.3f} "
        f"| {metrics['own_share']:.2%} |"
        for way, metrics in found.items()
    ]
    head = "| way | s a step | of `off`, median of pairs | share of recording in the stage |"
    return [head, "|---|---|---|---|", *rows]


def trl_table(found: Found) -> list[str]:
    """Compares both trainers at each size, by seed."""
    lines: list[str] = []
    for name, size in found["sizes"].items():
        lines += [
            f"`{size['config']}`, {size['steps']} steps, target {size['target']} ({name}):",
            "",
            "| trainer | seed | s a step | s to target | accuracy | mean tokens |",
            "|---|---|---|---|---|---|",
        ]
        for side, rows in size["sides"].items():
            lines += [f"| {side} {_trl_row(row)}" for row in rows]
        lines += ["", *_trl_notes(size), ""]
    about = found["about"]
    return [
        *lines,
        f"Revision {about['revision']}, TRL {about['versions']['trl']}, {about['cores']} cores.",
    ]


def _trl_row(row: Found) -> str:
    reached = row["seconds_to_target"]
    return (
        f"| {row['seed']} | {row['step_seconds']:.2f} "
        f"| {'never' if reached is None else f'{reached:.0f}'} "
        f"| {row['accuracy_before']:.3f} -> {row['accuracy_after']:.3f} "
        f"| {row['mean_tokens_after']:.1f} |"
    )


def _trl_notes(size: Found) -> list[str]:
    """Tells how many times as long TRL takes, and how its setting was chosen."""
    notes: list[str] = []
    for darts, others in size["ratios"].items():
        for trl, ratios in others.items():
            known = [
                f"{name.replace('_', ' ')} {ratio:.1f}x"
                for name, ratio in ratios.items()
                if ratio is not None
            ]
            told = ", ".join(known) or "no metric on both sides"
            notes.append(f"- {trl} over {darts}, median of the seeds: {told}")
    probes = [
        f"{name} {'failed' if (s := probe['step_seconds']) is None else f'{s:.2f} s'}"
        for name, probe in size["probes"].items()
    ]
    return [*notes, *([f"- settings of TRL, a few steps each: {', '.join(probes)}"] * bool(probes))]


BENCHES = (
    Bench(
        name="overhead",
        title="Tokens per second, through the pipeline and without it",
        module="scripts.bench.engine_overhead",
        arguments=("--repeats", "3"),
        table=overhead_table,
    ),
    Bench(
        name="backward",
        title="A large step of `first_m`, with and without overlap",
        module="scripts.bench.overlap",
        arguments=("--study", "backward"),
        table=backward_table,
    ),
    Bench(
        name="barrier",
        title="The same step with `dual_end`, whose groups may wait for the barrier",
        module="scripts.bench.overlap",
        arguments=("--study", "barrier", "--repeats", "2"),
        table=backward_table,
    ),
    Bench(
        name="logprobs",
        title="`configs/darts.yaml`: old logprobs chunk by chunk",
        module="scripts.bench.overlap",
        arguments=("--study", "logprobs"),
        table=logprobs_table,
    ),
    Bench(
        name="tracing",
        title="What timing and trace cost",
        module="scripts.bench.tracing",
        arguments=("--steps", "30", "--repeats", "2"),
        table=tracing_table,
    ),
)
PEER = Bench(
    name="trl",
    title="TRL on the same model, task and machine",
    module="scripts.bench.trl_peer",
    arguments=(),
    table=trl_table,
)
"""Needs the extra `bench`, so it runs only by name."""


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
