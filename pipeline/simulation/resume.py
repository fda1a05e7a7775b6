"""Stops a simulated run after each of its steps, resumes it, and compares what is decided then.

A run that is stopped and resumed is to be the run that never stopped. Times here are sums of
powers of two, and a decode step takes as long for one sequence as for eight: sums are exact,
so that what happens does not depend on when. On-policy nobody is in the middle of anything
after the optimizer step, and all that is told from there on has to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyEvent, Checkpoint, Report
from pipeline.coordinator.snapshot import Snapshot
from pipeline.coordinator.state import Plugins, Settings
from pipeline.hardware.costs import EngineCost, LearnerCost, Machines
from pipeline.simulation.extra_candidates import solutions_of
from pipeline.simulation.loop import Simulation
from pipeline.simulation.policy import Policy
from pipeline.simulation.subject import Subject
from pipeline.simulation.workload import Lengths, Parametric

SEED, STEPS, SIZE, STOP, LIMIT = 5, 6, 4, 1, 60
SETTINGS = Settings(
    seed=SEED,
    steps=STEPS,
    need=3,
    reserve=1,  # something is open at each barrier, and given back
    tries=4.0,
    size=SIZE,
    max_tokens=LIMIT,
    ranks=2,
    overlap="group",
    prompts=12,  # fewer than a run asks for: a second epoch begins
    held_out=2,
    eval_every=2,
    eval_samples=2,
    checkpoint_every=1,
    stop_tokens=frozenset({STOP}),
    log_wait_s=20.0,
    gap_limit=1e-3,
    knee=6,  # else a matter of the latency that engines have shown: no state of the run
)
MACHINES = Machines(
    engines=2,
    slots=8,
    engine=EngineCost(points=((1, 2**-7), (8, 2**-7)), load_s=2**-3),
    learner=LearnerCost(train_s=2**-13, group_s=2**-6, step_s=2.0),
    ranks=SETTINGS.ranks,
    chunk_tokens=4,
    delay_s=2**-10,
    reward_s=2**-7,
    tick_s=2**20,
)
TIMED = ("utility", "generation_predicted_s")
"""Figures of a plan by the engines' latency, which a resumed run measures anew."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A run that can be begun any number of times."""

    make: Callable[[], Plugins]
    settings: Settings = SETTINGS
    machines: Machines = MACHINES
    scale: float = 1.0  # of lengths
    columns: tuple[str, ...] = ()  # of the data, that may stand behind a prompt
    solved: bool = False  # the data has solutions

    def coordinator(self) -> Coordinator:
        """A fresh one, of prompts of two kinds."""
        count = self.settings.prompts
        lengths = [3 + prompt % 4 for prompt in range(count)]
        tags = ["a", "b"] * (count // 2)
        variants = {column: [prompt % 4 for prompt in range(count)] for column in self.columns}
        solutions = solutions_of(count) if self.solved else []
        return Coordinator(self.settings, self.make(), lengths, tags, variants, solutions)


def case_of(subject: Subject) -> Case:
    """The run of a configuration's plug-ins."""
    scale = max(1.0, subject.settings.max_tokens / LIMIT)
    chunk = round(MACHINES.chunk_tokens * scale)
    return Case(
        make=lambda: subject.make(SEED),
        settings=subject.settings_in(SETTINGS),
        machines=msgspec.structs.replace(MACHINES, chunk_tokens=chunk),
        scale=scale,
        columns=subject.columns,
        solved=subject.solved,
    )


class Life(Simulation):
    """A run from its beginning, or from a state; remembers how groups ended and its cuts."""

    def __init__(self, case: Case, saved: bytes = b"") -> None:
        lengths = Lengths(median=15 * case.scale, between=0.5, within=0.8)
        workload = Parametric(lengths, Policy(0.0), seed=SEED)
        prompts = [5] * case.settings.prompts
        super().__init__(case.coordinator(), case.machines, workload, prompts)
        self.told: list[dict[str, Any]] = []  # how groups were decided on and ended
        self.cuts: dict[int, bytes] = {}
        self.before: dict[int, int] = {}  # cut after step -> how much had been told
        state = msgspec.msgpack.decode(saved, type=Snapshot) if saved else None
        asked = snapshot.restore(self.coordinator, state, 0.0) if state else []
        self.begin(state.version if state else 0)
        for command in asked:
            self._carry_out(command)

    def _cut(self, command: Checkpoint) -> None:
        self.cuts[command.step] = msgspec.msgpack.encode(snapshot.take(self.coordinator))
        super()._cut(command)

    def tell(self, event: AnyEvent) -> None:
        super().tell(event)
        for step in self.cuts.keys() - self.before.keys():
            self.before[step] = len(self.told)  # a cut is of all that the event brought about

    def _report(self, command: Report) -> None:
        super()._report(command)
        if command.what in ("group", "decision", "budget"):
            fields = {key: value for key, value in command.fields.items() if key not in TIMED}
            self.told.append({"what": command.what, **fields})


def without_clock(state: bytes) -> Snapshot:
    """What evaluations and open steps have taken is time, and not the run."""
    found = msgspec.msgpack.decode(state, type=Snapshot)
    evaluations = [{k: v for k, v in e.items() if k != "seconds"} for e in found.evaluations]
    plan = {name: value for name, value in found.stats.plan.items() if name not in TIMED}
    stats = msgspec.structs.replace(found.stats, since=0.0, plan=plan)
    return msgspec.structs.replace(found, evaluations=evaluations, stats=stats)


def differences(case: Case) -> Iterator[str]:
    """Where a second run, and a run resumed after each step, differ from the first; none is right.

    Raises what a run raises.
    """
    whole, again = Life(case), Life(case)
    whole.run()
    again.run()
    if found := _first_difference(again.told, whole.told):
        yield f"a second run with the same seed differs: {found}"
        return
    last = max(whole.cuts, default=0)
    for step in sorted(whole.cuts):
        if step == last:
            continue
        resumed = Life(case, whole.cuts[step])
        resumed.run()
        told = whole.told[whole.before[step] :]
        if found := _first_difference(resumed.told, told):
            yield f"stopped after step {step} and resumed, {found}"
        elif without_clock(resumed.cuts[last]) != without_clock(whole.cuts[last]):
            yield f"stopped after step {step} and resumed, its state at the end is another"


def _first_difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    for one, other in zip(found, expected, strict=False):
        if one != other:
            names = [name for name in other if one.get(name) != other[name]]
            what = f"{other['what']} of group {other.get('group')}" if "group" in other else "plan"
            return (
                f"{what} in step {other.get('step', 0) + 1}: "
                + "; ".join(f"{name} is {one.get(name)!r}, was {other[name]!r}" for name in names)
            )[:500]
    if len(found) != len(expected):
        return f"{len(found)} decisions and ends of groups follow, not {len(expected)}"
    return ""
