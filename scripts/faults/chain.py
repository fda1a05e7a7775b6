"""Faults one after another in one run, each judged before the next.

After a fault the run goes on, or it ends with a status that its kind allows. If it ends, no process
of it is left and nothing in memory or in the temporary directory, and it can be resumed; or it
says with status 5 that there is nothing to resume. In between its books hold (`open_problems`),
and when its data is at its end every prompt has been trained on once (`final_problems`). Then, or
when it could not be resumed, the next fault meets a new run.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.checkpoint import store
from scripts.faults.kinds import KINDS, Kind, Phase
from scripts.faults.records import final_problems, open_problems
from scripts.faults.run import (
    END_LIMIT_S,
    PROMPTS,
    START_LIMIT_S,
    STEP_LIMIT_S,
    DisturbedRun,
    Stuck,
)

MOST_STEPS = 3
"""Steps that are awaited before a fault, at most."""
_STEP_S = 0.5
_WRITING_S = 0.15
"""About what a step and a checkpoint of the tiny model take on two cores."""
_NOTHING_TO_RESUME, _NOTHING_WAS_STARTED = 5, 2


@dataclass(frozen=True)
class Injection:
    """One fault, drawn from its seed alone.

    Attributes:
        steps: awaited first; 0 in the start.
        share: of the start, of a step, or of a checkpoint's writing, after which it comes.
    """

    seed: int
    kind: str
    phase: Phase
    steps: int
    share: float

    @classmethod
    def drawn(cls, seed: int, kinds: Sequence[str]) -> Injection:
        """Of as many seeds in a row as there are kinds, each kind gets one."""
        turn, place = divmod(seed, len(kinds))
        kind = random.Random(turn).sample(sorted(kinds), len(kinds))[place]
        draw = random.Random(seed)
        phase = draw.choice(KINDS[kind].phases)
        steps = 0 if phase == "start" else draw.randrange(MOST_STEPS)
        return cls(seed, kind, phase, steps, draw.random())

    def __str__(self) -> str:
        when = f" after {self.steps} steps" if self.phase == "training" else ""
        return f"seed {self.seed}: {self.kind}, {self.phase}{when} + {self.share:.2f}"


@dataclass
class Outcome:
    """What became of one injection."""

    injection: Injection
    did: str = ""
    then: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        said = "FAILED" if self.problems else "good"
        return f"{self.injection}: {self.did}; {self.then}: {said} ({self.seconds:.0f} s)"


class Chain:
    """Disturbs runs below one folder; a context manager that leaves no process.

    Args:
        settings, preload, patience: see `DisturbedRun`.
    """

    def __init__(
        self, folder: Path, settings: list[str], preload: Path | None, patience: float = 1.0
    ) -> None:
        self._folder, self._settings, self._preload = folder, settings, preload
        self._patience = patience
        self._run: DisturbedRun | None = None
        self._runs = 0
        self._problems: list[str] = []
        self._may_end: set[int] = set()  # statuses, by what this life has met
        self._cuts = True  # nothing that this life has met keeps it from a last checkpoint
        self._trained = False  # this life was seen to train
        self._start_s = 10.0  # that a start takes here, until one was seen

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.__exit__()
            self._run = None

    def carry_out(self, injections: Iterable[Injection]) -> Iterator[Outcome]:
        """Yields what became of each. A run with a problem is kept, and the next one is new."""
        last: Outcome | None = None
        for injection in injections:
            if last is not None:
                yield last
            last = Outcome(injection)
            self._judge(last, partial(self._injure, last))
        if last is not None:
            self._judge(last, self._to_its_end)
            yield last

    def _judge(self, outcome: Outcome, act: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            act()
        except Stuck as error:
            self._problems.append(str(error))
        outcome.seconds += time.monotonic() - begun
        outcome.problems += self._problems
        if self._problems and self._run is not None:
            outcome.problems.append(f"its folder is kept: {self._run.folder}")
            self._leave(keep=True)
        self._problems = []

    def _leave(self, *, keep: bool = False) -> None:
        """Lets go of a run that is over."""
        if self._run is not None:
            self._run.__exit__()
            if not keep:
                shutil.rmtree(self._run.folder)
            self._run = None

    # --- one fault ----------------------------------------------------------------------------

    def _injure(self, outcome: Outcome) -> None:
        injection = outcome.injection
        kind = KINDS[injection.kind]
        while not self._in_phase(injection, kind):
            self._after_end()  # by an earlier fault, or with its data: in the next life, then
            if self._problems:
                return
        run = self._run
        assert run is not None
        before = run.steps
        self._may_end |= kind.ends
        self._cuts = self._cuts and kind.cuts
        outcome.did = kind.harm(run, random.Random(injection.seed))
        outcome.then = self._await_effect(run, kind, before)
        if not self._problems and self._run is not None:
            self._problems += open_problems(self._run.path, PROMPTS)

    def _in_phase(self, injection: Injection, kind: Kind) -> bool:
        """Brings a run to the moment of the injection. False: its life has ended on the way."""
        if injection.phase == "start" and self._run is not None and self._run.job is not None:
            self._stop()
        run = self._living()
        if injection.phase == "start":
            moment = injection.share * self._start_s
            # Before its first word it is a Python that imports: any signal ends it.
            there = run.wait(
                lambda: run.life_s >= moment and bool(run.text), "its start", START_LIMIT_S
            )
        else:
            there = self._await_training(run)
            goal = run.steps + injection.steps
            there = there and run.wait(
                lambda: run.steps >= goal, f"step {goal}", STEP_LIMIT_S * (injection.steps + 1)
            )
            if there and injection.phase == "checkpoint":
                there = run.wait(lambda: run.writes_checkpoint, "a checkpoint", STEP_LIMIT_S)
            pause_s = _WRITING_S if injection.phase == "checkpoint" else _STEP_S
            time.sleep(injection.share * pause_s)
        return there and run.wait(
            lambda: bool(run.of_role(kind.target)), f"a {kind.target}", START_LIMIT_S
        )

    def _await_effect(self, run: DisturbedRun, kind: Kind, before: int) -> str:
        """Waits until the run has ended, or has shown that it goes on. Returns what it did."""
        needed = 2 if kind.ends else 1
        went_on = run.wait(
            lambda: kind.goes_on and run.trains and run.steps >= before + needed,
            "another step, or its end" if kind.goes_on else "its end",
            START_LIMIT_S + STEP_LIMIT_S,
        )
        return f"went on to step {run.steps}" if went_on else self._after_end()

    # --- lives --------------------------------------------------------------------------------

    def _living(self) -> DisturbedRun:
        """Returns a run that has been started."""
        if self._run is None:
            self._runs += 1
            folder = self._folder / f"run-{self._runs}"
            folder.mkdir()
            self._run = DisturbedRun(folder, self._settings, self._preload, self._patience)
        if self._run.job is None:
            self._run.start()
            self._may_end, self._cuts, self._trained = {0}, True, False
        return self._run

    def _await_training(self, run: DisturbedRun) -> bool:
        fresh = not run.trains
        there = run.wait(lambda: run.trains, "training", START_LIMIT_S)
        if there and fresh:
            self._start_s = run.life_s
        self._trained = self._trained or there
        if there and run.expected:
            if run.expected not in run.text:
                self._problems.append(f"it does not say: {run.expected!r}")
            run.expected = ""
        return there

    def _stop(self) -> None:
        """Has the run stop as a person does, and judges that."""
        run = self._run
        assert run is not None
        self._may_end.add(130)
        for process in run.of_role("launcher"):
            process.terminate()
        run.wait(lambda: False, "its end", END_LIMIT_S)
        self._after_end(stay=True)

    def _after_end(self, *, stay: bool = False) -> str:
        """Judges an end, and resumes. Returns what happened.

        Args:
            stay: leave it to the caller to start the next life.
        """
        run = self._run
        assert run is not None
        status = run.ended()
        assert status is not None
        self._problems += run.finish_life()
        words = f"ended with {status}"
        if status not in self._may_end:
            expected = sorted(self._may_end)
            self._problems.append(
                f"status {status}, expected one of {expected}:\n{run.text[-3000:]}"
            )
        elif status == 0:
            self._problems += final_problems(run.path, PROMPTS)
            if not self._problems:
                self._leave()
            return f"{words}: its data is at its end"
        elif self._trained and self._cuts and status in (1, 130) and not _cut_at_its_end(run):
            kept = [path.name for path in run.checkpoints]
            self._problems.append(f"no checkpoint of its last step {run.steps}: {kept}")
        return words if self._problems else f"{words}, {self._resume(run, stay)}"

    def _resume(self, run: DisturbedRun, stay: bool) -> str:
        if not run.path.exists():
            return "before it had a folder"
        if run.checkpoints:
            if stay:
                return "to be resumed"
            self._living()
            if not self._await_training(run):
                self._after_end()
            return f"resumed at step {run.steps}"
        there = (run.path / "config.yaml").exists()
        right = _NOTHING_TO_RESUME if there else _NOTHING_WAS_STARTED
        run.begin(["train", "--resume", str(run.path)])
        run.wait(lambda: False, "a refusal to resume", START_LIMIT_S)
        status = run.ended()
        self._problems += run.finish_life()
        if status != right:
            self._problems.append(f"a resume of nothing: status {status}, expected {right}")
        if not self._problems:
            self._leave()
        return f"no checkpoint: a resume says so with {status}"

    def _to_its_end(self) -> None:
        """Has the run train until its data is at its end."""
        while self._run is not None and not self._problems:
            run = self._living()
            run.wait(lambda: False, "its end", START_LIMIT_S + STEP_LIMIT_S)
            self._after_end()


def _cut_at_its_end(run: DisturbedRun) -> bool:
    return bool(run.checkpoints) and run.checkpoints[0].name == store.name_of(run.steps)
