"""A run that is stopped after any step and resumed is the run that never stopped, whichever
plug-ins decide; and their state, saved and loaded, is the same bytes again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.snapshot import Snapshot
from pipeline.coordinator.state import Plugins
from pipeline.plugins import registry
from pipeline.simulation.resume import SEED, STEPS, Case, Life, differences

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
    ("selector", "arrol"): [{"checkpoint": 8}],
    ("selector", "dot"): [{"every": 4, "deviations": 1.0}],
    ("selector", "duet"): [{"checkpoint": 8}],
    ("selector", "echo"): [{"window": 4, "floor": 0.9}],
    ("selector", "gfpo"): [{"by": "length"}],  # else a step in which all are right trains nothing
    ("selector", "sorted_rl"): [{"mode": mode} for mode in ("cached", "strict")],
    ("selector", "ulorl"): [{"segment": 16}],
    ("budget", "seele"): [{"rounds": 2}],
}
"""Where the options decide what is kept; every other plug-in has its defaults."""
PLUGINS = [
    (kind, name, options)
    for kind in BASE
    for name in registry.builtin_names(kind)
    for options in OPTIONS.get((kind, name), [{}])
]


def case_with(kind: str, name: str, options: dict[str, Any]) -> Case:
    def make() -> Plugins:
        made: dict[str, Any] = {}
        for each, (usual, usual_options) in BASE.items():
            cls = registry.find_plugin(each, name if each == kind else usual)
            given = options if each == kind else usual_options
            extra = {"seed": SEED} if each == "prompt_order" else {}
            made[each] = cls(registry.options_type(cls)(**given), **extra)
        return Plugins(**made)

    return Case(make=make, columns=("hint_1", "hint_2", "solution"), solved=True)


@pytest.mark.fault("a stop after any step, with any plug-in", part="everything", by="simulator")
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def test_stopped_after_any_step_and_resumed_it_is_the_run_that_never_stopped(
    plugin: tuple[str, str, dict[str, Any]],
) -> None:
    """Promise: what is reported from there on, and the last state, are those of the run that never
    stopped.
    Bound: every step of six.
    """
    case = case_with(*plugin)
    assert list(differences(case)) == []
    whole = Life(case)
    whole.run()
    assert set(whole.cuts) == set(range(1, STEPS + 1)), "there was something to be compared"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def test_saved_loaded_and_saved_again_it_is_the_same_bytes(
    plugin: tuple[str, str, dict[str, Any]],
) -> None:
    """After each step, and in the middle of one."""
    case = case_with(*plugin)
    life = Life(case)
    for moment in range(1, 400):
        life.run(seconds=moment / 50)
        if life.over is not None:
            break
        if life.version:
            life.cuts[-moment] = msgspec.msgpack.encode(snapshot.take(life.coordinator))
    assert len(life.cuts) > 2 * STEPS
    for written in life.cuts.values():
        again = case.coordinator()
        loaded = msgspec.msgpack.decode(written, type=Snapshot)
        version, held = loaded.version, loaded.stats.since
        snapshot.restore(again, loaded, 1000.0)
        again.core.version = version  # which the learner says
        assert again.core.now - again.core.stats.since == pytest.approx(held)
        assert msgspec.msgpack.encode(snapshot.take(again)) == written
