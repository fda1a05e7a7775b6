"""A simulated run's folder, with the files of a real one, for `darts explain` and `darts report`.

Writes what the coordinator reports as it reports it, so that a run that stops leaves its
decisions too. Times are the simulator's, from 0; about.json says what was modelled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.commands.train import about_run
from pipeline.config.load import dump
from pipeline.config.schema import Config
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyCommand, AnyEvent, Report
from pipeline.observability import timing
from pipeline.observability.chrome_trace import Tracer
from pipeline.observability.jsonl_writer import JsonlWriter
from pipeline.observability.recorder import DECIDED
from pipeline.system.run_folder import RunError, RunFolder


class SimulatedFolder:
    """An observer of a simulated run; `close()` at its end, however it ends.

    Raises: RunError if the folder holds a run already.
    """

    def __init__(self, path: Path, config: Config, modelled: str) -> None:
        self.run = RunFolder(path)
        if self.run.config.exists():
            raise RunError(f"{path}: already holds a run; choose another --out")
        self.run.samples.mkdir(parents=True, exist_ok=True)
        self.run.config.write_text(dump(config), encoding="utf-8")
        about = {**about_run(), "simulated": modelled}
        self.run.about.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        traced = config.metrics.trace_steps if config.metrics.timing else 0
        self._tracer = Tracer(0, traced - 1)
        self._metrics, self._decisions = (
            JsonlWriter(self.run.metrics),
            JsonlWriter(self.run.decisions),
        )

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        for record in self._tracer.record_event(now, event, commands):
            self._line(self._metrics, "timing", now, timing.timing_metrics(record))
        for command in commands:
            if isinstance(command, Report):
                file = self._decisions if command.what in DECIDED else self._metrics
                self._line(file, command.what, now, command.fields)

    def result(self, coordinator: Coordinator, simulated_s: float) -> None:
        """The run is over."""
        found = {**coordinator.outcome(simulated_s), "simulated": True}
        self.run.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def close(self) -> None:
        document = self._tracer.trace_document()
        if any(event["ph"] == "X" for event in document["traceEvents"]):
            self.run.trace.write_bytes(msgspec.json.encode(document))
        self._metrics.close()
        self._decisions.close()

    @staticmethod
    def _line(file: JsonlWriter, what: str, now: float, fields: dict[str, Any]) -> None:
        line = {"what": what, "time": round(now, 6), **fields}
        file.write(msgspec.json.encode(line) + b"\n")
