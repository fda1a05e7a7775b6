"""One cell of a comparison: a method with one seed, as a `darts train` in a folder of its own.

Turns a cell into a finished run, and a finished run's files into figures. A cell is
finished when its folder holds a result of exactly this configuration; what was
interrupted is removed and run again, so that every time is that of a whole run.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from launch.bench.compare.methods import Method
from launch.launcher.processes import Child, clean_environment, end_all
from launch.report.metrics import StepFigures, step_metrics
from launch.run_files.records import EvalLine, StepLine, curve
from pipeline.config.load import dump, load
from pipeline.system.run_folder import RunFolder

STOP_S = 15.0
"""From Ctrl-C to the end of a cell's processes; `timeouts.stop_s` is 10 by default."""
_POLL_S = 0.2


class CellError(Exception):
    """A cell cannot be run, or has failed; the message says where to look."""


class Metrics(StepFigures, frozen=True, kw_only=True):
    """One finished cell in numbers."""

    seconds_to_target: float | None  # training seconds at the first evaluation that reaches it
    final_accuracy: float
    deep_accuracy: float | None  # final, on the deepest prompts
    mean_tokens: float  # of a held-out response, last evaluation


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    method: Method
    seed: int
    config: Path
    overrides: tuple[str, ...]  # for every cell of the comparison; the method's come after them
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
        """Whether a whole run of it is there. Raises CellError if one of other settings is."""
        if not self.run.result.exists():
            return False
        if self.run.config.read_text() != dump(load(self.config, self.settings)):
            raise CellError(
                f"{self.run.path}: a finished run of other settings; "
                f"remove it, or choose another --folder"
            )
        return True

    def carry_out(self) -> None:
        """Run it from the start. Raises CellError if it fails; Ctrl-C ends it first."""
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
        if child.ended() != "exit 0":
            raise CellError(f"{self.name}: {child.ended()}; {log} ends:\n{child.tail()}")

    def curve(self) -> list[EvalLine]:
        """Its evaluations, with the training seconds at each."""
        return curve(*self._lines())

    def metrics(self, target: float) -> Metrics:
        """Numbers of a finished cell.

        Args:
            target: held-out accuracy.
        """
        steps, evaluations = self._lines()
        found = curve(steps, evaluations)
        return Metrics(
            **msgspec.structs.asdict(step_metrics(steps)),
            seconds_to_target=next((e.train_s for e in found if e.accuracy >= target), None),
            final_accuracy=found[-1].accuracy,
            deep_accuracy=found[-1].deep_accuracy,
            mean_tokens=found[-1].tokens_mean,
        )

    def _lines(self) -> tuple[list[StepLine], list[EvalLine]]:
        lines: list[dict[str, Any]] = [
            msgspec.json.decode(line) for line in self.run.metrics.read_bytes().splitlines()
        ]
        return (
            [msgspec.convert(line, StepLine) for line in lines if line["what"] == "step"],
            [msgspec.convert(line, EvalLine) for line in lines if line["what"] == "eval"],
        )
