"""One cell of a comparison: a method with one seed, run by `darts train` in its own folder.

A cell is finished when its folder holds a result of exactly this configuration. An interrupted
cell is removed and run again, so that every time is that of a complete run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec

from launch.bench.compare.methods import Method
from launch.bench.compare.target_time import likely_seconds, seconds_to
from launch.launcher.environment import clean_environment
from launch.launcher.processes import Child, end_all
from launch.report.metrics import RunAverages, run_averages
from launch.run_files.jsonl import all_lines
from launch.run_files.records import EvalLine, StepLine, learning_curve
from pipeline.config.load import dump, load
from pipeline.system.run_folder import RunFolder

STOP_S = 15.0
"""Seconds from Ctrl-C to the end of a cell's processes; `timeouts.stop_s` is 10 by default."""
_POLL_S = 0.2


class CellError(Exception):
    """A cell cannot run or has failed; the message says where to look."""


class Metrics(RunAverages, frozen=True, kw_only=True):
    """Metrics of a finished cell."""

    seconds_to_target: float | None  # training seconds at the first evaluation that reaches it
    target_range_s: tuple[float | None, float | None] | None  # see `likely_seconds`
    final_accuracy: float
    accuracy_by_kind: dict[str, float]  # final accuracy by kind of prompt; of tasks, by depth
    deep_accuracy: float | None  # final accuracy on the deepest prompts
    mean_tokens: float  # of held-out responses, last evaluation
    late_share: float | None  # steps of the engines slower than the pace; None: not paced
    late_time: float | None  # by how much slower they were, over the engines' time in training


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    method: Method
    seed: int
    config: Path
    overrides: tuple[str, ...]  # of every cell; the method's follow
    base: Path  # folder of the comparison

    @property
    def name(self) -> str:
        return f"{self.method.name}-s{self.seed}"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.base / self.name)

    @property
    def settings(self) -> list[str]:
        return [*self.overrides, *self.method.overrides, f"seed={self.seed}"]

    @property
    def finished(self) -> bool:
        """True if its run is complete. Raises CellError if that run has other settings."""
        if not self.run.result.exists():
            return False
        if self.run.config.read_text("utf-8") != dump(load(self.config, self.settings)):
            raise CellError(
                f"{self.run.path}: a finished run with other settings; "
                f"remove it, or choose another --folder"
            )
        return True

    def carry_out(self) -> None:
        """Runs it from the start. Raises CellError if it fails; Ctrl-C ends it first."""
        if self.run.path.exists():
            shutil.rmtree(self.run.path)
        log = self.base / f"{self.name}.log"
        log.unlink(missing_ok=True)
        command = ["launch.cli", "train", str(self.config), "--out", str(self.run.path)]
        child = Child(self.name, [*command, *self.settings], log, clean_environment())
        child.start()
        try:
            while child.running:
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            os.kill(child.pid, signal.SIGINT)
            raise
        finally:
            end_all([child], STOP_S)
        if child.exit_text() != "exit 0":
            raise CellError(f"{self.name}: {child.exit_text()}; end of {log}:\n{child.tail()}")

    def eval_curve(self) -> list[EvalLine]:
        """Returns its evaluations, each with the training seconds before it."""
        return learning_curve(*self._lines())

    def final_metrics(self, target: float) -> Metrics:
        """Computes its metrics; `target` is a held-out accuracy."""
        steps, evaluations = self._lines()
        found = learning_curve(steps, evaluations)
        late_share, late_time = self._late()
        return Metrics(
            **msgspec.structs.asdict(run_averages(steps)),
            seconds_to_target=seconds_to(found, target),
            target_range_s=likely_seconds(found, target),
            final_accuracy=found[-1].accuracy,
            accuracy_by_kind=found[-1].by_tag,
            deep_accuracy=found[-1].deep_accuracy,
            mean_tokens=found[-1].tokens_mean,
            late_share=late_share,
            late_time=late_time,
        )

    def _late(self) -> tuple[float, float] | tuple[None, None]:
        """The share of the engines' steps that were slower than the pace, and of their time."""
        result = json.loads(self.run.result.read_text("utf-8"))
        if not (paced := result.get("paced")):
            return None, None
        engines = load(self.run.config).engine.count
        time_s = result["train_seconds"] * engines
        return paced["late"] / max(1, paced["steps"]), paced["late_s"] / max(1e-9, time_s)

    def _lines(self) -> tuple[list[StepLine], list[EvalLine]]:
        lines = all_lines(self.run.metrics)
        return (
            [msgspec.convert(line, StepLine) for line in lines if line["what"] == "step"],
            [msgspec.convert(line, EvalLine) for line in lines if line["what"] == "eval"],
        )
