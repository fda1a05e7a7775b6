"""Asks a plug-in a few small questions before a run, and checks what kind of answer it gives.

Turns a plug-in into complaints that name it, its method and what it answered. The views are
those of `pipeline.plugins.testing`: a group of M members, a step of two groups, two prompts. A
plug-in's answer may be a poor one; only what the core could not read is a complaint.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast, get_args

from pipeline.plugins import testing
from pipeline.plugins.actions import Action, Advantages, Allocation, BatchAction, NoSignal, Plan
from pipeline.plugins.interfaces import (
    Barrier,
    Finish,
    Rewarded,
    SelectorEvent,
    Wants,
    WeightsPublished,
)
from pipeline.plugins.views import GroupView, PromptView

_SHOWN = 120  # characters of an answer


class _Wrong(Exception):
    """What is wrong with an answer."""


def trial_problems(
    kind: str, name: str, plugin: Any, *, size: int, max_tokens: int = 64
) -> list[str]:
    """Complaints about a plug-in's answers, a line each.

    Args:
        plugin: a new one, which is not used afterwards.
        size: M, `group.size`.
        max_tokens: longest response.
    """
    asks = _ASKS.get(kind)
    if asks is None:
        return []
    who = f"{kind} {name!r}: {type(plugin).__name__}"
    try:
        asks(plugin, size, max_tokens)
    except _Wrong as wrong:
        return [f"{who}{wrong}"]
    except Exception as error:  # whatever somebody else's code does
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename}:{where.lineno}"
        return [f"{who} raised {type(error).__name__}: {error} ({place}, in {where.name})"]
    return []


def _shown(answer: object) -> str:
    text = repr(answer)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _expect(fact: bool, method: str, answer: object, expected: str) -> None:
    if not fact:
        raise _Wrong(f".{method} answered {_shown(answer)}, expected {expected}")


def _listed(method: str, answer: object, expected: str) -> list[Any]:
    """The items of an answer that may be a generator."""
    _expect(isinstance(answer, Iterable) and not isinstance(answer, str), method, answer, expected)
    return list(cast(Iterable[Any], answer))


# --- a question for each kind -----------------------------------------------------------------


def _order(plugin: Any, size: int, max_tokens: int) -> None:
    view = testing.plan_view(2, 8, outstanding=frozenset({3}), tags=("",) * 8)
    plan = plugin.plan(view)
    _expect(isinstance(plan, Plan), "plan", plan, "a Plan")
    prompts = plan.prompts
    whole = all(type(prompt) is int for prompt in prompts)
    _expect(whole, "plan", plan, "numbers of prompts, whole ones")
    fits = set(prompts) <= set(range(8)) - {3} and len(set(prompts)) == len(prompts) <= 2
    rule = "at most two of the prompts 0 to 7, each once, and not 3, which is outstanding"
    _expect(fits, "plan", plan, rule)


def _budget(plugin: Any, size: int, max_tokens: int) -> None:
    view = testing.budget_view(size, max_tokens=max_tokens, need=2)
    prompts = [PromptView(prompt=0, tokens=5), PromptView(prompt=1, tokens=9)]
    given = plugin.allocate(prompts, view)
    allocations = _listed("allocate", given, "an Allocation for each of two prompts")
    right = len(allocations) == 2 and all(isinstance(one, Allocation) for one in allocations)
    _expect(right, "allocate", given, "an Allocation for each of two prompts")
    enough = all(one.candidates >= 1 and one.max_tokens >= 1 for one in allocations)
    _expect(enough, "allocate", given, "at least one candidate of at least one token")
    counts: dict[str, Any] = {"size": size, "sampled": size, "finished": 1, "unended": size - 1}
    group = testing.open_view(0, rewards=(1.0,), **counts)
    more = plugin.top_up([group], 1)
    rule = "pairs (group, how many more), for one open group and one idle slot"
    pairs = _listed("top_up", more, rule)
    for pair in pairs:
        two = isinstance(pair, Sequence) and len(pair) == 2
        _expect(two and pair[0] == 0 and pair[1] >= 1, "top_up", more, rule)


def _groups(size: int, max_tokens: int) -> Iterator[tuple[GroupView, SelectorEvent]]:
    """Moments in the life of a group: underway, all ended, some failed, all cut."""
    tokens = min(10, max_tokens)
    done = dict.fromkeys(range(size), tokens)
    rewards = {member: float(member % 2) for member in done}
    some = {0: tokens}
    rest = dict.fromkeys(range(1, size), 1)
    of: dict[str, Any] = {"size": size, "max_tokens": max_tokens}
    yield testing.group_of(finished=some, running=rest, **of), Finish(trajectory=0)
    yield testing.group_of(finished=some, running=rest, **of), WeightsPublished()
    last = Rewarded(trajectory=size - 1)
    yield testing.group_of(finished=done, rewards=rewards, **of), last
    yield testing.group_of(finished=done, rewards=rewards, **of), Barrier()
    rewards.pop(0)
    yield testing.group_of(finished=done, rewards=rewards, failed=[0], **of), Barrier()
    cut = dict.fromkeys(range(size), max_tokens)
    yield testing.group_of(truncated=cut, rewards=dict.fromkeys(cut, 0.0), **of), Barrier()


def _selector(plugin: Any, size: int, max_tokens: int) -> None:
    wants = getattr(plugin, "wants", None)
    rule = "a Wants(...): the events that it is asked on"
    if not isinstance(wants, Wants):
        raise _Wrong(f".wants is {_shown(wants)}, expected {rule}")
    for group, event in _groups(size, max_tokens):
        given = plugin.decide(group, event)
        method = f"decide(group, {type(event).__name__})"
        actions = _listed(method, given, "actions, none or several")
        known = all(isinstance(action, Action) for action in actions)
        _expect(known, method, actions, "actions of darts.plugins")
        if refused := testing.illegal(group, actions):
            raise _Wrong(f".{method}: {refused[0]}")


def _batch(plugin: Any, size: int, max_tokens: int) -> None:
    known: dict[str, Any] = {"rewards": (1.0, 0.0), "lengths": (9, 7)}
    underway, ready, taken = (
        [testing.facts_of(group, state, **known) for group in (4, 5)]
        for state in ("open", "ready", "taken")
    )
    for view in (
        testing.batch_view(*underway, need=2, size=size, group_size=size),
        testing.batch_view(*ready, need=2, size=size, group_size=size),
        testing.batch_view(*taken, need=2, size=size, group_size=size, closing=True),
    ):
        given = plugin.decide(view)
        actions = _listed("decide", given, "actions of a batch rule, none or several")
        fine = all(isinstance(action, get_args(BatchAction)) for action in actions)
        _expect(fine, "decide", actions, "Take, Leave, Replay, Relax or Close")


def _advantage(plugin: Any, size: int, max_tokens: int) -> None:
    tokens = min(10, max_tokens)
    for rewards in ([float(n % 2) for n in range(size)], [1.0] * size):
        members = testing.outcomes_of(rewards, tokens=[tokens] * size, max_tokens=max_tokens)
        answer = plugin.advantages(members)
        _expect(
            isinstance(answer, Advantages | NoSignal), "advantages", answer,
            "Advantages, or NoSignal",
        )  # fmt: skip
        if isinstance(answer, Advantages):
            right = len(answer.values) == len(answer.weights) == size
            _expect(right, "advantages", answer, f"a value and a weight for each of {size} members")


_ASKS: dict[str, Callable[[Any, int, int], None]] = {
    "prompt_order": _order,
    "budget": _budget,
    "selector": _selector,
    "batch": _batch,
    "advantage": _advantage,
}
