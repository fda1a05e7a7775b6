"""The run folder's files: metrics, decisions, samples, TensorBoard, the result.

Takes the coordinator's reports; every JSONL line has the step it belongs to.
A checkpoint notes how long the files are, and a resume cuts them there, so
that no curve has a point twice.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import xxhash

from pipeline.events import AnyCommand, AnyEvent
from pipeline.runfolder import RunFolder
from pipeline.trace import Trace

# tensorboardX loads torch where it finds it, which costs the stage seconds and 200 MB.
_torch_before = sys.modules.get("torch")
sys.modules["torch"] = None  # type: ignore[assignment]
from tensorboardX import SummaryWriter  # noqa: E402

if _torch_before is None:
    del sys.modules["torch"]
else:
    sys.modules["torch"] = _torch_before

_NOT_A_TAG = re.compile(r"[^A-Za-z0-9_./-]+")
SAMPLES_SHOWN = 8
"""Prompts of an evaluation to which a response is kept as text."""


def _checksum(prompt: str) -> int:
    return xxhash.xxh64_intdigest(prompt.encode())


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{prefix}{key}/")  # type: ignore[arg-type]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + key] = float(value)
    return numbers


class Records:
    """Open files of one run; `close()` at the end."""

    def __init__(self, run: RunFolder, resumed_step: int = -1, trace_steps: int = 0) -> None:
        self._run = run
        first = max(0, resumed_step)
        self._trace = Trace(first, first + trace_steps - 1) if trace_steps else None
        self._files: dict[Path, BinaryIO] = {}
        self._board = SummaryWriter(
            str(run.tensorboard),
            flush_secs=10,
            purge_step=resumed_step if resumed_step >= 0 else None,  # what follows is done again
        )
        self._samples: dict[str, str] = {}  # prompt -> what is written of it

    def write(self, what: str, fields: dict[str, Any]) -> None:
        """One report of the coordinator."""
        if what in ("decision", "group", "budget"):
            self._line(self._run.decisions, {"what": what, **fields})
            return
        self._line(self._run.metrics, {"what": what, "time": round(time.time(), 3), **fields})
        if what in ("step", "eval"):
            for name, value in _flat(fields).items():
                tag = _NOT_A_TAG.sub("_", f"{what}/{name}")
                self._board.add_scalar(tag, value, fields["step"])
        if what == "eval":
            self._write_samples(fields["step"])

    def saw(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        """What the coordinator heard and said, for the trace of the first steps."""
        if self._trace is not None:
            self._trace.saw(now, event, commands)
            if self._trace.done:
                self._write_trace()

    def _write_trace(self) -> None:
        if self._trace is not None:
            self._run.trace.write_bytes(msgspec.json.encode(self._trace.document()))
            self._trace = None

    def sample(self, prompt: str, response: str, reward: float | None) -> None:
        """A scored response of an evaluation. Kept as text is the first to each of a few prompts:
        by checksum, so that every evaluation shows the same ones, whichever are answered first."""
        self._samples.setdefault(prompt, f"[{reward}] {prompt}{response}\n")
        if len(self._samples) > SAMPLES_SHOWN:
            del self._samples[max(self._samples, key=_checksum)]

    def _write_samples(self, step: int) -> None:
        (self._run.samples / f"step-{step:06d}.txt").write_text(
            "".join(self._samples[prompt] for prompt in sorted(self._samples))
        )
        self._samples = {}

    def _line(self, path: Path, fields: dict[str, Any]) -> None:
        if path not in self._files:
            self._files[path] = open(path, "ab")  # noqa: SIM115  closed by close()
        self._files[path].write(msgspec.json.encode(fields) + b"\n")

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def sizes(self) -> dict[str, int]:
        """Length of each JSONL file now, for the checkpoint."""
        self.flush()
        paths = (self._run.metrics, self._run.decisions)
        return {p.name: p.stat().st_size for p in paths if p.exists()}

    @staticmethod
    def cut(run: RunFolder, sizes: Mapping[str, int]) -> None:
        """Forget what was written after a checkpoint."""
        for path in (run.metrics, run.decisions):
            if path.exists():
                os.truncate(path, min(sizes.get(path.name, 0), path.stat().st_size))

    def result(self, fields: dict[str, Any]) -> None:
        temporary = self._run.result.with_suffix(".tmp")
        temporary.write_text(json.dumps(fields, indent=1) + "\n")
        temporary.rename(self._run.result)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
        self._write_trace()
        self._board.close()
