"""Runs with faults: what may never be is found in none of them, and would be found."""

from __future__ import annotations

from typing import Any

import pytest

from launch.simulate.exploring import explain, explore
from pipeline.coordinator import Coordinator
from pipeline.groups import Cause, Trajectory
from pipeline.ledger import Ledger
from pipeline.placement import Placement
from pipeline.selection import Selection
from pipeline.simulation.explore import MODES, Mode, play, shrink, world
from pipeline.simulation.faults import What

SEEDS = 1000


@pytest.mark.timeout(300)
def test_a_thousand_seeds_with_faults_hold_what_must_hold():
    done: list[int] = []
    found = explore(range(SEEDS), progress=done.append)
    assert found.violations == 0, "\n\n".join(explain(outcome) for outcome in found.shown)
    assert found.seeds == done[-1] == sum(found.by_mode.values()) == SEEDS
    assert set(found.by_mode) == set(MODES)
    assert found.events > 50 * SEEDS, "these runs did something"


@pytest.mark.parametrize(
    "seed, mode, what",
    [(363, Mode.CHAOS, "with staleness a group chosen before an audited step waited for a reward")],
)
def test_seeds_that_once_failed(seed: int, mode: Mode, what: str):
    assert play(seed, mode).violation == "", what


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_is_the_same_run_every_time(mode: Mode):
    assert [play(seed, mode) for seed in range(5)] == [play(seed, mode) for seed in range(5)]


def test_every_kind_of_fault_is_in_some_plan():
    kinds = {fault.what for seed in range(200) for fault in world(seed, Mode.CHAOS).faults}
    assert kinds == set(What)


def test_in_the_dead_mode_somebody_dies_last():
    for seed in range(50):
        here = world(seed, Mode.DEAD)
        last = [fault for fault in here.faults if fault.at >= here.rules.doomed_at]
        assert {fault.what for fault in last} <= {What.ENGINE_DIES, What.LEARNER_DIES}
        assert last


# --- each of these bugs is found ---------------------------------------------------------------


def _losing(self: Ledger, tokens: int, source: str, target: str, why: str = "") -> None:
    self.accounts[source] -= tokens
    self.accounts[target] += 0 if target == "aborted" else tokens


def _forgetting(self: Placement, trajectory: Trajectory) -> None:
    trajectory.advance(Cause.LEG_LOST, 0.0)
    trajectory.leg += 1
    trajectory.engine = ""


def _deaf(self: Selection, trajectory_id: int, value: Any, parts: Any, why: str) -> None:
    if value is not None:
        _rewarded(self, trajectory_id, value, parts, why)


_rewarded = Selection.rewarded


@pytest.mark.parametrize(
    "owner, name, broken",
    [
        (Ledger, "move", _losing),
        (Placement, "requeue", _forgetting),
        (Selection, "rewarded", _deaf),  # a failed reward is waited for
        (Coordinator, "_learner_lost", lambda self, event: None),
    ],
)
def test_the_exploration_finds(
    owner: type, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(owner, name, broken)
    for seed in range(300):
        outcome = play(seed, MODES[seed % len(MODES)])
        if outcome.violation:
            break
    else:
        raise AssertionError(f"nobody noticed that {owner.__name__}.{name} is broken")
    small = shrink(outcome)
    assert small.violation and len(small.faults) <= len(outcome.faults)
    assert play(small.seed, small.mode, small.faults) == small, "it can be played again"
    text = explain(small)
    assert small.command in text and small.violation in text
