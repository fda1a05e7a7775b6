"""Idle slots and the emptiest engine, kept leg by leg: the same as going over all engines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.coordinator.engine_pool import EnginePool, EngineState
from tests.pipeline.coordinator.test_coordinator_properties import _find

NAMES = ["e0", "e1", "e2", "e3"]
ACTIONS = ["admit", "dismiss", "start", "start", "start", "end", "end", "knee", "reset"]


def emptiest(fleet: EnginePool) -> str:
    free = [e for e in fleet.serving.values() if len(e.legs) < e.slots]
    return min(((len(e.legs) / e.slots, e.name) for e in free), default=(0.0, ""))[1]


def brute_below(fleet: EnginePool, knee: int) -> int:
    return sum(max(0, min(e.slots, knee) - len(e.legs)) for e in fleet.serving.values())


def check(fleet: EnginePool, knee: int) -> None:
    found = fleet.emptiest()
    assert (found.name if found else "") == emptiest(fleet)
    assert fleet.slots == sum(e.slots for e in fleet.serving.values())
    assert fleet.idle == sum(e.slots - len(e.legs) for e in fleet.serving.values())
    assert fleet.idle_below(knee) == brute_below(fleet, knee)


moves = st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES), st.integers(0, 5))


@given(st.lists(moves, max_size=300))
def test_after_whatever_engines_do_the_books_are_those_of_a_recount(
    actions: list[tuple[str, str, int]],
) -> None:
    fleet, engines, knee, leg = EnginePool(), dict[str, EngineState](), 2, 0
    for action, name, number in actions:
        engine = engines.get(name)
        if action == "admit":
            if engine is None:
                engine = engines[name] = EngineState(name=name, epoch=0, slots=number)
            fleet.admit(engine)
        elif action == "knee":
            knee = number
        elif action == "reset":
            fleet.reset(e for e in engines.values() if len(e.legs) % 2)
        elif action == "start":
            leg += 1
            free = fleet.emptiest()
            if free is not None:
                fleet.start(free, (leg, 0), 0.0)
        elif engine is not None and action == "dismiss":
            fleet.dismiss(engine)
            if number % 2:
                del engines[name]
        elif engine is not None and engine.legs:
            fleet.end(engine, min(engine.legs))
        check(fleet, knee)


def test_the_emptiest_engine_comes_first_and_ties_go_by_name() -> None:
    fleet = EnginePool()
    for name, slots in (("e2", 4), ("e1", 2), ("e0", 0)):
        fleet.admit(EngineState(name=name, epoch=0, slots=slots))
    order = []
    while (engine := fleet.emptiest()) is not None:
        fleet.start(engine, (len(order), 0), 0.0)
        order.append(engine.name)
    assert order == ["e1", "e2", "e2", "e1", "e2", "e2"]


def test_an_engine_that_comes_back_without_slots_is_not_free() -> None:
    fleet = EnginePool()
    old = EngineState(name="e0", epoch=0, slots=4)
    fleet.admit(old)
    fleet.dismiss(old)
    fleet.admit(EngineState(name="e0", epoch=1, slots=0))
    assert fleet.emptiest() is None


def test_entries_that_are_void_do_not_pile_up() -> None:
    fleet = EnginePool()
    engines = [EngineState(name=f"e{n}", epoch=0, slots=8) for n in range(8)]
    for engine in engines:
        fleet.admit(engine)
    for turn in range(5000):
        engine = engines[turn % 8]
        fleet.start(engine, (turn, 0), 0.0)
        fleet.end(engine, (turn, 0))
    assert len(fleet._free) < 100


# --- an index that goes wrong is noticed ------------------------------------------------------


def forgetful_end(self: EnginePool, engine: EngineState, leg: tuple[int, int]) -> None:
    del engine.legs[leg]


def silent_offer(self: EnginePool, engine: EngineState) -> None:
    """An engine that has a free slot is not offered."""


def keeping(self: EnginePool, engine: EngineState) -> None:
    """An engine that is lost goes on serving."""


@pytest.mark.parametrize(
    "name,broken",
    [("end", forgetful_end), ("_offer", silent_offer), ("dismiss", keeping)],
)
def test_the_world_finds_a_fleet_that_is_off(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Any
) -> None:
    _find(monkeypatch, EnginePool, name, broken)
