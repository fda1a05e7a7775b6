"""The checkpoint of a run's best step, by its own evaluations (`eval.best`).

Read from what is there: the lines of `metrics.jsonl` say which step was the best, and the
best of those that have a whole checkpoint is it. Nothing else has to be kept in step with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.run_files.jsonl import lines
from pipeline.checkpoint import store
from pipeline.config.load import load
from pipeline.observability.trackers import flat_metrics
from pipeline.system.run_folder import RunFolder


def best_checkpoint(path: Path) -> tuple[Path, str]:
    """The checkpoint and what it was best in, in words. Raises ValueError or ConfigError."""
    run = RunFolder(path)
    if not run.config.exists():
        raise ValueError(f"{path}: no run: it has no {run.config.name}")
    key = load(run.config).eval.best
    if not key:
        raise ValueError(
            f"{run.config}: eval.best is empty: no step was kept as the best; name a checkpoint "
            f"below {run.checkpoints}"
        )
    damaged: list[str] = []
    found: dict[int, float] = {}
    for line in lines(run.metrics, {"eval": dict[str, Any]}, damaged.append):
        value = figure(line, key)
        if value is not None:
            found[line["step"]] = value
    for step in sorted(found, key=lambda step: (-found[step], step)):
        directory = run.checkpoints / store.name_of(step)
        if step > 0 and directory.is_dir():
            store.check_owner(directory)
            store.verify(directory)
            return directory, f"{key} {found[step]:.3f} at step {step}"
    raise ValueError(f"{run.path}: none of the {len(found)} steps with {key} has a checkpoint")


def figure(line: dict[str, Any], key: str) -> float | None:
    """Of a line `eval`: `accuracy`, or `aime/accuracy` of a set."""
    numbers = flat_metrics(line)
    return numbers.get(f"sets/{key}", numbers.get(key))
