"""The run folder's files: metrics, decisions, samples, the live state, the result.

Takes the coordinator's reports, and hands their numbers to the trackers; every
JSONL line has the step it belongs to.
A checkpoint notes how long the files are, and a resume cuts them there, so
that no curve has a point twice.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.observability import timing
from pipeline.observability.chrome_trace import Tracer
from pipeline.observability.jsonl_writer import JsonlWriter
from pipeline.observability.live_status import RunStatus
from pipeline.observability.trackers import Tracker, Trackers, flat_metrics
from pipeline.plugins.views import Sampled
from pipeline.system.run_folder import RunFolder
from pipeline.system.terminal_text import encodable
from pipeline.wire.messages import Span

log = logging.getLogger("stage")

DECIDED = ("decision", "group", "budget", "plan", "batch")
"""Reports that are written to decisions.jsonl; the others are to metrics.jsonl."""
SAMPLES_SHOWN = 8
"""Prompts of an evaluation to which a response is kept as text."""


class SampleLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A response of an evaluation, a line of `samples/step-NNNNNN.jsonl`."""

    prompt: str  # as the model read it
    response: str
    answer: str = ""  # what the reward compares with
    reward: float
    parts: dict[str, float] = {}
    finish: str = ""  # stop | length
    tokens: int = 0  # sampled ones
    pieces: tuple[tuple[str, bool], ...] = ()
    """Of a response of several turns: text, and whether the model sampled it."""


def _checksum(prompt: str) -> int:
    return xxhash.xxh64_intdigest(prompt.encode())


class Records:
    """Open files of one run; `close()` at the end.

    Args:
        trace_steps: steps from the start (or resume) whose trace is kept.
        timed: note who did what when; without it there are neither timing figures nor a trace.
        reward_workers: see `timing.figures`.
    """

    def __init__(
        self,
        run: RunFolder,
        resumed_step: int = -1,
        trace_steps: int = 0,
        *,
        timed: bool = True,
        reward_workers: int = 0,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._run, self.trackers = run, Trackers(trackers)
        first = max(0, resumed_step)
        self._traced = range(first, first + trace_steps)
        self._tracer = Tracer(first, first + trace_steps - 1) if timed else None
        self._reward_workers = reward_workers
        self._recording_s = 0.0  # of the open step, spent on its timing
        self._files: dict[Path, JsonlWriter] = {}
        self._full: set[Path] = set()  # files that were reported as full
        self._samples: dict[str, SampleLine] = {}  # prompt -> a response to it

    def write(self, what: str, fields: dict[str, Any]) -> None:
        """One report of the coordinator."""
        decided = what in DECIDED
        path = self._run.decisions if decided else self._run.metrics
        self._line(path, {"what": what, "time": round(time.time(), 3), **fields})
        if what in ("step", "eval", "timing"):
            self.trackers.log_metrics(what, fields["step"], flat_metrics(fields))
        if what == "eval":
            self._write_samples(fields["step"])

    def record_event(
        self, now: float, event: AnyEvent, commands: Sequence[AnyCommand], done: float
    ) -> None:
        """Records what the coordinator heard and answered; see `Timeline.saw`."""
        if self._tracer is None:
            return
        begun = time.perf_counter()
        for record in self._tracer.record_event(now, event, commands, done):
            found = timing.timing_metrics(record, self._reward_workers)
            spent_s = self._recording_s + time.perf_counter() - begun
            self._recording_s, begun = 0.0, time.perf_counter()
            self.write("timing", {**found, "recording_s": spent_s})
            if record.step == self._traced.stop - 1:
                self._write_trace(over=False)
        self._recording_s += time.perf_counter() - begun

    def record_work(
        self, role: str, name: str, rank: int, spans: Sequence[Span], hints: Sequence[float] = ()
    ) -> None:
        """Records what a peer says of its own work, in the stage's clock.

        Args:
            hints: seconds that hints were on their way to a learner rank.
        """
        if self._tracer is None:
            return
        begun = time.perf_counter()
        if role == "learner":
            self._tracer.timeline.record_work(rank, spans, hints)
        else:
            self._tracer.timeline.weights_loaded(name, spans)
        self._recording_s += time.perf_counter() - begun

    def _write_trace(self, *, over: bool) -> None:
        """The steps that are traced, in one file, once; a disk that is full ends no run."""
        if self._tracer is None or not self._traced:
            return
        self._traced = range(0)
        document = self._tracer.trace_document(over=over)
        if not any(event["ph"] == "X" for event in document["traceEvents"]):
            return  # nothing happened: what an earlier run left here is worth more
        try:
            self._run.trace.write_bytes(msgspec.json.encode(document))
        except OSError as error:
            log.warning("no trace: %s", error)

    def sample(self, sampled: Sampled, reward: float, parts: dict[str, float]) -> None:
        """A scored response of an evaluation. The first to each of a few prompts is kept: by
        checksum, so that every evaluation shows the same ones, whichever are answered first."""
        line = SampleLine(
            prompt=sampled.prompt,
            response=sampled.response,
            answer=encodable(sampled.answer),
            reward=reward,
            parts=parts,
            finish=sampled.finish,
            tokens=sampled.tokens,
            pieces=tuple(sampled.pieces),
        )
        self._samples.setdefault(line.prompt, line)
        if len(self._samples) > SAMPLES_SHOWN:
            del self._samples[max(self._samples, key=_checksum)]

    def _write_samples(self, step: int) -> None:
        lines = [self._samples[prompt] for prompt in sorted(self._samples)]
        self._samples = {}
        try:
            file = self._run.samples / f"step-{step:06d}.jsonl"
            file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        except OSError as error:
            log.warning("no samples of step %d: %s", step, error)

    def _line(self, path: Path, fields: dict[str, Any]) -> None:
        if path not in self._files:
            self._files[path] = JsonlWriter(path)
        self._files[path].write(msgspec.json.encode(fields) + b"\n")

    def flush(self) -> list[str]:
        """Flushes every file; returns news for people: a disk that is full, or has room again."""
        said = self.trackers.news()
        for path, file in self._files.items():
            file.flush()
            if bool(file.full) == (path in self._full):
                continue
            if file.full:
                self._full.add(path)
                said.append(f"{path}: {file.full}; its lines wait in memory for room")
            else:
                self._full.discard(path)
                left_out = f", {file.lost} lines were left out" if file.lost else ""
                said.append(f"{path}: there is room again{left_out}")
        return said

    def sizes(self) -> dict[str, int]:
        """Length of each JSONL file now, for the checkpoint: of its whole lines on the disk."""
        found: dict[str, int] = {}
        for path in (self._run.metrics, self._run.decisions):
            if (file := self._files.get(path)) is not None:
                file.flush()
                found[path.name] = file.size
            elif path.exists():
                found[path.name] = path.stat().st_size
        return found

    @staticmethod
    def truncate_files(run: RunFolder, sizes: Mapping[str, int]) -> None:
        """Forget what was written after a checkpoint; a run that continues is not done any more."""
        run.result.unlink(missing_ok=True)
        for path in (run.metrics, run.decisions):
            if path.exists():
                os.truncate(path, min(sizes.get(path.name, 0), path.stat().st_size))

    def write_live(self, now: RunStatus) -> None:
        """Writes what the run does now; the file is replaced as a whole."""
        temporary = self._run.live.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(now) + b"\n")
            temporary.rename(self._run.live)
        except OSError as error:  # a full disk: only the live view misses it
            log.warning("no live state: %s", error)
        self.trackers.log_status(now)

    def result(self, fields: dict[str, Any]) -> None:
        """The run is over. Raises OSError: without it, it is not."""
        temporary = self._run.result.with_suffix(".tmp")
        temporary.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        temporary.rename(self._run.result)

    def close(self) -> list[str]:
        """The end of what is written here, then of the trackers; returns news for people."""
        self.close_files()
        self.trackers.close()
        return self.trackers.news()

    def close_files(self) -> None:
        """Trace and lines are on disk."""
        try:
            self._write_trace(over=True)
        finally:
            for path, file in self._files.items():
                file.close()
                if file.lost:
                    log.error("%s: %d lines found no room", path, file.lost)
            self._files = {}
