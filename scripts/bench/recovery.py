"""Measures how a job over two machines recovers: a table with one fault in each row.

    python -m scripts.bench.recovery [--only NAME] [--out FILE]

Uses two network namespaces with a torchrun in each, simulated engines and a real learner. Each row
is a separate job, which must end with every prompt trained on once and every token accounted for.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from scripts.bench.namespaces import Machines, Started, two_machines, why_not
from scripts.bench.program import options_parser, write_json
from scripts.faults.records import records, result_problems, times_trained

RESTARTS = 3
PROMPTS = 12
_LIMIT_S = 400.0
_SETTINGS = [
    "engine.kind=simulated",
    "reward.python.function=tests.launch.jobs.jobs:length_reward",
    "nodes.learners=spread",
    "learner.ranks=2",
    "learner.zero=1",
    "engine.count=2",
    f"step.prompts={PROMPTS}",
    "group.size=4",
    "eval.every=0",
    "checkpoint.every=5",
]


@dataclass
class Row:
    """The effect of one fault; seconds."""

    fault: str
    detect_s: float
    recover_s: float  # from the fault (or the end of a cut) to the next finished step
    restarted: bool  # the learner continued from a checkpoint
    twice: int  # response tokens that were sampled again


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Size of a job and time of its fault; tests use a smaller one."""

    steps: int = 60
    before: int = 8  # steps before the fault
    cut_s: float = 10.0


class Job:
    """A run on both machines."""

    def __init__(self, machines: Machines, folder: Path, stack: ExitStack, scale: Scale) -> None:
        self.machines, self.run, self._stack = machines, folder / "run", stack
        self.scale = scale
        self.parts = [self.start_machine(0), self.start_machine(1)]

    def start_machine(self, machine: int) -> Started:
        """Starts one machine's torchrun."""
        arguments = ["configs/quickstart.yaml", "--out", str(self.run), *_SETTINGS]
        arguments.append(f"step.count={self.scale.steps}")
        command = self.machines.torchrun(machine, 2, arguments, RESTARTS)
        log = self.run.parent / f"machine{machine}.log"
        return self._stack.enter_context(Started(command, log))

    def metric_lines(self, what: str) -> list[dict[str, Any]]:
        return records(self.run / "metrics.jsonl", what)

    def steps_done(self) -> int:
        return len(self.metric_lines("step"))

    def tokens_sampled(self, steps: int | None = None) -> int:
        """Returns the response tokens sampled by the end of `steps` steps; None: until now."""
        if steps is None:
            return json.loads((self.run / "live.json").read_text())["sampled"]
        return self.metric_lines("step")[steps - 1]["ledger"]["sampled"] if steps else 0

    def checkpoint(self) -> int:
        """Returns the step of the newest checkpoint."""
        found = sorted((self.run / "checkpoints").glob("step-*"))
        return int(found[-1].name.removeprefix("step-")) if found else 0

    def incarnation(self) -> int:
        return int((self.run / "incarnation").read_text())

    def wait_until(self, what: Callable[[], bool]) -> float:
        """Waits until the condition holds; returns the seconds."""
        begun = time.monotonic()
        while not what():
            if time.monotonic() - begun > _LIMIT_S:
                raise TimeoutError(self.parts[0].text[-3000:])
            for part in self.parts:
                part.running_processes()
            time.sleep(0.05)
        return time.monotonic() - begun

    def stage_logs(self, *words: str) -> Callable[[], bool]:
        """Returns a condition: the stage has logged one of these words after this call."""
        log = self.run / "logs" / "stage.log"
        before = len(log.read_text())
        return lambda: any(word in log.read_text()[before:] for word in words)


def _cut(job: Job) -> tuple[Callable[[], bool], Callable[[], None]]:
    lost = job.stage_logs("e1 lost")
    job.machines.cut_cable()
    healed = time.monotonic() + job.scale.cut_s

    def heal() -> None:
        time.sleep(max(0.0, healed - time.monotonic()))
        job.machines.heal_cable()

    return lost, heal


def _kill_engine(job: Job) -> tuple[Callable[[], bool], Callable[[], None]]:
    lost = job.stage_logs("e1 lost")
    job.parts[1].part("engines.worker", "e1").kill()
    return lost, lambda: None


def _kill_learner(job: Job) -> tuple[Callable[[], bool], Callable[[], None]]:
    lost = job.stage_logs("l1 lost", "learner rank 1", "over")
    job.parts[1].part("learner.learner_rank").kill()
    return lost, lambda: None


def _kill_torchrun(job: Job) -> tuple[Callable[[], bool], Callable[[], None]]:
    lost = job.stage_logs("l1 lost", "e1 lost")
    job.parts[1].kill_torchrun()

    def again() -> None:
        job.parts[1] = job.start_machine(1)

    return lost, again


Fault = Callable[[Job], tuple[Callable[[], bool], Callable[[], None]]]
"""Causes a fault; returns a condition for its detection, and the repair."""
FAULTS: dict[str, Fault] = {
    f"link cut for {Scale().cut_s:.0f} s": _cut,
    "engine killed": _kill_engine,
    "learner rank killed": _kill_learner,
    "a machine's torchrun killed, started again": _kill_torchrun,
}


def carry_out(fault: str, machines: Machines, folder: Path, scale: Scale | None = None) -> Row:
    """Runs one job with one fault. Raises AssertionError if anything was lost."""
    scale = scale or Scale()
    with ExitStack() as stack:
        job = Job(machines, folder, stack, scale)
        job.wait_until(lambda: job.steps_done() >= scale.before)
        incarnation = job.incarnation()
        lost, mend = FAULTS[fault](job)
        detect_s = job.wait_until(lost)
        known, done = job.tokens_sampled(), job.steps_done()
        mend()
        mended, before = time.monotonic(), job.steps_done()
        restarting = "killed" in fault and "engine" not in fault
        if restarting:
            job.wait_until(lambda: job.incarnation() > incarnation)
            before = job.checkpoint()
        job.wait_until(lambda: job.steps_done() > before)
        recover_s = time.monotonic() - mended
        restarted = job.incarnation() > incarnation
        print(f"{fault}: {known} tokens by step {done}, from step {before}", file=sys.stderr)
        twice = known - job.tokens_sampled(before) if restarted else 0
        for part in job.parts:
            if part.wait(_LIMIT_S) != 0:
                raise AssertionError(part.text[-3000:])
        check_books(job.run, scale.steps)
    return Row(fault, detect_s, recover_s, restarted, max(0, twice))


def check_books(run: Path, steps: int) -> None:
    """Raises AssertionError unless all tokens are accounted for and each prompt is trained once."""
    if problems := result_problems(run):
        raise AssertionError(f"{run}: {problems}")
    if sorted(times_trained(run).values()) != [1] * (steps * PROMPTS):
        raise AssertionError(f"{run}: a prompt was lost or trained on twice")


def faults_table(rows: list[Row]) -> list[str]:
    """Formats the rows as Markdown."""
    head = "| fault | detected, s | next step, s | from a checkpoint | tokens sampled twice |"
    body = [
        f"| {row.fault} | {row.detect_s:.1f} | {row.recover_s:.1f} "
        f"| {'yes' if row.restarted else 'no'} | {row.twice} |"
        for row in rows
    ]
    return [head, "|---|---|---|---|---|", *body]


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--only", choices=list(FAULTS), help="run only this fault")
    options = parser.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for fault in [options.only] if options.only else FAULTS:
        with two_machines() as machines, tempfile.TemporaryDirectory() as folder:
            rows.append(carry_out(fault, machines, Path(folder)))
            print("\n".join(faults_table(rows)), flush=True)
    write_json(options.out, [row.__dict__ for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
