"""Decides which prompts are opened, with how many candidates: asks the prompt order and the budget.

Turns "the step wants n more groups" into open groups, and idle slots into more
candidates of open ones. Knows nothing of taking, training or closing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pipeline.coordinator.candidates import allocation_refusal
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import OPEN_STATES, UNENDED, Group, TrajectoryState
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState, PluginFault, plugin_guard
from pipeline.plugins.actions import Allocation, Plan
from pipeline.plugins.views import (
    BudgetView,
    OpenView,
    PlanView,
    PredictedLengths,
    PromptView,
    all_of_them,
)

_FEW = 32
"""Open groups up to which top-up is asked for at every change."""


class PromptPlanner:
    def __init__(
        self, core: CoordinatorState, scheduler: Scheduler, group_manager: GroupManager
    ) -> None:
        self._core, self._scheduler, self._group_manager = core, scheduler, group_manager
        self._topped: tuple[int, int, int] | None = None  # what was known at the last top-up
        self._seen: tuple[int, int, int] | None = None  # what was known when it was last due
        self._changes = 0  # of that, since the last top-up
        self._groups = 0  # opened in this run until then
        self._ticked = False
        self._first_step: int | None = None  # that this process has planned

    def open(self, want: int, size: int, *, first: bool, speculate: bool) -> tuple[int, bool]:
        """Open up to `want` groups of `size`.

        Args:
            first: these are the step's first prompts.
            speculate: False in a long round: M candidates each, whatever the budget says.

        Returns: how many were opened, and whether the step may speculate.
        """
        core, group_manager = self._core, self._group_manager
        deferred = group_manager.deferred
        with plugin_guard(core.plugins.prompt_order, "prompt_order"):
            plan = core.plugins.prompt_order.plan(
                PlanView(
                    step=core.step,
                    want=want,
                    need=core.settings.need,
                    first=first,
                    dataset=core.settings.prompts,
                    sources=core.settings.sources,
                    outstanding=group_manager.outstanding.keys(),
                    deferred=tuple(prompt for prompt, _ in deferred),
                    version=core.version,
                    tags=core.tags,
                )
            )
        check_plan(core, plan, want, group_manager.outstanding)
        if plan.why:
            core.report("plan", prompts=list(plan.prompts), why=plan.why)
        speculate = plan.speculate if first else speculate
        if not plan.prompts:
            return 0, speculate
        attempts = dict(deferred)
        chosen = set(plan.prompts)
        group_manager.issued += sum(1 for p in plan.prompts if p not in attempts)
        group_manager.deferred = type(deferred)(d for d in deferred if d[0] not in chosen)
        for prompt, allocation in zip(
            plan.prompts, self._allocations(plan.prompts, size, speculate), strict=True
        ):
            group_manager.open(
                "train",
                prompt,
                attempts.get(prompt, 0),
                allocation.candidates,
                min(allocation.max_tokens, core.settings.max_tokens),
                size,
                variants=allocation.variants,
                note=allocation.note,
            )
        return len(plan.prompts), speculate

    def _allocations(
        self, prompts: tuple[int, ...], size: int, speculate: bool
    ) -> list[Allocation]:
        core = self._core
        if not speculate:
            return [Allocation(candidates=size, max_tokens=core.settings.max_tokens)] * len(prompts)
        engines, slots = self._expected_engines()
        view = BudgetView(
            step=core.step,
            size=size,
            max_tokens=core.settings.max_tokens,
            need=core.settings.need,
            engines=engines,
            slots=slots,
            latency=core.latency,
            waits_for=self._waits_for(size),
        )
        views = [
            PromptView(prompt=p, tokens=core.prompt_tokens[p], tag=core.tag(p)) for p in prompts
        ]
        budget = core.plugins.budget
        with plugin_guard(budget, "budget"):
            allocations = list(budget.allocate(views, view))
            check_allocations(core, allocations, len(views))
            metrics = getattr(budget, "metrics", dict[str, float])()
        counts: dict[str, int] = {}
        for allocation in allocations:
            counts[str(allocation.candidates)] = counts.get(str(allocation.candidates), 0) + 1
        notes = [[p, a.candidates, a.note] for p, a in zip(prompts, allocations, strict=True)]
        core.report("budget", candidates=counts, prompts=notes, **metrics)
        core.stats.add_plan(metrics)
        return allocations

    def _waits_for(self, size: int) -> Callable[[int], int]:
        """Candidates -> how many of them a group of `size` waits for, as its selector says."""
        selector = self._core.plugins.selector
        rule: Callable[[int, int], int] | None = getattr(selector, "waits_for", None)
        if rule is None:
            return all_of_them

        def waits_for(candidates: int) -> int:
            with plugin_guard(selector, "selector"):
                return max(1, min(candidates, int(rule(candidates, size))))

        return waits_for

    def _expected_engines(self) -> tuple[int, int]:
        """Return how many engines will generate the step, and the slots of all of them.

        Not those that serve: a step is planned when a version is published, and then every
        engine has yet to load it. In the first step of a process some have yet to join.
        """
        joined, slots = len(self._scheduler.engines), self._scheduler.slot_usage.slots
        if self._first_step is None:
            self._first_step = self._core.step
        if self._core.step == self._first_step and 0 < joined < self._core.settings.engines:
            engines = self._core.settings.engines
            return engines, round(slots * engines / joined)
        return max(1, joined), slots

    def tick(self) -> None:
        """Top-up is to be asked for as soon as anything has changed since the last time."""
        self._ticked = True

    def after_rewards(self) -> None:
        """Ask a budget that wants to hear of rewards, if any has come."""
        if self._core.rewards_moved and getattr(self._core.plugins.budget, "on_rewards", False):
            self.top_up()

    def top_up(self) -> None:
        """Give idle slots below the knee to new candidates of open groups.

        The budget looks at every open group, so of many groups it is asked the less often:
        with more than 32 open, only after open // 32 changes (of idle slots, candidates or
        ended members) since it was last asked, or once after a tick, or when one was opened.
        """
        core = self._core
        idle = 0 if self._scheduler.waiting() else self._scheduler.idle_below_knee()
        known = (idle, core.next_trajectory, len(core.stats.lengths))
        on_rewards = bool(getattr(core.plugins.budget, "on_rewards", False))
        more = core.rewards_moved and on_rewards
        core.rewards_moved = False
        if not more and (not idle or known == self._topped):
            return  # asked already, and nothing has changed since
        if known != self._seen:
            self._seen, self._changes = known, self._changes + 1
        count = sum(core.group_index.counts[state] for state in OPEN_STATES)
        at_once = more or count <= _FEW or self._ticked or core.next_group != self._groups
        if not at_once and self._changes < count // _FEW:
            return
        self._topped, self._changes = known, 0
        self._groups, self._ticked = core.next_group, False
        groups = core.train_groups(*OPEN_STATES)
        with plugin_guard(core.plugins.budget, "budget"):
            given = core.plugins.budget.top_up([self._view(group) for group in groups], idle)
            check_top_up(core, given, idle, free=on_rewards)
        for group, count in given:
            if core.groups[group].held:
                core.hold(core.groups[group], False)
                core.needs_update = True  # there is room to hold another
            self._group_manager.add_members(core.groups[group], count)
            core.stats.topped_up += count
            core.report(
                "decision",
                group=group,
                prompt=core.groups[group].prompt,
                action="Sample",
                ids=[],
                why=f"top-up: {count} {'after rewards' if more else 'for idle slots'}",
            )

    def _view(self, group: Group) -> OpenView:
        candidates, finished, unended = group.candidates, 0, 0
        for member in candidates:
            if member.state is TrajectoryState.FINISHED:
                finished += 1
            elif member.state in UNENDED:
                unended += 1
        return OpenView(
            id=group.id,
            size=group.size,
            sampled=group.sampled,
            finished=finished,
            unended=unended,
            enough=group.enough,
            prompt=group.prompt,
            tag=self._core.tag(group.prompt),
            opened=group.step,
            rewards=tuple(m.reward for m in candidates if m.reward is not None),
            held=group.held,
            note=group.note,
            predicted=lambda: self._predicted(group),
        )

    def _predicted(self, group: Group) -> PredictedLengths:
        forecast = self._core.forecast
        unended = [m for m in group.members if m.state in UNENDED]
        return PredictedLengths(
            unended=tuple(sorted(forecast.expected(m, group.prompt) for m in unended)),
            fresh=forecast.fresh(group.prompt),
        )


def check_plan(core: CoordinatorState, plan: Plan, want: int, outstanding: Collection[int]) -> None:
    """Raises PluginFault unless every prompt exists, is named once, and is not open."""
    prompts = plan.prompts
    if (
        len(prompts) > want
        or len(set(prompts)) != len(prompts)
        or any(p in outstanding or not 0 <= p < core.settings.prompts for p in prompts)
    ):
        name = type(core.plugins.prompt_order).__name__
        raise PluginFault(f"prompts {name}: plan {prompts}: at most {want}, each once, none open")


def check_allocations(
    core: CoordinatorState, allocations: Sequence[Allocation], prompts: int
) -> None:
    """Raises PluginFault unless each prompt has one, with candidates and tokens."""
    most = core.settings.most_candidates
    if len(allocations) != prompts or any(
        not 1 <= a.candidates <= most or a.max_tokens < 1 for a in allocations
    ):
        name = type(core.plugins.budget).__name__
        raise PluginFault(
            f"budget {name}: {allocations}: one for each of {prompts} prompts, 1 to {most} "
            "candidates, max_tokens at least 1"
        )
    for allocation in allocations:
        if why := allocation_refusal(core, allocation):
            raise PluginFault(f"budget {type(core.plugins.budget).__name__}: {why}")


def check_top_up(
    core: CoordinatorState, given: Sequence[tuple[int, int]], idle: int, *, free: bool = False
) -> None:
    """Raises PluginFault unless it names open groups, once each, and no more than is idle.

    Args:
        free: any number for each group, as far as a group may have so many.
    """
    groups = [core.groups.get(group) for group, _ in given]
    most = core.settings.most_candidates
    if (
        any(g is None or g.kind != "train" or not g.is_open for g in groups)
        or len({group for group, _ in given}) != len(given)
        or any(count < 1 for _, count in given)
        or any(g.sampled + n > most for g, (_, n) in zip(groups, given, strict=True) if g)
        or (not free and sum(count for _, count in given) > idle)
    ):
        name = type(core.plugins.budget).__name__
        room = f"{most} candidates a group" if free else f"{idle} candidates in all"
        raise PluginFault(f"budget {name}: top-up {given}: open groups, {room}")
