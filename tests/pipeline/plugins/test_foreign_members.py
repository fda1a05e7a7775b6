"""Selectors that include what was not sampled for their group, and what is refused of it."""

from __future__ import annotations

from typing import Any

from pipeline.plugins.actions import Finalize, Include, Sample
from pipeline.plugins.interfaces import Finish
from pipeline.plugins.selectors.dart_gui import DartGui, DartGuiOptions
from pipeline.plugins.selectors.luffy import Luffy
from pipeline.plugins.testing import group_of, illegal, option_problems
from pipeline.plugins.views import GroupView
from tests.pipeline.plugins.deciding import chosen, decide

FAILED: dict[str, Any] = {"finished": {1: 10, 2: 30, 3: 20}, "rewards": {1: 0.0, 2: 0.0, 3: 0.0}}
"""Three failures, of which 2 is the longest."""


def with_success() -> GroupView:
    """The same with the stored success 9 beside them."""
    return group_of(
        size=3,
        finished={**FAILED["finished"], 9: 15},
        rewards={**FAILED["rewards"], 9: 1.0},
        included={9: "stored"},
    )


def test_dart_gui_replaces_a_failure_by_the_stored_success_where_all_failed():
    """DART-GUI, rule 4."""
    [action] = decide(DartGui(), group_of(size=3, foreign=("stored",), **FAILED))
    assert action == Include("stored", why="all 3 failed", kind="stored")
    assert chosen(decide(DartGui(), with_success(), Finish(9))) == (1, 3, 9)


def test_dart_gui_trains_on_all_where_one_succeeded_or_nothing_is_stored():
    one: dict[str, Any] = {**FAILED, "rewards": {1: 0.0, 2: 1.0, 3: 0.0}}
    assert chosen(decide(DartGui(), group_of(size=3, foreign=("stored",), **one))) == (1, 2, 3)
    assert chosen(decide(DartGui(), group_of(size=3, **FAILED))) == (1, 2, 3)


def test_dart_gui_waits_for_every_reward_and_goes_by_its_own_idea_of_a_success():
    running = group_of(size=3, running={4: 5}, foreign=("stored",), **FAILED)
    assert decide(DartGui(), running) == []
    half: dict[str, Any] = {**FAILED, "rewards": {1: 0.5, 2: 0.5, 3: 0.0}}
    group = group_of(size=3, foreign=("stored",), **half)
    assert isinstance(decide(DartGui(), group)[0], Include)
    assert isinstance(decide(DartGui(DartGuiOptions(right=0.5)), group)[0], Finalize)
    assert DartGui(DartGuiOptions(stored=7, right=0.5)).wants.stored == 7
    assert DartGui(DartGuiOptions(stored=7, right=0.5)).wants.right == 0.5


def test_dart_gui_refuses_options_out_of_range():
    assert option_problems(DartGuiOptions, stored=-1) == ["stored: found -1, expected at least 0"]


def test_luffy_includes_the_solution_once_its_own_have_ended_and_trains_on_all():
    running = group_of(size=2, finished={1: 5}, running={2: 5}, foreign=("solution",))
    assert decide(Luffy(), running) == []
    [action] = decide(Luffy(), group_of(size=2, finished={1: 5, 2: 6}, foreign=("solution",)))
    assert isinstance(action, Include) and action.source == "solution"
    there = group_of(size=2, finished={1: 5, 2: 6, 3: 7}, included={3: "solution"})
    assert chosen(decide(Luffy(), there)) == (1, 2, 3)
    without = group_of(size=2, finished={1: 5, 2: 6})
    assert chosen(decide(Luffy(), without)) == (1, 2), "the data has none for this prompt"


def test_a_source_that_is_not_there_a_second_time_and_a_fork_of_it_are_refused():
    group = group_of(size=3, foreign=("stored",), **FAILED)
    assert illegal(group, [Include("stored")]) == []
    [twice] = illegal(group, [Include("stored"), Include("stored")])
    assert twice.endswith("no response of source 'stored' that it does not hold; there are: none")
    [unknown] = illegal(group, [Include("solution")])
    assert unknown.endswith(
        "no response of source 'solution' that it does not hold; there are: stored"
    )
    [fork] = illegal(with_success(), [Sample(1, fork=(9, 3))])
    assert "of which none can be continued" in fork
