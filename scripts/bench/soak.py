"""Runs a long job under random faults: does anything grow that should not?

    python -m scripts.bench.soak [--minutes 20] [--seed 0] [--out FILE]

`darts train` runs with two simulated engines and a real learner. Engines are killed, stopped and
continued, the stage reads slowly or not at all, frames are corrupted, and rewards raise, crash and
hang. Every few seconds it samples descriptors, threads and memory of each process, and the entries
in shared memory and in the directory of sockets. It ends with a table, a verdict by slope
(`flatness`), and checks that no prompt was trained on twice in a pass over the data and that every
token is in one account.
"""

from __future__ import annotations

import contextlib
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

from pipeline.system.temp_dirs import SHARED_MEMORY
from scripts.bench.flatness import (
    Row,
    Series,
    flatness_table,
    flatness_verdict,
    series_row,
)
from scripts.bench.namespaces import Started
from scripts.bench.program import options_parser, write_json
from scripts.faults.kinds import send_noise
from scripts.faults.records import step_problems, steps_done, times_trained
from scripts.faults.run import MODULES

SAMPLE_S = 2.0
PAUSE_S = (3.0, 9.0)
"""Seconds between two faults."""
LOST_S = 8.0
"""Seconds of a stop after which an engine is lost."""
START_S, END_S = 300.0, 60.0
SETTINGS = [
    "engine.kind=simulated",
    "engine.count=2",
    "engine.restarts=1000000",
    f"reward.python.function={__name__}:reward".replace("__main__", "scripts.bench.soak"),
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
"""Shares of the reward's calls that do so."""


def reward(sample: Any) -> float:
    """Rewards short responses; some calls raise, crash or hang."""
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

    # --- faults ----------------------------------------------------------------------------

    def harm(self, now: float) -> None:
        """Causes one fault, drawn from the seed. Engines are rarely killed: each restart waits
        longer, and a missing engine cannot be harmed."""
        kinds: dict[Callable[[float], str], int] = {
            self._kill_engine: 1,
            self._lose_engine: 1,
            self._stop_engine: 3,
            self._stop_stage: 3,
            self._stop_learner: 3,
            self._corrupt: 3,
        }
        [kind] = self.draw.choices(list(kinds), list(kinds.values()))
        with contextlib.suppress(psutil.Error, LookupError):  # it is just starting
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
        return "engine stopped, continued in time"

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
        return "learner stopped, continued in time"

    def _corrupt(self, now: float) -> str:
        del now
        send_noise(self.sockets, self.draw)
        return "corrupted frames"

    def thaw(self, now: float) -> None:
        """Continues processes that have been stopped for long enough."""
        due = [process for when, process in self._thaw if when <= now]
        self._thaw = [(when, process) for when, process in self._thaw if when > now]
        for process in due:
            with contextlib.suppress(psutil.Error):  # the launcher may have killed it
                process.resume()

    # --- samples ---------------------------------------------------------------------------

    @property
    def sockets(self) -> Path:
        return Path((self.run / "address").read_text().strip())

    def _note(self, of: str, unit: str, at: float, value: float) -> None:
        self._series.setdefault((of, unit), Series(of=of, unit=unit)).add_sample(at, value)

    def take_sample(self, at: float) -> None:
        """Samples everything `at` seconds after training began. Of several processes with one role
        the largest counts."""
        most: dict[tuple[str, str], float] = {}
        for process in [psutil.Process(self.job.process.pid), *self.job.running_processes()]:
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
        self._note("memory files", "entries", at, sum(map(_entries, self._own(SHARED_MEMORY))))
        self._note("sockets", "entries", at, _entries(self.sockets))
        temporary = self._own(Path(tempfile.gettempdir()))
        self._note("temporary directories", "entries", at, len(temporary))

    def _own(self, place: Path) -> list[Path]:
        """Directories of this run's; those of other runs of the machine come and go."""
        return list(place.glob(f"darts-{os.getuid()}-{self.job.process.pid}-*"))

    def verdict_rows(self, seconds: float) -> list[Row]:
        found = [series_row(series, seconds) for _, series in sorted(self._series.items())]
        return [one for one in found if one is not None]

    # --- results ---------------------------------------------------------------------------

    def final_problems(self) -> list[str]:
        """Returns problems of its accounts or its end."""
        found: list[str] = []
        if self.job.process.returncode != 130:
            found.append(f"it ended with {self.job.process.returncode}, expected 130 (Ctrl-C)")
        if alive := self.job.running_processes():
            found.append(f"processes are left: {', '.join(str(p.pid) for p in alive)}")
        for place in (SHARED_MEMORY, Path(tempfile.gettempdir())):
            found += [f"left behind: {path}" for path in self._own(place)]
        found += step_problems(self.run)
        trained = times_trained(self.run)
        passes = set(trained.values())
        if passes and max(passes) - min(passes) > 1:
            found.append(f"prompts were trained on {min(passes)} to {max(passes)} times")
        return found


def _role(command: list[str]) -> str:
    """Names a process of the run by its command line; '' if it is not sampled."""
    role = next((name for name, module in MODULES.items() if module in command), "")
    return command[command.index("--name") + 1] if role == "engine" else role


def _entries(place: Path) -> int:
    """Counts everything below a directory."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(place))


def carry_out(soak: Soak, seconds: float) -> float:
    """Runs the job with faults and samples, then stops it. Returns the seconds of sampling.

    Raises: TimeoutError if it does not start to train, or does not end.
    """
    begun = time.monotonic()
    while not steps_done(soak.run):
        soak.job.running_processes()
        if soak.job.process.poll() is not None or time.monotonic() - begun > START_S:
            raise TimeoutError(f"it does not train:\n{soak.job.text[-3000:]}")
        time.sleep(0.2)
    begun = time.monotonic()
    next_harm, next_look = begun + PAUSE_S[1], begun
    while (now := time.monotonic()) < begun + seconds and soak.job.process.poll() is None:
        soak.thaw(now)
        if now >= next_look:
            next_look = now + SAMPLE_S
            soak.take_sample(now - begun)
        if now >= next_harm:
            next_harm = now + soak.draw.uniform(*PAUSE_S)
            soak.harm(now)
        time.sleep(0.1)
    lasted = time.monotonic() - begun
    soak.thaw(float("inf"))
    soak.job.running_processes()
    if soak.job.process.poll() is None:
        soak.job.process.send_signal(signal.SIGTERM)
    soak.job.wait(END_S)
    return lasted


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes after its first step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        with soak.job:
            seconds = carry_out(soak, 60 * options.minutes)
            rows, wrong, steps = (
                soak.verdict_rows(seconds),
                soak.final_problems(),
                steps_done(soak.run),
            )
            said = soak.job.text[-3000:] if wrong else ""
    outcome = flatness_verdict(rows, soak.faults)
    print("\n".join(flatness_table(rows)))
    print("\n| fault | times |\n|---|---|")
    print("\n".join(f"| {name} | {times} |" for name, times in sorted(soak.faults.items())))
    print(f"\n{seconds / 60:.1f} minutes, {steps} steps; {outcome}")
    print("\n".join(wrong) + said if wrong else "all tokens accounted for, nothing left behind")
    found = {"minutes": seconds / 60, "seed": options.seed, "steps": steps, "verdict": outcome}
    found |= {"faults": dict(soak.faults), "rows": msgspec.to_builtins(rows), "complaints": wrong}
    write_json(options.out, found)
    return 1 if wrong or not rows or not all(one.flat for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
