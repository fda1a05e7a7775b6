"""Answers whether anything still moves in the open step, or all of it sleeps until its end."""

from __future__ import annotations

from pipeline.coordinator.groups import (
    ENDED,
    OPEN_STATES,
    GroupState,
    Trajectory,
    TrajectoryState,
)
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState


class Standstill:
    def __init__(self, core: CoordinatorState, scheduler: Scheduler) -> None:
        self._core, self._scheduler = core, scheduler
        self._last_active: Trajectory | None = None  # of an open group, when it was last looked for

    def holds(self) -> bool:
        """Nothing runs, waits or is being scored: every open member is parked until the step has
        ended, or has ended itself. Not so while no engine serves: one may yet be given work.

        The member found last time usually still runs: the others are looked at when it has ended.
        """
        group_index = self._core.group_index
        if (
            group_index.counts[GroupState.CHOSEN]
            or group_index.counts[GroupState.READY]
            or self._scheduler.waiting()
            or not self._scheduler.serving()
        ):
            return False
        if self._last_active is None or not self._moves(self._last_active):
            members = (m for g in group_index.in_any_order(*OPEN_STATES) for m in g.members)
            self._last_active = next((m for m in members if self._moves(m)), None)
        return self._last_active is None

    def _moves(self, member: Trajectory) -> bool:
        """Returns True if it runs, or waits for its environment or reward, in an open group."""
        core = self._core
        goes_on = member.state in (TrajectoryState.RUNNING, TrajectoryState.WAITING_ENV)
        judged = core.settings.group_reward  # then no reward comes while its group is open
        if not goes_on and (member.scored or judged or member.state not in ENDED):
            return False
        group = core.groups.get(member.group)
        here = core.trajectories.get(member.id) is member
        return here and group is not None and group.kind == "train" and group.is_open
