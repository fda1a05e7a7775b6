"""Whole jobs as a user starts them: `darts train` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.paths import ROOT

QUICK = [
    "step.count=6",
    "learner.warmup_steps=2",
    "step.prompts=4",
    "group.size=4",
    "sampling.max_tokens=64",
    "eval.every=0",
    "checkpoint.every=2",
]
"""Small steps; every prompt is trained on, whatever its rewards."""


def length_reward(sample: Any) -> float:
    """A reward for engines that write random tokens: short ones are right."""
    return float(sample.tokens < 20)


SIMULATED = [
    "engine.kind=simulated",
    f"reward.python.function={__name__}:length_reward",
]


def heed_ctrl_c() -> None:
    """A shell's background job is started deaf to it, and so is all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Job:
    """One `darts train`; a context manager that leaves nothing running.

    Args:
        path: where its processes find modules of the test's own.
        module: what is run; `launch.cli` is `darts`.
    """

    def __init__(
        self, arguments: list[str], log: Path, path: Path = ROOT, module: str = "launch.cli"
    ) -> None:
        self.log = log
        self._file = log.open("wb")
        modules = os.pathsep.join(dict.fromkeys((str(path), str(ROOT))))
        environment = {**os.environ, "PYTHONPATH": modules, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,  # noqa: PLW1509  one call, no locks
        )
        self.family: dict[int, psutil.Process] = {}

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._file.close()
        for process in self.left():
            process.kill()

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def look(self) -> None:
        """Remember every process that the job has now."""
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self.family[process.pid] = process
        except psutil.NoSuchProcess:
            pass

    def left(self, patience_s: float = 5.0) -> list[psutil.Process]:
        """Processes of the job that are still there after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while True:
            alive = [p for p in self.family.values() if p.is_running() and p.status() != "zombie"]
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.1)

    def until(self, what: Callable[[], bool], limit_s: float = 240.0) -> None:
        """Wait for something. Raises AssertionError with the job's words if it never comes."""
        deadline = time.monotonic() + limit_s
        while not what():
            self.look()
            assert self.process.poll() is None, f"the job ended early:\n{self.text}"
            assert time.monotonic() < deadline, f"not within {limit_s:.0f} s:\n{self.text}"
            time.sleep(0.1)

    def wait(self, limit_s: float = 300.0) -> int:
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < deadline, f"still running after {limit_s:.0f} s:\n{self.text}"
            time.sleep(0.1)
        return self.process.returncode

    def child(self, module: str) -> psutil.Process:
        """The process that runs `python -m module`."""
        self.look()
        found = [p for p in self.family.values() if p.is_running() and module in p.cmdline()]
        assert len(found) == 1, f"{module}: {found}"
        return found[0]


def train(
    run: Path,
    log: Path,
    *overrides: str,
    path: Path = ROOT,
    module: str = "launch.cli",
    config: str = "configs/quickstart.yaml",
) -> Job:
    arguments = ["train", config, "--out", str(run), *QUICK, *overrides]
    return Job(arguments, log, path, module)


def lines(path: Path, what: str) -> list[dict[str, Any]]:
    """Records of one kind from a JSONL file of a run."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")  # the last line may still be being written
    found = [json.loads(line) for line in whole.splitlines()]
    return [line for line in found if line["what"] == what]


def steps_done(run: Path) -> int:
    return len(lines(run / "metrics.jsonl", "step"))


def trained_prompts(run: Path) -> list[tuple[int, int]]:
    """(step, prompt) of every group that was trained on, in order."""
    groups = lines(run / "decisions.jsonl", "group")
    return sorted((g["step"], g["prompt"]) for g in groups if g["fate"] == "trained")


def check_timing(run: Path, measured: set[str]) -> None:
    """Every step has its timing line: a critical path as long as it, and figures."""
    steps = lines(run / "metrics.jsonl", "step")
    timings = lines(run / "metrics.jsonl", "timing")
    assert [t["step"] for t in timings] == [s["step"] for s in steps]
    for step, timing in zip(steps, timings, strict=True):
        assert timing["seconds"] == pytest.approx(step["seconds"])
        whole = sum(seconds for _, _, seconds, _ in timing["critical_path"])
        assert whole == pytest.approx(step["seconds"], rel=0.02), timing["critical_path"]
        assert timing["explained_share"] > 0.98, timing["critical_path"]
        kinds = {(lane, what) for lane, what, _, _ in timing["critical_path"]}
        assert ("learner rank 0", "optimizer step") in kinds
    assert measured <= {name for timing in timings for name in timing["percentiles"]}
    for timing in timings:
        for name, found in timing["percentiles"].items():
            assert -1e-6 <= found["p50"] <= found["p95"] <= found["p99"] <= found["max"], name


def shared_memory() -> set[str]:
    """Names in /dev/shm that a run of darts or vLLM may have made."""
    root = Path("/dev/shm")
    return {p.name for p in root.iterdir()} if root.is_dir() else set()


def broken_reward(sample: Any) -> float:
    raise ValueError("this reward is broken")


async def slow_tool(turn: Any) -> str | None:
    """An environment: something to add to the first two turns, after a while."""
    await asyncio.sleep(0.1)
    return "=16;" if turn.number < 2 else None
