"""Which prompts are opened, with how many candidates: asks the prompts and the budget seam.

Turns "the step wants n more groups" into open groups, and idle slots into more
candidates of open ones. Knows nothing of taking, training or closing.
"""

from __future__ import annotations

from pipeline.answers import check_allotments, check_plan, check_top_up
from pipeline.core import Core, asking
from pipeline.groups import UNENDED, Group, Stage, State
from pipeline.placement import Placement
from pipeline.roster import Roster
from pipeline.verbs import Allotment
from pipeline.views import BudgetView, OpenView, PlanView, PromptView


class Planning:
    def __init__(self, core: Core, placement: Placement, roster: Roster) -> None:
        self._core, self._placement, self._roster = core, placement, roster
        self._topped: tuple[int, int, int] | None = None  # what was known at the last top-up

    def open(self, want: int, size: int, *, first: bool, speculate: bool) -> tuple[int, bool]:
        """Open up to `want` groups of `size`.

        Args:
            first: these are the step's first prompts.
            speculate: False in a long round: M candidates each, whatever the budget says.

        Returns: how many were opened, and whether the step may speculate.
        """
        core, roster = self._core, self._roster
        deferred = roster.deferred
        with asking(core.seams.prompts, "prompts"):
            plan = core.seams.prompts.plan(
                PlanView(
                    step=core.step,
                    want=want,
                    need=core.settings.need,
                    first=first,
                    dataset=core.settings.prompts,
                    outstanding=frozenset(roster.outstanding),
                    deferred=tuple(prompt for prompt, _ in deferred),
                )
            )
        check_plan(core, plan, want, roster.outstanding)
        speculate = plan.speculate if first else speculate
        if not plan.prompts:
            return 0, speculate
        attempts = dict(deferred)
        chosen = set(plan.prompts)
        roster.issued += sum(1 for p in plan.prompts if p not in attempts)
        roster.deferred = type(deferred)(d for d in deferred if d[0] not in chosen)
        for prompt, allotment in zip(
            plan.prompts, self._allotments(plan.prompts, size, speculate), strict=True
        ):
            roster.open(
                "train",
                prompt,
                attempts.get(prompt, 0),
                allotment.candidates,
                min(allotment.max_tokens, core.settings.max_tokens),
                size,
            )
        return len(plan.prompts), speculate

    def _allotments(self, prompts: tuple[int, ...], size: int, speculate: bool) -> list[Allotment]:
        core = self._core
        if not speculate:
            return [Allotment(candidates=size, max_tokens=core.settings.max_tokens)] * len(prompts)
        serving = self._placement.serving()
        view = BudgetView(
            step=core.step,
            size=size,
            max_tokens=core.settings.max_tokens,
            need=core.settings.need,
            engines=max(1, len(serving)),
            slots=sum(engine.slots for engine in serving),
            latency=core.latency,
        )
        views = [
            PromptView(prompt=p, tokens=core.prompt_tokens[p], tag=core.tag(p)) for p in prompts
        ]
        budget = core.seams.budget
        with asking(budget, "budget"):
            allotments = list(budget.allot(views, view))
            check_allotments(core, allotments, len(views))
            figures = getattr(budget, "figures", dict[str, float])()
        counts: dict[str, int] = {}
        for allotment in allotments:
            counts[str(allotment.candidates)] = counts.get(str(allotment.candidates), 0) + 1
        notes = [[p, a.candidates, a.note] for p, a in zip(prompts, allotments, strict=True)]
        core.report("budget", candidates=counts, prompts=notes, **figures)
        return allotments

    def top_up(self) -> None:
        """Give idle slots below the knee to new candidates of open groups."""
        core = self._core
        idle = 0 if self._placement.waiting() else self._placement.idle_below_knee()
        known = (idle, core.next_trajectory, len(self._roster.lengths))
        if not idle or known == self._topped:
            return  # asked already, and nothing has changed since
        self._topped = known
        groups = core.train_groups(Stage.OPEN)
        with asking(core.seams.budget, "budget"):
            given = core.seams.budget.top_up([self._view(group) for group in groups], idle)
            check_top_up(core, given, idle)
        for group, count in given:
            self._roster.add_members(core.groups[group], count)
            core.report(
                "decision",
                group=group,
                prompt=core.groups[group].prompt,
                verb="Sample",
                ids=[],
                why=f"top-up: {count} for idle slots",
            )

    @staticmethod
    def _view(group: Group) -> OpenView:
        return OpenView(
            id=group.id,
            size=group.size,
            sampled=group.sampled,
            finished=sum(m.state is State.FINISHED for m in group.members),
            unended=sum(m.state in UNENDED for m in group.members),
            enough=group.enough,
        )
