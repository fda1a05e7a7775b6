"""What is found wrong with a plug-in before a run: its methods, and the kind of its answers."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pytest

from pipeline.config.load import load
from pipeline.plugins import registry
from pipeline.plugins.actions import Advantages, Allocation, Close, Finalize, Plan, Take
from pipeline.plugins.interfaces import Stateless, Wants
from pipeline.plugins.trial import trial_problems
from tests.paths import ROOT


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("mine_of_trial")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


# --- methods ------------------------------------------------------------------------------------


class TooFew(Stateless):
    def decide(self, group: Any) -> Iterable[Any]:
        return ()


class TooMany(Stateless):
    def decide(self, group: Any, event: Any, more: Any) -> Iterable[Any]:
        return ()


class NoConstructor:
    def decide(self, group: Any, event: Any) -> Iterable[Any]:
        return ()


class NoSeed(Stateless):
    def plan(self, view: Any) -> Plan:
        return Plan(())


class EndedOfOld(Stateless):
    def decide(self, group: Any, event: Any) -> Iterable[Any]:
        return ()

    def ended(self, prompt: int, how: str, rewards: Any) -> None: ...


class HalfAState(Stateless):
    def decide(self, group: Any, event: Any) -> Iterable[Any]:
        return ()

    def state(self) -> dict[str, Any]:
        return {}


class LossOfTwo(Stateless):
    def loss(self, batch: Any, extra: Any) -> Any: ...


class FineAsStatic(Stateless):
    wants = Wants()

    @staticmethod
    def decide(group: Any, event: Any) -> Iterable[Any]:
        return ()


@pytest.mark.parametrize(
    "kind, cls, says",
    [
        ("selector", TooFew, "TooFew.decide(self, group: 'Any')"),
        ("selector", TooFew, "it is called as decide(self, group, event) (too many positional"),
        ("selector", TooMany, "(missing a required argument: 'more')"),
        ("selector", NoConstructor, "it is constructed as __init__(self, options) (too many"),
        ("selector", NoConstructor, "it may inherit Stateless"),
        ("prompt_order", NoSeed, "it is constructed as __init__(self, options, *, seed) (got an"),
        ("selector", EndedOfOld, "it is called as ended(self, group) (missing"),
        ("selector", HalfAState, "must offer both state() and restore(), or neither"),
        ("loss", LossOfTwo, "it is called as loss(self, batch) (missing"),
        ("budget", LossOfTwo, "has no method allocate(self, prompts, view)"),
    ],
)
def test_methods_that_take_other_arguments_are_named_when_the_class_is_loaded(
    kind: str, cls: type[Any], says: str, offered: types.ModuleType
):
    offered.Mine = cls  # type: ignore[attr-defined]
    with pytest.raises(registry.PluginError) as raised:
        registry.find_plugin(kind, "mine_of_trial:Mine")
    assert str(raised.value).startswith(f"{kind} 'mine_of_trial:Mine': ")
    assert says in str(raised.value)


def test_a_static_method_is_a_method_too(offered: types.ModuleType):
    offered.Mine = FineAsStatic  # type: ignore[attr-defined]
    assert registry.find_plugin("selector", "mine_of_trial:Mine") is FineAsStatic


# --- answers ------------------------------------------------------------------------------------


class Answers:
    """A plug-in of any kind that answers as it is told."""

    wants = Wants()

    def __init__(self, answer: Any, top_up: Any = ()) -> None:
        self._answer, self._top_up = answer, top_up

    def _say(self, *_: Any) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    plan = decide = allocate = advantages = _say

    def top_up(self, groups: Any, idle: int) -> Any:
        return self._top_up


def complaint(kind: str, answer: Any, **given: Any) -> str:
    return "; ".join(trial_problems(kind, "mine", Answers(answer, **given), size=4))


TWO = [Allocation(candidates=4, max_tokens=9)] * 2


@pytest.mark.parametrize(
    "kind, answer, says",
    [
        ("prompt_order", [1, 2], ".plan answered [1, 2], expected a Plan"),
        ("prompt_order", Plan((1, 1)), "each once, and not 3, which is outstanding"),
        ("prompt_order", Plan((3,)), "each once, and not 3, which is outstanding"),
        ("prompt_order", Plan((0, 1, 2)), "at most two of the prompts 0 to 7"),
        ("prompt_order", Plan(cast(Any, ("a",))), "numbers of prompts, whole ones"),
        ("budget", None, ".allocate answered None, expected an Allocation for each of two prompts"),
        ("budget", TWO[:1], "expected an Allocation for each of two prompts"),
        ("budget", [8, 8], "expected an Allocation for each of two prompts"),
        ("budget", [Allocation(candidates=0, max_tokens=9)] * 2, "at least one candidate"),
        ("selector", None, ".decide(group, Finish) answered None, expected actions"),
        ("selector", "Drop", "expected actions, none or several"),
        ("selector", [Plan(())], "expected actions of darts.plugins"),
        ("selector", [Finalize(ids=(0, 99))], "an id is unknown or named twice"),
        ("batch", None, ".decide answered None, expected actions of a batch rule"),
        ("batch", [Finalize(ids=(1, 2))], "expected Take, Leave, Replay, Relax or Close"),
        ("advantage", [1.0] * 4, ".advantages answered [1.0, 1.0, 1.0, 1.0], expected Advantages"),
        (
            "advantage",
            Advantages(values=np.zeros(1), weights=np.ones(1)),
            "a weight for each of 4 members",
        ),
        ("advantage", KeyError("size"), "raised KeyError: 'size' ("),
    ],
)
def test_an_answer_that_the_core_cannot_read_is_named(kind: str, answer: Any, says: str):
    found = complaint(kind, answer)
    assert found.startswith(f"{kind} 'mine': Answers")
    assert says in found


def test_what_raised_is_told_with_its_file_and_line():
    found = complaint("selector", ZeroDivisionError("division by zero"))
    assert "raised ZeroDivisionError: division by zero (" in found
    assert "test_trial.py:" in found
    assert ", in _say)" in found


def test_pairs_of_a_top_up_are_of_open_groups():
    assert complaint("budget", TWO, top_up=[(0, 1)]) == ""
    for wrong in (None, [0], [(7, 1)], [(0, 0)]):
        assert "top_up answered" in complaint("budget", TWO, top_up=wrong)


def test_a_selector_says_what_it_wants():
    plugin = Answers(())
    plugin.wants = None  # type: ignore[assignment]
    [found] = trial_problems("selector", "mine", plugin, size=4)
    assert found == (
        "selector 'mine': Answers.wants is None, expected a Wants(...): "
        "the events that it is asked on"
    )


@pytest.mark.parametrize("kind", ["prompt_order", "budget", "selector", "batch", "advantage"])
def test_every_plugin_of_the_house_answers_what_the_core_can_read(kind: str):
    for name in registry.builtin_names(kind):
        cls = registry.find_plugin(kind, name)
        extra = {"seed": 3} if kind == "prompt_order" else {}
        plugin = cls(registry.options_type(cls)(), **extra)
        assert trial_problems(kind, name, plugin, size=8, max_tokens=128) == []


def test_kinds_that_decide_elsewhere_are_not_asked():
    for kind in ("reward", "environment", "loss"):
        assert trial_problems(kind, "mine", object(), size=4) == []


def test_fine_answers_are_no_complaint():
    assert complaint("batch", [Take(groups=(4,)), Close()]) == ""
    assert complaint("prompt_order", Plan((0, 7))) == ""


def test_the_check_of_a_configuration_asks_all_of_its_plugins(monkeypatch: pytest.MonkeyPatch):
    from launch.preflight.plugins import plugin_problems
    from pipeline.plugins.selectors.first_m import FirstM

    config = load(ROOT / "configs" / "quickstart.yaml", ["selector=first_m"])
    assert plugin_problems(config) == []
    monkeypatch.setattr(FirstM, "decide", lambda self, group, event: 3)
    [found] = plugin_problems(config)
    assert found.startswith("selector 'first_m': FirstM.decide(group, Finish) answered 3")
