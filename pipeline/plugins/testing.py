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
from pipeline.plugins.views import GroupView, MemberView, Outcome, Sampled

__all__ = ["Recent", "group_of", "illegal", "outcomes_of", "sample_of"]


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
    rewards: Mapping[int, float] | None = None,
    failed: Collection[int] = (),
    confidence: Mapping[int, float] | None = None,
    statistics: Recent | None = None,
    max_tokens: int = 1024,
    now: float = 0.0,
    seed: int = 0,
    budget: int | None = None,
) -> GroupView:
    """A group in the middle of its life.

    Args:
        size: M.
        finished, truncated, running, queued, parked: member id -> tokens held; ended
            members arrived in the order written, finished ones before truncated ones.
        rewards: member id -> reward, where it is known.
        failed: ids of members whose reward failed.
        confidence: member id -> nats per token; others are at -0.5.
        statistics: figures across groups; empty ones (no quantile yet) if not given.
        budget: M'; as many as there are members if not given.
    """
    members: list[MemberView] = []
    for state, given in (
        ("finished", finished),
        ("truncated", truncated),
        ("running", running),
        ("queued", queued),
        ("parked", parked),
    ):
        for id_, tokens in (given or {}).items():
            members.append(
                MemberView(
                    id=id_,
                    state=state,
                    tokens=tokens,
                    confidence=(confidence or {}).get(id_, -0.5) if tokens else 0.0,
                    reward=(rewards or {}).get(id_),
                    reward_failed=id_ in failed,
                    hit_limit=state == "truncated" and tokens >= max_tokens,
                )
            )
    ids = [member.id for member in members]
    if len(set(ids)) < len(ids):
        raise ValueError(f"a member is given in two states: {sorted(ids)}")
    return GroupView(
        id=1,
        prompt=1,
        size=size,
        budget=len(members) if budget is None else budget,
        step=1,
        now=now,
        members=tuple(members),
        statistics=statistics or Recent(),
        seed=seed,
        max_tokens=max_tokens,
    )


def outcomes_of(
    rewards: Sequence[float],
    *,
    tokens: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    max_tokens: int = 1024,
) -> list[Outcome]:
    """Chosen members for an advantage: by default 10 tokens and weight 1 each."""
    return [
        Outcome(
            reward=reward,
            tokens=tokens[index] if tokens else 10,
            truncated=bool(tokens) and (tokens or ())[index] >= max_tokens,
            weight=weights[index] if weights else 1.0,
            max_tokens=max_tokens,
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
