"""Runs with faults: what may never be is found in none of them, and would be found."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from launch.simulate.fuzz import explore, outcome_text
from pipeline.coordinator import group_manager
from pipeline.coordinator.candidates import begin_as_fork
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import Trajectory, TrajectoryEvent
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.token_ledger import TokenLedger
from pipeline.coordinator.training_step import TrainingSteps
from pipeline.plugins.budgets import _top_up
from pipeline.simulation.fault_plan import HANGS, What
from pipeline.simulation.faults import Faulty
from pipeline.simulation.fuzz import MODES, Mode, play, shrink, world
from tests.paths import ROOT

SEEDS = [range(100), pytest.param(range(100, 1000), marks=pytest.mark.long)]


@pytest.mark.fault(
    "frames go astray, engines, learner and stage die, rewards and weights fail: at random",
    part="everything",
    by="simulator",
)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seeds", SEEDS, ids=["100", "others"])
def test_a_thousand_seeds_with_faults_hold_what_must_hold(seeds: range):
    """Promise: the invariants hold, and the run does all its steps or, where nobody is left to do
    them, stops and says why; it never hangs.
    Bound: 1,000 seeds, 100 of them in `make test`; in real time within 300 s.
    """
    done: list[int] = []
    found = explore(seeds, progress=done.append)
    assert found.violations == 0, "\n\n".join(outcome_text(outcome) for outcome in found.shown)
    assert found.seeds == done[-1] == sum(found.by_mode.values()) == len(seeds)
    assert set(found.by_mode) == set(MODES)
    assert found.events > 50 * len(seeds), "these runs did something"


@pytest.mark.parametrize(
    "seed, mode, what",
    [
        (
            363,
            Mode.CHAOS,
            "with staleness a group chosen before an audited step waited for a reward",
        ),
        (221955, Mode.HEAL, "resumed after three skipped steps it gave up at the first empty one"),
        (222923, Mode.CHAOS, "the same"),
        (231764, Mode.CHAOS, "the same"),
    ],
)
def test_seeds_that_once_failed(seed: int, mode: Mode, what: str):
    assert play(seed, mode).violation == "", what


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_is_the_same_run_every_time(mode: Mode):
    code = (
        "from pipeline.simulation import fuzz\n"
        "log = fuzz.recorded(SEED, fuzz.Mode('MODE'))\n"
        "import hashlib; print(hashlib.sha256('\\n'.join(log).encode()).hexdigest(), len(log))"
    )
    for seed in (1, 2):
        text = code.replace("SEED", str(seed)).replace("MODE", mode.value)
        said = {
            subprocess.run(
                [sys.executable, "-c", text],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": hashed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for hashed in ("1", "2")
        }
        assert len(said) == 1, "every event, in every process"
        assert int(said.pop().split()[1]) > 30


def test_without_faults_nobody_is_lost_and_nothing_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(self: Faulty, command: object) -> None:
        raise AssertionError(f"{command}, and nothing has happened")

    monkeypatch.setattr(Faulty, "_restart", refused)
    for seed in range(60):
        outcome = play(seed, Mode.HEAL, [])
        assert outcome.violation == "", outcome_text(outcome)


def test_faults_go_on_to_the_end_in_chaos_and_end_in_heal():
    chaos, heal = (
        [max(fault.at for fault in world(seed, mode).faults) for seed in range(50)]
        for mode in (Mode.CHAOS, Mode.HEAL)
    )
    assert min(chaos) > max(heal) > 1.0
    assert {world(seed, Mode.CHAOS).rules.restarts for seed in range(50)} == {2, 5, 1000}


def test_every_kind_of_fault_is_in_some_plan():
    kinds = {fault.what for seed in range(200) for fault in world(seed, Mode.CHAOS).faults}
    assert kinds == set(What) - set(HANGS)
    kinds = {fault.what for seed in range(200) for fault in world(seed, Mode.HANG).faults}
    assert kinds == set(What)


def test_in_the_dead_mode_somebody_dies_last():
    for seed in range(50):
        here = world(seed, Mode.DEAD)
        last = [fault for fault in here.faults if fault.at >= here.rules.doomed_at]
        assert {fault.what for fault in last} <= {What.ENGINE_DIES, What.LEARNER_DIES}
        assert last


# --- each of these bugs is found ---------------------------------------------------------------


def _losing(self: TokenLedger, tokens: int, source: str, target: str, why: str = "") -> None:
    self.accounts[source] -= tokens
    self.accounts[target] += 0 if target == "aborted" else tokens


def _forgetting(self: Scheduler, trajectory: Trajectory) -> None:
    trajectory.advance(TrajectoryEvent.LEG_LOST, 0.0)
    trajectory.leg += 1
    trajectory.engine = ""


def _deaf(self: Selection, trajectory_id: int, value: Any, parts: Any, why: str) -> None:
    if value is not None:
        _rewarded(self, trajectory_id, value, parts, why)


def _bare(member: Trajectory, origin: Trajectory, at: int) -> None:
    begin_as_fork(member, origin, at)
    member.variant = ""


_rewarded = Selection.rewarded


@pytest.mark.parametrize(
    "owner, name, broken",
    [
        (TokenLedger, "move", _losing),
        (Scheduler, "requeue", _forgetting),
        (Selection, "rewarded", _deaf),  # a failed reward is waited for
        (Coordinator, "_learner_lost", lambda self, event: None),
        (
            TrainingSteps,
            "too_many_skips",
            property(lambda self: True),
        ),  # gives up at the first empty step
        (_top_up, "fewest_finished", lambda groups, idle, options: [(g.id, 1) for g in groups[:1]]),
        (Trajectory, "own", property(lambda self: self.sampled)),  # shared tokens count twice
        (group_manager, "begin_as_fork", _bare),  # continues behind another prompt
        (GroupManager, "request_group_reward", lambda self, group: None),
    ],
)
def test_the_exploration_finds(owner: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch):
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
    text = outcome_text(small)
    assert small.command in text and small.violation in text
