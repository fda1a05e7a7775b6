"""A run that is stopped after any step and resumed is the run that never stopped, whichever
plug-ins decide; and their state, saved and loaded, is the same bytes again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyEvent, Checkpoint, Report
from pipeline.coordinator.snapshot import Snapshot
from pipeline.coordinator.state import Plugins, Settings
from pipeline.hardware.costs import EngineCost, LearnerCost, Machines
from pipeline.plugins import registry
from pipeline.simulation.loop import Simulation
from pipeline.simulation.policy import Policy
from pipeline.simulation.workload import Lengths, Parametric

STEPS, SIZE, STOP = 6, 4, 1
SETTINGS = Settings(
    seed=5,
    steps=STEPS,
    need=3,
    reserve=1,  # something is open at each barrier, and given back
    tries=4.0,
    size=SIZE,
    max_tokens=60,
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
"""Powers of two, and a decode step takes as long for one as for eight: sums are exact, so that what
happens does not depend on when. Nobody is in the middle of anything after the optimizer step."""
BASE: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt_order": ("shuffled", {}),
    "budget": ("length_variance", {"top_up": "fewest"}),
    "selector": ("dual_end", {}),
    "batch": ("fifo", {}),
    "advantage": ("grpo", {"drop_equal": True}),
}
OPTIONS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("budget", "uniform"): [{}, {"top_up": "fewest"}],
    ("selector", "dual_end"): [{}, {"long_wait": "group"}, {"prune_at": 2.0}],
    ("selector", "concise_confident"): [{"depth": d} for d in ("step", "stop", "none")],
    ("batch", "quorum"): [{"share": 0.5, "size": 2}],
}
"""Where the options decide what is kept; every other plug-in has its defaults."""
PLUGINS = [
    (kind, name, options)
    for kind in BASE
    for name in registry.builtin_names(kind)
    for options in OPTIONS.get((kind, name), [{}])
]


def coordinator_with(kind: str, name: str, options: dict[str, Any]) -> Coordinator:
    made: dict[str, Any] = {}
    for each, (usual, usual_options) in BASE.items():
        cls = registry.find_plugin(each, name if each == kind else usual)
        given = options if each == kind else usual_options
        extra = {"seed": SETTINGS.seed} if each == "prompt_order" else {}
        made[each] = cls(registry.options_type(cls)(**given), **extra)
    lengths = [3 + prompt % 4 for prompt in range(SETTINGS.prompts)]
    return Coordinator(SETTINGS, Plugins(**made), lengths, ["a", "b"] * (SETTINGS.prompts // 2))


class Life(Simulation):
    """A run from its beginning, or from a state; remembers how groups ended and its cuts."""

    def __init__(self, plugin: tuple[str, str, dict[str, Any]], saved: bytes = b"") -> None:
        workload = Parametric(Lengths(median=15, between=0.5, within=0.8), Policy(0.0), seed=5)
        coordinator = coordinator_with(*plugin)
        super().__init__(coordinator, MACHINES, workload, [5] * SETTINGS.prompts)
        self.told: list[dict[str, Any]] = []  # how groups were decided on and ended
        self.cuts: dict[int, bytes] = {}
        self.before: dict[int, int] = {}  # cut after step -> how much had been told
        state = msgspec.msgpack.decode(saved, type=Snapshot) if saved else None
        asked = snapshot.restore(coordinator, state, 0.0) if state else []
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
            # By the engines' latency, which is measured anew:
            timed = ("utility", "generation_predicted_s")
            fields = {key: value for key, value in command.fields.items() if key not in timed}
            self.told.append({"what": command.what, **fields})


def without_clock(state: bytes) -> Snapshot:
    """What evaluations and open steps have taken is time, and not the run."""
    found = msgspec.msgpack.decode(state, type=Snapshot)
    evaluations = [{k: v for k, v in e.items() if k != "seconds"} for e in found.evaluations]
    timed = ("utility", "generation_predicted_s")
    plan = {name: value for name, value in found.stats.plan.items() if name not in timed}
    stats = msgspec.structs.replace(found.stats, since=0.0, plan=plan)
    return msgspec.structs.replace(found, evaluations=evaluations, stats=stats)


@pytest.mark.fault("a stop after any step, with any plug-in", part="everything", by="simulator")
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def test_stopped_after_any_step_and_resumed_it_is_the_run_that_never_stopped(
    plugin: tuple[str, str, dict[str, Any]],
) -> None:
    """Promise: what is reported from there on, and the last state, are those of the run that never
    stopped.
    Bound: every step of six.
    """
    whole = Life(plugin)
    whole.run()
    assert set(whole.cuts) == set(range(1, STEPS + 1))
    for step in range(1, STEPS):
        resumed = Life(plugin, whole.cuts[step])
        resumed.run()
        assert resumed.told == whole.told[whole.before[step] :], f"after step {step}"
        assert without_clock(resumed.cuts[STEPS]) == without_clock(whole.cuts[STEPS])


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def test_saved_loaded_and_saved_again_it_is_the_same_bytes(
    plugin: tuple[str, str, dict[str, Any]],
) -> None:
    """After each step, and in the middle of one."""
    life = Life(plugin)
    for moment in range(1, 400):
        life.run(seconds=moment / 50)
        if life.over is not None:
            break
        if life.version:
            life.cuts[-moment] = msgspec.msgpack.encode(snapshot.take(life.coordinator))
    assert len(life.cuts) > 2 * STEPS
    for written in life.cuts.values():
        again = coordinator_with(*plugin)
        loaded = msgspec.msgpack.decode(written, type=Snapshot)
        version, held = loaded.version, loaded.stats.since
        snapshot.restore(again, loaded, 1000.0)
        again.core.version = version  # which the learner says
        assert again.core.now - again.core.stats.since == pytest.approx(held)
        assert msgspec.msgpack.encode(snapshot.take(again)) == written
