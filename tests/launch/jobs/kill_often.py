"""kill -9 of a whole run at random moments, resume, and compare with one that was left alone:

    python -m tests.launch.jobs.kill_often --times 50 --seed 0

A real learner in fp32, real files and sockets, an engine without a model. What
order decides is fixed: every candidate is trained on (`InOrder`), one forward a
member, groups in the order of their numbers. So the same prompts have to be
trained on as often, with the same responses, and the last weights and optimizer
have to be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.checkpoint import store
from pipeline.plugins.actions import AnyAction, BatchAction, Close, Finalize, Take
from pipeline.plugins.interfaces import SelectorEvent, Stateless, Wants
from pipeline.plugins.views import BatchView, GroupView
from pipeline.system import temp_dirs
from scripts.faults.records import result_problems
from tests.launch.jobs.jobs import SIMULATED, Job, lines, steps_done, train

SETTINGS = [
    *SIMULATED,
    f"selector={__name__}:InOrder".replace("__main__", "tests.launch.jobs.kill_often"),
    "budget.uniform.redundancy=1.0",
    "learner.updates=2",
    "learner.tokens_per_micro_batch=1",
    "checkpoint.every=1",
    "metrics.tensorboard=false",
]
PHASES = ("start", "training", "training", "writing")
"""One of them is drawn for each kill. Writing a checkpoint is short: the first one that is
begun after the moment drawn is cut at another moment of its own."""
_LOOK_S = 0.005
_WRITING_S = 0.15
"""About what a checkpoint of the tiny model takes on two busy cores, from its directory on."""


class InOrder(Stateless):
    """Selector: all members, in the order of their numbers, not of their arrival."""

    wants = Wants()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not group.unended:
            yield Finalize(ids=tuple(sorted(m.id for m in group.ended)), why="all, in order")


class AllTogether(Stateless):
    """Batch rule: all groups of the step at once, in the order of their numbers, so that each goes
    to the same learner rank in every run."""

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        if len(view.ready) >= view.need:
            yield Take(groups=tuple(sorted(view.ready)))
            yield Close()


@dataclass(frozen=True)
class Truth:
    """What a run leaves that nobody disturbs."""

    groups: list[dict[str, Any]]  # trained on, in order of their numbers
    weights: dict[str, torch.Tensor]
    optimizer: list[Any]
    start_s: float  # until it trains
    training_s: float


@dataclass(frozen=True)
class Kill:
    run: int
    phase: str  # of PHASES
    seconds: float  # after the start, or after it has begun to train
    steps: int  # on file
    kept: int  # step of the newest checkpoint; -1: none
    left: tuple[str, ...]  # unfinished work on the disk


def groups_of(run: Path) -> list[dict[str, Any]]:
    """Prompt, step, version and members (length, reward, ...) of every group trained on.

    Without their confidence: a sum over chunks as they came, whose last digit differs, and when.
    """
    found = [g for g in lines(run / "decisions.jsonl", "group") if g["fate"] == "trained"]
    for group in found:
        del group["time"]
        for member in group["members"]:
            del member[3]
    return sorted(found, key=lambda group: group["group"])


def weights_of(directory: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Of a checkpoint: the model's, and all that is in the files of its ranks' optimizers."""
    paths = sorted(directory.glob("optimizer-rank*.pt"))
    optimizers = [torch.load(path, weights_only=True) for path in paths]
    return load_file(directory / "model" / "model.safetensors"), _leaves(optimizers)


def _leaves(value: Any) -> list[Any]:
    """Everything in nested dicts and lists, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *_leaves(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def trains(run: Path, since: float) -> bool:
    """Whether this life of the run (since a time of `time.time`) has said that it trains."""
    live = run / "live.json"
    if not live.exists() or live.stat().st_mtime < since:
        return False
    return json.loads(live.read_bytes())["phase"] == "training"


def undisturbed(folder: Path) -> Truth:
    run, begun = folder / "undisturbed", time.time()
    with train(run, folder / "undisturbed.log", *SETTINGS) as job:
        job.until(lambda: trains(run, begun))
        start_s = time.time() - begun
        assert job.wait() == 0, job.text
    weights, optimizer = weights_of(store.peek_newest(run / "checkpoints"))
    return Truth(groups_of(run), weights, optimizer, start_s, time.time() - begun - start_s)


def differences(run: Path, truth: Truth) -> list[str]:
    """What of a run that was killed is not as in one that was not; empty: all is the same."""
    found: list[str] = []
    groups = groups_of(run)
    times = [(g["step"], g["prompt"], g["attempt"]) for g in groups]
    if times != [(g["step"], g["prompt"], g["attempt"]) for g in truth.groups]:
        found.append(f"prompts trained on: {times}")
    elif groups != truth.groups:
        found.append("responses trained on")
    weights, optimizer = weights_of(store.peek_newest(run / "checkpoints"))
    assert weights.keys() == truth.weights.keys()
    far = max(float((weights[n] - truth.weights[n]).abs().max()) for n in weights)
    if not all(torch.equal(weights[n], truth.weights[n]) for n in weights):
        found.append(f"weights, by {far:.1e} at most")
    if not all(map(_same, optimizer, truth.optimizer)) or len(optimizer) != len(truth.optimizer):
        found.append("optimizer")
    found += result_problems(run)
    if left := [path.name for path in (run / "checkpoints").glob(".*")]:
        found.append(f"left behind: {left}")
    return found


def left_by(pids: set[int]) -> set[Path]:
    """Directories of these processes in memory and in the temporary directory."""
    bases = (temp_dirs.SHARED_MEMORY, Path(tempfile.gettempdir()))
    found = [path for base in bases for path in base.glob(f"darts-{os.getuid()}-*")]
    return {path for path in found if int(path.name.split("-")[2]) in pids}


class Killer:
    """Runs that are killed at moments drawn from a seed, until it has been `times`."""

    def __init__(self, folder: Path, truth: Truth, times: int, seed: int) -> None:
        self.folder, self.truth, self.times = folder, truth, times
        self.kills: list[Kill] = []
        self.left: set[Path] = set()  # outside of its folder, by those that were killed
        self.ends: list[list[str]] = []  # of each run that came to its end: what differs
        self._rng = random.Random(seed)
        self._runs = self._lives = 0

    def go(self) -> None:
        while len(self.kills) < self.times:
            self._runs += 1
            run = self.folder / f"run-{self._runs}"
            while self._live(run):
                pass
            if (run / "result.json").exists():
                self.ends.append(differences(run, self.truth))

    def _live(self, run: Path) -> bool:
        """One process of the run, killed or not; whether there is something to go on with."""
        self._lives += 1
        log, begun = self.folder / f"life-{self._lives}.log", time.time()
        job = Job(["train", "--resume", str(run)], log) if run.exists() else None
        with job or train(run, log, *SETTINGS) as job:
            if not self._killed(job, run, begun):
                assert job.wait() == 0, job.text
                return False
        if (run / "result.json").exists():  # killed on its way out
            return False
        if self.kills[-1].kept >= 0:
            return True
        # nothing to go on with is said so, never taken for a new beginning
        if (run / "config.yaml").exists():
            with Job(["train", "--resume", str(run)], log.with_suffix(".refused")) as job:
                assert job.wait() == 5, job.text
            assert not [path for path in self.left if path.exists()]
        return False

    def _killed(self, job: Job, run: Path, begun: float) -> bool:
        """Kill it at the moment that is drawn now, unless it ends before."""
        if len(self.kills) == self.times:
            return False
        phase = self._rng.choice(PHASES)
        limit = self.truth.start_s if phase == "start" else self.truth.training_s
        moment, later = self._rng.uniform(0, limit), self._rng.uniform(0, _WRITING_S)
        since = begun
        if phase != "start":
            self._wait(job, lambda: trains(run, begun))
            since = time.time()
        self._wait(job, lambda: time.time() > since + moment)
        if phase == "writing":
            self._wait(job, lambda: any((run / "checkpoints").glob(".tmp-*")))
            time.sleep(later)
        if job.process.poll() is not None:
            return False
        job.look()
        for process in (*job.family.values(), job.process):
            process.kill()
        assert job.left() == []
        self.left |= left_by({job.process.pid, *job.family})
        self.kills.append(_seen(self._runs, phase, moment, run))
        return True

    @staticmethod
    def _wait(job: Job, what: Callable[[], bool]) -> None:
        """For it, or the end of the job."""
        while job.process.poll() is None and not what():
            time.sleep(_LOOK_S)


def _seen(number: int, phase: str, seconds: float, run: Path) -> Kill:
    checkpoints = run / "checkpoints"
    kept = [int(path.name[5:]) for path in store.committed(checkpoints)]
    hidden = sorted(p.name for p in checkpoints.glob(".*"))
    left = tuple(name.split("-")[0] for name in hidden)
    return Kill(number, phase, seconds, steps_done(run), max(kept, default=-1), left)


def table(killer: Killer) -> str:
    """Every kill and every run in words."""
    rows = ["| kill | run | phase | after, s | steps on file | checkpoint | left |"]
    rows += ["|---|---|---|---|---|---|---|"]
    for number, kill in enumerate(killer.kills, 1):
        kept = str(kill.kept) if kill.kept >= 0 else "none"
        cells = (number, kill.run, kill.phase, f"{kill.seconds:.2f}", kill.steps, kept)
        rows.append("| " + " | ".join(map(str, (*cells, " ".join(kill.left) or "-"))) + " |")
    good = sum(not found for found in killer.ends)
    rows.append(
        f"\n{len(killer.kills)} kills; {len(killer.ends)} runs came to their end, {good} of"
    )
    rows.append("them with the same prompts, responses, weights and optimizer as one left alone.")
    rows += [f"run: {', '.join(found)}" for found in killer.ends if found]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=50, help="how often a run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="darts-killed-"))
    killer = Killer(folder, undisturbed(folder), args.times, args.seed)
    killer.go()
    print(table(killer))
    return 1 if any(killer.ends) else 0


if __name__ == "__main__":
    raise SystemExit(main())
