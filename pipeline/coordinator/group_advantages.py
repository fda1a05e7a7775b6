"""Asks the advantage plug-in: once for good a group, in trial on a copy, and once a step.

Turns a group's scored members into outcomes and checks the answers. What-if questions (does
this group teach anything so far; what would all candidates have given) go to a deep copy, so
that a plug-in may keep count of what it is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.state import CoordinatorState, PluginFault, plugin_guard
from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.interfaces import Advantage
from pipeline.plugins.views import GroupOutcome, Outcome


class GroupAdvantages:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core

    def ask(self, group: Group, ids: Sequence[int]) -> Advantages | NoSignal:
        """Return the answer that the group is trained by; asked once a group."""
        return self._ask(self._core.plugins.advantage, group, ids)

    def try_out(self, group: Group, ids: Sequence[int]) -> Advantages | NoSignal:
        """Return what the answer would be for these members; leaves no trace in the plug-in."""
        return self._ask(copy.deepcopy(self._core.plugins.advantage), group, ids)

    def of_step(self, groups: Sequence[Group]) -> None:
        """Replace the advantages of a step's groups by those given in view of all of them."""
        rule = getattr(self._core.plugins.advantage, "of_step", None)
        asked = [group for group in groups if not group.replay]
        if rule is None or all(group.of_step for group in asked):
            return
        views = [self._view(group) for group in asked]
        with plugin_guard(self._core.plugins.advantage, "advantage"):
            answers = list(rule(views))
            if len(answers) != len(asked):
                raise ValueError(f"of_step: {len(answers)} answers for {len(asked)} groups")
        for group, view, answer in zip(asked, views, answers, strict=True):
            self._check(group, answer, view.members)
            take(group, answer)
            group.of_step = True

    def _view(self, group: Group) -> GroupOutcome:
        return GroupOutcome(
            group=group.id,
            prompt=group.prompt,
            tag=self._core.tag(group.prompt),
            members=tuple(self._outcomes(group, group.chosen)),
        )

    def _ask(self, advantage: Advantage, group: Group, ids: Sequence[int]) -> Advantages | NoSignal:
        outcomes = self._outcomes(group, ids)
        with plugin_guard(advantage, "advantage", group.id):
            answer = advantage.advantages(outcomes)
        if not isinstance(answer, NoSignal):
            self._check(group, answer, outcomes)
        return answer

    def _outcomes(self, group: Group, ids: Sequence[int]) -> list[Outcome]:
        weights = dict(zip(group.chosen, group.chosen_weights, strict=True))
        return [
            self._outcome(group, m, weights.get(i, 1.0))
            for i in ids
            if (m := group.member(i)) is not None and m.reward is not None
        ]

    def _outcome(self, group: Group, member: Trajectory, weight: float) -> Outcome:
        assert member.reward is not None
        truncated = member.state is TrajectoryState.TRUNCATED
        return Outcome(
            reward=member.reward,
            tokens=member.sampled,
            truncated=truncated,
            weight=weight,
            max_tokens=group.max_tokens,
            id=member.id,
            group=group.id,
            prompt=group.prompt,
            tag=self._core.tag(group.prompt),
            step=self._core.step,
            stopped=truncated and not member.limited,
            parts=member.parts,
            confidence=member.confidence,
            entropy=member.entropy,
            versions=tuple(member.versions),
            variant=member.variant,
            foreign=member.foreign,
        )

    def _check(self, group: Group, answer: object, members: Sequence[Outcome]) -> None:
        """Raises PluginFault unless there is a finite number for each member (and token)."""
        name = type(self._core.plugins.advantage).__name__
        where = f"advantage {name}, group {group.id}"
        if not isinstance(answer, Advantages):
            raise PluginFault(f"{where}: Advantages or NoSignal expected, got {answer!r}")
        for what, numbers in (("values", answer.values), ("weights", answer.weights)):
            if len(numbers) != len(members) or not np.all(np.isfinite(numbers)):
                raise PluginFault(
                    f"{where}: {what}: {len(members)} finite numbers "
                    f"expected, one for each member, got {numbers}"
                )
        if answer.tokens is None:
            return
        lengths = [len(numbers) for numbers in answer.tokens]
        if lengths != [member.tokens for member in members] or not all(
            np.all(np.isfinite(numbers)) for numbers in answer.tokens
        ):
            raise PluginFault(
                f"{where}: tokens: for each member as many finite numbers as it has sampled "
                f"tokens expected, {[member.tokens for member in members]}, got {lengths}"
            )


def take(group: Group, answer: Advantages) -> None:
    """Note the advantages and weights that the chosen members are trained with."""
    group.advantages = [float(a) for a in answer.values]
    group.weights = [float(w) for w in answer.weights]
    tokens = answer.tokens or ()
    group.token_advantages = [np.asarray(t, dtype="<f4").tobytes() for t in tokens]
    group.advantage_why = answer.why
