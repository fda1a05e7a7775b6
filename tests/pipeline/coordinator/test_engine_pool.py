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


def emptiest(engine_pool: EnginePool) -> str:
    free = [e for e in engine_pool.serving.values() if len(e.legs) < e.slots]
    return min(((len(e.legs) / e.slots, e.name) for e in free), default=(0.0, ""))[1]


def brute_below(engine_pool: EnginePool, knee: int) -> int:
    return sum(max(0, min(e.slots, knee) - len(e.legs)) for e in engine_pool.serving.values())


def check(engine_pool: EnginePool, knee: int) -> None:
    found = engine_pool.emptiest()
    assert (found.name if found else "") == emptiest(engine_pool)
    assert engine_pool.slots == sum(e.slots for e in engine_pool.serving.values())
    assert engine_pool.idle == sum(e.slots - len(e.legs) for e in engine_pool.serving.values())
    assert engine_pool.idle_below(knee) == brute_below(engine_pool, knee)


moves = st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES), st.integers(0, 5))


@given(st.lists(moves, max_size=300))
def test_after_whatever_engines_do_the_books_are_those_of_a_recount(
    actions: list[tuple[str, str, int]],
) -> None:
    engine_pool, engines, knee, leg = EnginePool(), dict[str, EngineState](), 2, 0
    for action, name, number in actions:
        engine = engines.get(name)
        if action == "admit":
            if engine is None:
                engine = engines[name] = EngineState(name=name, epoch=0, slots=number)
            engine_pool.admit(engine)
        elif action == "knee":
            knee = number
        elif action == "reset":
            engine_pool.reset(e for e in engines.values() if len(e.legs) % 2)
        elif action == "start":
            leg += 1
            free = engine_pool.emptiest()
            if free is not None:
                engine_pool.start(free, (leg, 0), 0.0)
        elif engine is not None and action == "dismiss":
            engine_pool.dismiss(engine)
            if number % 2:
                del engines[name]
        elif engine is not None and engine.legs:
            engine_pool.end(engine, min(engine.legs))
        check(engine_pool, knee)


def test_the_emptiest_engine_comes_first_and_ties_go_by_name() -> None:
    engine_pool = EnginePool()
    for name, slots in (("e2", 4), ("e1", 2), ("e0", 0)):
        engine_pool.admit(EngineState(name=name, epoch=0, slots=slots))
    order = []
    while (engine := engine_pool.emptiest()) is not None:
        engine_pool.start(engine, (len(order), 0), 0.0)
        order.append(engine.name)
    assert order == ["e1", "e2", "e2", "e1", "e2", "e2"]


def test_an_engine_that_comes_back_without_slots_is_not_free() -> None:
    engine_pool = EnginePool()
    old = EngineState(name="e0", epoch=0, slots=4)
    engine_pool.admit(old)
    engine_pool.dismiss(old)
    engine_pool.admit(EngineState(name="e0", epoch=1, slots=0))
    assert engine_pool.emptiest() is None


def test_entries_that_are_void_do_not_pile_up() -> None:
    engine_pool = EnginePool()
    engines = [EngineState(name=f"e{n}", epoch=0, slots=8) for n in range(8)]
    for engine in engines:
        engine_pool.admit(engine)
    for turn in range(5000):
        engine = engines[turn % 8]
        engine_pool.start(engine, (turn, 0), 0.0)
        engine_pool.end(engine, (turn, 0))
    assert len(engine_pool._free) < 100


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
