"""A long run under random faults: does anything grow that should not?

    python -m launch.bench.developer.soak [--minutes 20] [--seed 0] [--out FILE]

`darts train` with two simulated engines and a real learner. All the while engines are killed,
stopped and thawed, the stage reads slowly or not at all, frames are corrupted, and rewards raise,
crash and hang. Every few seconds: descriptors, threads and memory of each process, entries in
shared memory and in the directory of sockets. In the end a table, a verdict by slope (`flatness`),
and the books: no prompt trained on twice in a pass over the data, every token in one account.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from launch.bench.developer.flatness import Row, Series, row, table, verdict
from launch.bench.developer.namespaces import Started
from launch.run_files.jsonl import lines
from pipeline.system.temp_dirs import SHARED_MEMORY
from pipeline.wire.client import StageClient
from pipeline.wire.messages import Join, TokenBatch

SAMPLE_S = 2.0
PAUSE_S = (3.0, 9.0)
"""Between two faults."""
LOST_S = 8.0
"""A longer stop loses an engine, a shorter one loses nobody."""
START_S, END_S = 300.0, 60.0
SETTINGS = [
    "engine.kind=simulated",
    "engine.count=2",
    "engine.restarts=1000000",
    f"reward.python.function={__name__}:reward".replace("__main__", "launch.bench.developer.soak"),
    "workers.limit_s=2",
    "workers.count=2",
    "workers.fail_share=0.5",
    "step.count=1000000",
    "step.prompts=8",
    "group.size=4",
    "sampling.max_tokens=64",
    "eval.every=0",
    "checkpoint.every=20",
    f"timeouts.heartbeat_s={LOST_S}",
]
RAISES, CRASHES, HANGS = 0.01, 0.002, 0.001
"""Shares of the calls of the reward."""


def reward(sample: Any) -> float:
    """Short ones are right; now and then one raises, crashes or hangs."""
    draw = random.random()
    if draw < RAISES:
        raise ValueError("this call of the reward fails")
    if draw < RAISES + CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    if draw < RAISES + CRASHES + HANGS:
        time.sleep(3600)
    return float(sample.tokens < 20)


class Soak:
    """One run, its faults and its samples."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.run = folder / "run"
        arguments = ["train", "configs/quickstart.yaml", "--out", str(self.run), *SETTINGS]
        command = [sys.executable, "-m", "launch.cli", *arguments]
        self.job = Started(command, folder / "job.log")
        self.faults: Counter[str] = Counter()
        self.draw = random.Random(seed)
        self._series: dict[tuple[str, str], Series] = {}
        self._thaw: list[tuple[float, psutil.Process]] = []  # when, whom

    # --- what happens to it -----------------------------------------------------------------

    def harm(self, now: float) -> None:
        """One fault, drawn from the seed. Engines end seldom: each time they wait longer to be
        started again, and what is not there cannot be harmed."""
        kinds: dict[Callable[[float], str], int] = {
            self._kill_engine: 1,
            self._lose_engine: 1,
            self._stop_engine: 3,
            self._stop_stage: 3,
            self._stop_learner: 3,
            self._corrupt: 3,
        }
        [kind] = self.draw.choices(list(kinds), list(kinds.values()))
        with contextlib.suppress(psutil.Error, LookupError):  # it is being started just now
            self.faults[kind(now)] += 1

    def _engine(self) -> psutil.Process:
        return self.job.part("engines.worker", self.draw.choice(("e0", "e1")))

    def _kill_engine(self, now: float) -> str:
        del now
        self._engine().kill()
        return "engine killed"

    def _stop(self, process: psutil.Process, seconds: float, now: float) -> None:
        process.suspend()
        self._thaw.append((now + seconds, process))

    def _stop_engine(self, now: float) -> str:
        self._stop(self._engine(), self.draw.uniform(0.5, LOST_S / 4), now)
        return "engine stopped, thawed in time"

    def _lose_engine(self, now: float) -> str:
        self._stop(self._engine(), LOST_S * 1.5, now)
        return "engine stopped for too long"

    def _stop_stage(self, now: float) -> str:
        stage = self.job.part("pipeline.stage")
        self._stop(stage, self.draw.uniform(0.5, LOST_S / 2), now)
        return "stage reads nothing for a while"

    def _stop_learner(self, now: float) -> str:
        learner = self.job.part("learner.learner_rank")
        self._stop(learner, self.draw.uniform(0.5, LOST_S / 4), now)
        return "learner stopped, thawed in time"

    def _corrupt(self, now: float) -> str:
        """A peer of another protocol, whose tokens are noise."""
        nobody = Join(protocol=0, role="engine", name="nobody", clock_s=now)
        link = StageClient(self.sockets, nobody, lambda message: None)
        link.start()
        header = TokenBatch(
            engine="nobody", incarnation=0, epoch=0, sequence=0, sampled=0, sent_at_s=now
        )
        link.send_tokens(header, self.draw.randbytes(50), self.draw.randbytes(50))
        link.close()
        return "corrupted frames"

    def thaw(self, now: float) -> None:
        """Whoever has been stopped for long enough goes on."""
        due = [process for when, process in self._thaw if when <= now]
        self._thaw = [(when, process) for when, process in self._thaw if when > now]
        for process in due:
            with contextlib.suppress(psutil.Error):  # a launcher may have killed it
                process.resume()

    # --- what it holds ----------------------------------------------------------------------

    @property
    def sockets(self) -> Path:
        return Path((self.run / "address").read_text().strip())

    def _note(self, of: str, unit: str, at: float, value: float) -> None:
        self._series.setdefault((of, unit), Series(of=of, unit=unit)).add(at, value)

    def sample(self, at: float) -> None:
        """One look at everything; `at` seconds since it began to train. Of several processes with
        one role the largest counts."""
        most: dict[tuple[str, str], float] = {}
        for process in [psutil.Process(self.job.process.pid), *self.job.look()]:
            with contextlib.suppress(psutil.Error, OSError):  # it has just ended
                name = _role(process.cmdline())
                if not name:
                    continue
                held = {
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                    "MiB": process.memory_info().rss / 2**20,
                }
                for unit, value in held.items():
                    most[name, unit] = max(value, most.get((name, unit), 0.0))
        for (name, unit), value in most.items():
            self._note(name, unit, at, value)
        for name, place in (("memory files", SHARED_MEMORY), ("sockets", self.sockets)):
            self._note(name, "entries", at, _entries(place))
        temporary = Path(tempfile.gettempdir()).glob(f"darts-{os.getuid()}-*")
        self._note("temporary directories", "entries", at, len(list(temporary)))

    def rows(self, seconds: float) -> list[Row]:
        found = [row(series, seconds) for _, series in sorted(self._series.items())]
        return [one for one in found if one is not None]

    # --- what it has done -------------------------------------------------------------------

    @property
    def steps(self) -> int:
        return len(self._lines("metrics.jsonl", "step"))

    def _lines(self, file: str, what: str) -> list[dict[str, Any]]:
        path = self.run / file
        return list(lines(path, {what: dict}, lambda text: None)) if path.exists() else []

    def complaints(self) -> list[str]:
        """What of its books or its end is not as it should be."""
        found: list[str] = []
        if self.job.process.returncode != 130:
            found.append(f"it ended with {self.job.process.returncode}, expected 130 (Ctrl-C)")
        if alive := self.job.look():
            found.append(f"processes are left: {', '.join(str(p.pid) for p in alive)}")
        owner = f"darts-{os.getuid()}-{self.job.process.pid}-*"
        for place in (SHARED_MEMORY, Path(tempfile.gettempdir())):
            found += [f"left behind: {path}" for path in place.glob(owner)]
        told = [str(line["text"]) for line in self._lines("metrics.jsonl", "warning")]
        found += [text for text in told if "the ledger is off" in text]
        trained = Counter(
            line["prompt"] for line in self._lines("decisions.jsonl", "group")
            if line["fate"] == "trained"
        )  # fmt: skip
        passes = set(trained.values())
        if passes and max(passes) - min(passes) > 1:
            found.append(f"prompts were trained on {min(passes)} to {max(passes)} times")
        return found


def _role(command: list[str]) -> str:
    """The name of a process of the run by its command line; '' if it is not looked at."""
    words = " ".join(command)
    if "engines.worker" in words:
        return command[command.index("--name") + 1]
    roles = {
        "pipeline.stage": "stage",
        "learner.learner_rank": "learner",
        "pipeline.workers": "reward worker",
        "launch.cli": "launcher",
    }
    return next((name for module, name in roles.items() if module in words), "")


def _entries(place: Path) -> int:
    """Everything below a directory."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(place))


def carry_out(soak: Soak, seconds: float) -> float:
    """Run it, harm it, look at it; then a Ctrl-C. Returns for how long it was looked at.

    Raises: TimeoutError if it does not begin to train, or does not end.
    """
    begun = time.monotonic()
    while not soak.steps:
        soak.job.look()
        if soak.job.process.poll() is not None or time.monotonic() - begun > START_S:
            raise TimeoutError(f"it does not train:\n{soak.job.text[-3000:]}")
        time.sleep(0.2)
    begun = time.monotonic()
    next_harm, next_look = begun + PAUSE_S[1], begun
    while (now := time.monotonic()) < begun + seconds and soak.job.process.poll() is None:
        soak.thaw(now)
        if now >= next_look:
            next_look = now + SAMPLE_S
            soak.sample(now - begun)
        if now >= next_harm:
            next_harm = now + soak.draw.uniform(*PAUSE_S)
            soak.harm(now)
        time.sleep(0.1)
    lasted = time.monotonic() - begun
    soak.thaw(float("inf"))
    soak.job.look()
    if soak.job.process.poll() is None:
        soak.job.process.send_signal(signal.SIGTERM)
    soak.job.wait(END_S)
    return lasted


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="from its first step on")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when, and to whom")
    parser.add_argument("--out", type=Path, help="also write everything here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        with soak.job:
            seconds = carry_out(soak, 60 * options.minutes)
            rows, wrong, steps = soak.rows(seconds), soak.complaints(), soak.steps
            said = soak.job.text[-3000:] if wrong else ""
    told = verdict(rows, soak.faults)
    print("\n".join(table(rows)))
    print("\n| fault | times |\n|---|---|")
    print("\n".join(f"| {name} | {times} |" for name, times in sorted(soak.faults.items())))
    print(f"\n{seconds / 60:.1f} minutes, {steps} steps; {told}")
    print("\n".join(wrong) + said if wrong else "books balanced, nothing left behind")
    if options.out:
        found = {
            "minutes": seconds / 60,
            "seed": options.seed,
            "steps": steps,
            "faults": dict(soak.faults),
            "rows": msgspec.to_builtins(rows),
            "verdict": told,
            "complaints": wrong,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if wrong or not rows or not all(one.flat for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
