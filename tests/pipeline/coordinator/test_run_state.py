"""The phases of a run move along their table, and so do the engines that it counts on."""

from __future__ import annotations

import pytest

from pipeline.coordinator.engine_pool import (
    ENGINE_TRANSITIONS,
    EngineEvent,
    EnginePhase,
    EngineState,
)
from pipeline.coordinator.groups import IllegalTransition
from pipeline.coordinator.run_state import RUN_TRANSITIONS, RunPhase, RunState
from tests.pipeline.coordinator.test_groups import reachable

ILLEGAL_PHASES = [(a, b) for a in RunPhase for b in RunPhase if b not in RUN_TRANSITIONS[a]]
ILLEGAL_EVENTS = [
    (p, e) for p in EnginePhase for e in EngineEvent if e not in ENGINE_TRANSITIONS[p]
]


@pytest.mark.parametrize("phase,target", ILLEGAL_PHASES, ids=str)
def test_an_illegal_phase_raises_and_changes_nothing(phase: RunPhase, target: RunPhase) -> None:
    run = RunState()
    run.phase = phase
    with pytest.raises(IllegalTransition, match=f"run: to {target} while {phase}"):
        run.advance(target)
    assert run.phase is phase


@pytest.mark.parametrize("phase,event", ILLEGAL_EVENTS, ids=str)
def test_an_illegal_event_of_an_engine_raises_and_changes_nothing(
    phase: EnginePhase, event: EngineEvent
) -> None:
    engine = EngineState(name="e0", epoch=0, slots=1, phase=phase)
    with pytest.raises(IllegalTransition, match=f"engine e0: {event} while {phase}"):
        engine.advance(event)
    assert engine.phase is phase


def test_every_phase_is_in_its_table_and_can_be_reached() -> None:
    assert set(RUN_TRANSITIONS) == set(RunPhase) == reachable(RUN_TRANSITIONS, RunPhase.STARTING)
    assert (
        set(ENGINE_TRANSITIONS)
        == set(EnginePhase)
        == reachable(ENGINE_TRANSITIONS, EnginePhase.JOINED)
    )
