"""Builders of views, for the tests of plug-ins: a group in one line.

Turns plain dicts of id -> tokens into the views that the core would show, in the
order of arrival in which they are written. Used by darts' own tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from pipeline.plugins.interfaces import Options
from pipeline.plugins.legality import refusals, table_of
from pipeline.plugins.ranges import broken
from pipeline.plugins.views import (
    BatchView,
    BudgetView,
    EndedView,
    GroupFacts,
    GroupOutcome,
    GroupView,
    KeptView,
    MemberView,
    OpenView,
    Outcome,
    PlanView,
    Sampled,
)

__all__ = [
    "Constant",
    "Recent",
    "batch_view",
    "budget_view",
    "ended_view",
    "facts_of",
    "group_of",
    "illegal",
    "kept_view",
    "open_view",
    "option_problems",
    "outcomes_of",
    "plan_view",
    "sample_of",
    "step_of",
]


def option_problems(options: type[Options], group_size: int = 8, **given: Any) -> list[str]:
    """Complaints about these options, as a configuration that is loaded has them: of each that is
    out of its range, or else those of `problems`."""
    types = {field.name: field.type for field in msgspec.structs.fields(options)}
    rules = {name: broken(value, types[name]) for name, value in given.items()}
    found = [f"{name}: found {given[name]!r}, {rule}" for name, rule in rules.items() if rule]
    return found or list(msgspec.convert(given, options).problems(group_size))


class Recent(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of a run so far, given as plain lists."""

    confidences: Sequence[float] = ()
    lengths: Sequence[float] = ()
    rewards: Sequence[float] = ()

    def confidence_quantile(self, q: float, at_least: int = 64) -> float | None:
        return _quantile(self.confidences, q, at_least)

    def length_quantile(self, q: float, at_least: int = 64) -> float | None:
        return _quantile(self.lengths, q, at_least)

    def pass_rate(self) -> float | None:
        return float(np.mean(self.rewards)) if self.rewards else None


def _quantile(values: Sequence[float], q: float, at_least: int) -> float | None:
    if len(values) < max(1, at_least):
        return None
    return float(np.quantile(np.asarray(values), q))


def group_of(
    *,
    size: int,
    finished: Mapping[int, int] | None = None,
    truncated: Mapping[int, int] | None = None,
    running: Mapping[int, int] | None = None,
    queued: Mapping[int, int] | None = None,
    parked: Mapping[int, int] | None = None,
    waiting_env: Mapping[int, int] | None = None,
    rewards: Mapping[int, float] | None = None,
    failed: Collection[int] = (),
    parts: Mapping[int, Mapping[str, float]] | None = None,
    confidence: Mapping[int, float] | None = None,
    entropy: Mapping[int, float] | None = None,
    score: Mapping[int, float] | None = None,
    remaining: Mapping[int, float] | None = None,
    marked: Mapping[int, int] | None = None,
    versions: Mapping[int, tuple[int, ...]] | None = None,
    variants: Mapping[int, str] | None = None,
    forks: Mapping[int, int] | None = None,
    included: Mapping[int, str] | None = None,
    foreign: tuple[str, ...] = (),
    statistics: Recent | None = None,
    max_tokens: int = 1024,
    now: float = 0.0,
    seed: int = 0,
    budget: int | None = None,
    group: int = 1,
    prompt: int = 1,
    tag: str = "",
    note: str = "",
    attempt: int = 0,
    step: int = 1,
    opened: int | None = None,
    version: int = -1,
    max_staleness: int = 0,
    due: bool = False,
    held: bool = False,
) -> GroupView:
    """A group in the middle of its life.

    Args:
        size: M.
        finished, truncated, running, queued, parked, waiting_env: member id -> tokens held; ended
            members arrived in the order written, finished ones before truncated ones.
        rewards, parts: member id -> reward and its parts, where they are known.
        failed: ids of members whose reward failed.
        confidence: member id -> nats per token; others are at -0.5.
        entropy, score, remaining, marked, versions, variants, forks: member id -> what the fields
            of `MemberView` say; the others have none.
        included: member id -> its source, of those that are foreign.
        statistics: figures across groups; empty ones (no quantile yet) if not given.
        budget: M'; as many as there are sampled members if not given.
        group: its id.
        opened: step in which it was opened; the open one if not given.
        tag, note, attempt, step, version, max_staleness, due, held, foreign: as in `GroupView`.
    """
    members: list[MemberView] = []
    for state, given in (
        ("finished", finished),
        ("truncated", truncated),
        ("running", running),
        ("queued", queued),
        ("parked", parked),
        ("waiting_env", waiting_env),
    ):
        for id_, tokens in (given or {}).items():
            members.append(
                MemberView(
                    id=id_,
                    state=state,
                    tokens=tokens,
                    confidence=(confidence or {}).get(id_, -0.5) if tokens else 0.0,
                    entropy=(entropy or {}).get(id_),
                    reward=(rewards or {}).get(id_),
                    reward_failed=id_ in failed,
                    parts=(parts or {}).get(id_, {}),
                    versions=(versions or {}).get(id_, ()),
                    hit_limit=state == "truncated" and tokens >= max_tokens,
                    variant=(variants or {}).get(id_, ""),
                    fork=(forks or {}).get(id_, -1),
                    foreign=(included or {}).get(id_, ""),
                    score=(score or {}).get(id_),
                    remaining=(remaining or {}).get(id_),
                    marked=(marked or {}).get(id_),
                )
            )
    ids = [member.id for member in members]
    if len(set(ids)) < len(ids):
        raise ValueError(f"a member is given in two states: {sorted(ids)}")
    return GroupView(
        id=group,
        prompt=prompt,
        size=size,
        budget=len(members) - len(included or {}) if budget is None else budget,
        step=step,
        now=now,
        members=tuple(members),
        statistics=statistics or Recent(),
        seed=seed,
        max_tokens=max_tokens,
        version=version,
        max_staleness=max_staleness,
        due=due,
        opened=step if opened is None else opened,
        attempt=attempt,
        tag=tag,
        note=note,
        held=held,
        foreign=foreign,
    )


def outcomes_of(
    rewards: Sequence[float],
    *,
    tokens: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    confidence: Sequence[float] | None = None,
    variants: Sequence[str] | None = None,
    max_tokens: int = 1024,
) -> list[Outcome]:
    """Chosen members for an advantage, ids from 0: by default 10 tokens and weight 1 each."""
    return [
        Outcome(
            reward=reward,
            tokens=tokens[index] if tokens else 10,
            truncated=bool(tokens) and (tokens or ())[index] >= max_tokens,
            weight=weights[index] if weights else 1.0,
            max_tokens=max_tokens,
            id=index,
            confidence=confidence[index] if confidence else 0.0,
            variant=variants[index] if variants else "",
        )
        for index, reward in enumerate(rewards)
    ]


def sample_of(
    response: str,
    *,
    answer: str = "",
    prompt: str = "",
    finish: str = "stop",
    columns: Mapping[str, object] | None = None,
) -> Sampled:
    """An ended trajectory for a reward; a token a character."""
    return Sampled(
        prompt=prompt,
        response=response,
        finish=finish,
        tokens=len(response),
        answer=answer,
        columns=columns or {},
    )


def illegal(group: GroupView, actions: Iterable[object]) -> list[str]:
    """Lists why the core would refuse these actions, as it does itself; empty: it would not."""
    return refusals(table_of(group), actions)


# --- views of the other kinds ----------------------------------------------------------------
# Each takes what matters to the test; `given` are further fields of the view, by name.


def plan_view(want: int, dataset: int, **given: Any) -> PlanView:
    """A question to a prompt order: the first of step 1, nothing open, nothing deferred."""
    usual: dict[str, Any] = {
        "step": 1,
        "need": want,
        "first": True,
        "outstanding": frozenset(),
        "deferred": (),
    }
    return PlanView(want=want, dataset=dataset, **(usual | given))


def ended_view(
    prompt: int, rewards: Sequence[float] = (), *, lengths: Sequence[int] = (), **given: Any
) -> EndedView:
    """A group that has ended: trained on, of a prompt of 9 tokens, all its candidates finished."""
    lengths = tuple(lengths) or (10,) * len(rewards)
    usual: dict[str, Any] = {"tokens": 9, "tag": "", "censored": (False,) * len(lengths)}
    usual["scored"] = lengths[: len(rewards)]
    return EndedView(prompt=prompt, rewards=tuple(rewards), lengths=lengths, **(usual | given))


def facts_of(group: int, state: str = "ready", *, opened: int = 1, **given: Any) -> GroupFacts:
    """A live group for `batch_view`, of a prompt with its number."""
    usual: dict[str, Any] = {"prompt": group, "tag": "", "version": 0, "rewards": (), "lengths": ()}
    return GroupFacts(id=group, state=state, opened=opened, **(usual | given))


def kept_view(group: int, prompt: int, reward: float, **given: Any) -> KeptView:
    """A group for `batch_view(kept=...)`, trained on once in step 0."""
    usual: dict[str, Any] = {"tag": "", "version": 0, "step": 0, "replays": 0}
    return KeptView(group=group, prompt=prompt, reward=reward, **(usual | given))


def batch_view(*groups: GroupFacts, need: int = 4, **given: Any) -> BatchView:
    """An open step for a batch rule, its counts and ready ids by the states of its live groups."""
    live = {facts.id: facts for facts in sorted(groups, key=lambda facts: facts.id)}
    states = [facts.state for facts in groups]
    usual: dict[str, Any] = {
        "step": 1,
        "taken": sum(state in ("taken", "sent", "accumulated") for state in states),
        "ready": tuple(facts.id for facts in groups if facts.state == "ready"),
        "chosen": states.count("chosen"),
        "enough": states.count("enough"),
        "open": states.count("open"),
        "held": sum(facts.held for facts in groups),
        "size": 8,
        "group_size": 8,
        "closing": False,
        "facts": live.__getitem__,
        "groups": lambda: tuple(live),
    }
    return BatchView(need=need, **(usual | given))


class Constant(msgspec.Struct, frozen=True):
    """Costs that do not grow with what runs."""

    per_token: float = 0.01

    def seconds(self, running: float) -> float:
        return self.per_token


def budget_view(size: int = 8, **given: Any) -> BudgetView:
    """The step for a budget: four groups of at most 128 tokens, one engine with 64 slots."""
    usual: dict[str, Any] = {
        "step": 0,
        "max_tokens": 128,
        "need": 4,
        "engines": 1,
        "slots": 64,
        "latency": Constant(),
    }
    return BudgetView(size=size, **(usual | given))


def open_view(group: int, *, sampled: int = 8, **given: Any) -> OpenView:
    """An open group for top-up, of which nothing has ended."""
    usual: dict[str, Any] = {
        "size": 8,
        "sampled": sampled,
        "finished": 0,
        "unended": sampled,
        "enough": False,
        "prompt": group,
    }
    return OpenView(id=group, **(usual | given))


def step_of(*groups: Sequence[Outcome]) -> tuple[GroupOutcome, ...]:
    """All groups of a step, numbered from 0, for an advantage's `of_step`."""
    return tuple(
        GroupOutcome(group=number, prompt=number, tag="", members=tuple(members))
        for number, members in enumerate(groups)
    )
