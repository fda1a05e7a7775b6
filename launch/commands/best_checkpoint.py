"""Finds the checkpoint of a run's best step, by its own evaluations (`eval.best`).

The lines of `metrics.jsonl` rank the steps; the best one with a complete checkpoint wins. So no
other record of the best step has to be kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.run_files.jsonl import read_lines
from pipeline.checkpoint import store
from pipeline.config.load import load
from pipeline.observability.trackers import flat_metrics
from pipeline.system.run_folder import RunFolder


def best_checkpoint(path: Path) -> tuple[Path, str]:
    """Returns the checkpoint, and why it is the best. Raises ValueError or ConfigError."""
    run = RunFolder(path)
    if not run.config.exists():
        raise ValueError(f"{path}: not the folder of a run: it has no {run.config.name}")
    key = load(run.config, weights=False).eval.best
    if not key:
        raise ValueError(
            f"{run.config}: eval.best is empty, so no step is the best; choose a checkpoint in "
            f"{run.checkpoints}"
        )
    damaged: list[str] = []
    found: dict[int, float] = {}
    for line in read_lines(run.metrics, {"eval": dict[str, Any]}, damaged.append):
        value = eval_metric(line, key)
        if value is not None:
            found[line["step"]] = value
    for step in sorted(found, key=lambda step: (-found[step], step)):
        directory = run.checkpoints / store.name_of(step)
        if step > 0 and directory.is_dir():
            store.check_owner(directory)
            store.verify(directory)
            return directory, f"{key} {found[step]:.3f} at step {step}"
    raise ValueError(f"{run.path}: none of the {len(found)} steps with {key} has a checkpoint")


def eval_metric(line: dict[str, Any], key: str) -> float | None:
    """Returns a metric of a line `eval`: `accuracy`, or `aime/accuracy` of a set."""
    numbers = flat_metrics(line)
    return numbers.get(f"sets/{key}", numbers.get(key))
