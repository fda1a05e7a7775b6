"""Builders of the views that are of a step and not of a group: for orders, budgets, batch rules.

Every view is one that the core could show; what is not given is that of a quiet moment. Used
through `pipeline.plugins.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from pipeline.plugins.views import (
    BatchView,
    BudgetView,
    Costs,
    EndedView,
    GroupFacts,
    GroupOutcome,
    KeptView,
    OpenView,
    Outcome,
    PlanView,
    PromptView,
    SourceView,
    all_of_them,
)


class Steady(msgspec.Struct, frozen=True):
    """Costs of an engine: `base` seconds a token, and `each` more for every sequence that runs."""

    base: float = 0.01
    each: float = 0.0

    def seconds(self, running: float) -> float:
        return self.base + self.each * running


def plan_of(
    want: int,
    *,
    dataset: int = 64,
    outstanding: Iterable[int] = (),
    deferred: Sequence[int] = (),
    step: int = 0,
    need: int = 4,
    first: bool = False,
    sources: Sequence[SourceView] = (),
    version: int = 0,
    tags: Sequence[str] = (),
) -> PlanView:
    """The question for up to `want` prompts, for a prompt order."""
    return PlanView(
        step=step,
        want=want,
        need=need,
        first=first,
        dataset=dataset,
        sources=tuple(sources),
        outstanding=frozenset(outstanding),
        deferred=tuple(deferred),
        version=version,
        tags=tags,
    )


def prompts_of(tokens: Mapping[int, int], tags: Mapping[int, str] | None = None) -> list[PromptView]:
    """Prompts for a budget: number -> tokens of the prompt, and number -> kind."""
    return [
        PromptView(prompt=prompt, tokens=count, tag=(tags or {}).get(prompt, ""))
        for prompt, count in tokens.items()
    ]


def budget_of(
    size: int,
    *,
    max_tokens: int = 1024,
    step: int = 0,
    need: int = 4,
    engines: int = 1,
    slots: int = 64,
    latency: Costs | None = None,
    waits_for: Callable[[int], int] = all_of_them,
) -> BudgetView:
    """A step and its engines, for a budget's `allocate`; `size` is M."""
    return BudgetView(
        step=step,
        size=size,
        max_tokens=max_tokens,
        need=need,
        engines=engines,
        slots=slots,
        latency=latency or Steady(),
        waits_for=waits_for,
    )


def open_of(
    id: int,  # noqa: A002  as the view calls it
    *,
    size: int,
    rewards: Sequence[float] = (),
    sampled: int | None = None,
    finished: int | None = None,
    unended: int = 0,
    enough: bool = False,
    prompt: int = -1,
    tag: str = "",
    opened: int = 0,
    held: bool = False,
    note: str = "",
) -> OpenView:
    """An open group, for a budget's `top_up`: as many have finished as there are rewards, and
    sampled are those and the unended ones, if nothing else is said."""
    finished = len(rewards) if finished is None else finished
    return OpenView(
        id=id,
        size=size,
        sampled=finished + unended if sampled is None else sampled,
        finished=finished,
        unended=unended,
        enough=enough,
        prompt=id if prompt < 0 else prompt,
        tag=tag,
        opened=opened,
        rewards=tuple(rewards),
        held=held,
        note=note,
    )


def facts_of(
    id: int,  # noqa: A002  as the view calls it
    *,
    rewards: Sequence[float] = (),
    lengths: Sequence[int] = (),
    state: str = "ready",
    prompt: int = -1,
    tag: str = "",
    opened: int = 0,
    version: int = 0,
    held: bool = False,
) -> GroupFacts:
    """What a batch rule may ask about one group, for `batch_of`."""
    return GroupFacts(
        id=id,
        prompt=id if prompt < 0 else prompt,
        tag=tag,
        state=state,
        opened=opened,
        version=version,
        rewards=tuple(rewards),
        lengths=tuple(lengths) or (10,) * len(rewards),
        held=held,
    )


def batch_of(
    need: int,
    *,
    ready: Sequence[int] = (),
    facts: Iterable[GroupFacts] = (),
    taken: int = 0,
    chosen: int = 0,
    enough: int = 0,
    open: int = 0,  # noqa: A002  as the view calls it
    held: int = 0,
    asleep: int = 0,
    size: int = 8,
    step: int = 0,
    closing: bool = False,
    ahead: int = 0,
    due: Sequence[int] = (),
    version: int = 0,
    exhausted: bool = False,
    kept: Sequence[KeptView] = (),
) -> BatchView:
    """An open step that needs so many groups, for a batch rule.

    Args:
        ready: groups that may be taken; those of `facts` that are ready, if not given.
        facts: of groups that the rule may ask about.
    """
    known = {one.id: one for one in facts}
    ready = tuple(ready) or tuple(one.id for one in known.values() if one.state == "ready")
    for group in ready:
        known.setdefault(group, facts_of(group, rewards=(1.0, 0.0)))
    return BatchView(
        step=step,
        need=need,
        taken=taken,
        ready=ready,
        chosen=chosen,
        enough=enough,
        open=open,
        size=size,
        group_size=size,
        closing=closing,
        ahead=ahead,
        due=tuple(due),
        held=held,
        asleep=asleep,
        version=version,
        exhausted=exhausted,
        kept=tuple(kept),
        facts=known.__getitem__,
        groups=lambda: tuple(known),
    )


def ended_of(
    rewards: Sequence[float],
    *,
    lengths: Sequence[int] | None = None,
    censored: Sequence[bool] | None = None,
    fate: str = "trained",
    prompt: int = 1,
    group: int = 1,
    tag: str = "",
    why: str = "",
    kind: str = "",
    step: int = 0,
    opened: int = 0,
    variants: Sequence[str] | None = None,
) -> EndedView:
    """A group that has ended, for the method `ended` of any plug-in that has it."""
    lengths = tuple(lengths) if lengths is not None else (10,) * len(rewards)
    return EndedView(
        prompt=prompt,
        tokens=10,
        tag=tag,
        lengths=lengths,
        censored=tuple(censored) if censored is not None else (False,) * len(lengths),
        group=group,
        fate=fate,
        why=why,
        kind=kind,
        step=step,
        opened=opened,
        rewards=tuple(rewards),
        variants=tuple(variants) if variants is not None else ("",) * len(rewards),
    )


def step_of(groups: Mapping[int, Sequence[Outcome]]) -> list[GroupOutcome]:
    """All groups of a step, for an advantage's `of_step`: number -> its chosen members."""
    return [
        GroupOutcome(group=number, prompt=number, tag="", members=tuple(members))
        for number, members in groups.items()
    ]
