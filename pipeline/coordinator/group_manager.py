"""Opens, scores and ends groups and their members, and counts each once.

Every live group and trajectory is entered here and leaves here; on leaving,
its tokens go to their account and its prompt goes where it belongs. Holds
`issued = trained + dropped + outstanding` over prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pipeline.coordinator import rollouts
from pipeline.coordinator.candidates import begin_as_fork, records
from pipeline.coordinator.events import CancelReward, ForgetGroup, KeepRollouts, RequestReward
from pipeline.coordinator.foreign import ForeignResponses
from pipeline.coordinator.groups import (
    UNENDED,
    Group,
    GroupState,
    Kept,
    Trajectory,
    TrajectoryEvent,
    TrajectoryState,
)
from pipeline.coordinator.learner_feed import TokenStream
from pipeline.coordinator.replay import ReplayBuffer
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState, plugin_guard
from pipeline.plugins.views import EndedView


class GroupManager:
    def __init__(self, core: CoordinatorState, scheduler: Scheduler) -> None:
        self._core, self._scheduler = core, scheduler
        self.token_stream = TokenStream(core)
        self.replay_buffer = ReplayBuffer(core)
        self.foreign = ForeignResponses(core)
        self.deferred: deque[tuple[int, int]] = deque()  # (prompt, next attempt), oldest first
        self.outstanding: dict[int, int] = {}  # prompt of a live training group -> attempt
        self.issued = self.ended_trained = self.ended_dropped = 0  # prompts
        self.awaiting_reward: dict[int, float] = {}  # trajectory -> when its reward was asked for

    # --- opening ------------------------------------------------------------------------

    def open(
        self,
        kind: str,
        prompt: int,
        attempt: int,
        candidates: int,
        max_tokens: int,
        size: int,
        *,
        greedy: bool = False,
        variants: Sequence[tuple[int, str]] = (),
        note: str = "",
    ) -> Group:
        """A new group with its first candidates: so many of each variant, the others of none.
        `greedy`: sampled at temperature 0."""
        core = self._core
        group = Group(
            id=core.next_group,
            kind=kind,
            prompt=prompt,
            attempt=attempt,
            step=core.step,
            size=size,
            max_tokens=max_tokens,
            since=core.now,
            greedy=greedy,
            note=note,
        )
        core.next_group += 1
        core.enter(group)
        if kind == "train":
            self.outstanding[prompt] = attempt
        for count, variant in variants:
            self.add_members(group, count, variant)
        self.add_members(group, candidates - sum(count for count, _ in variants))
        return group

    def add_members(
        self, group: Group, count: int, variant: str = "", fork: tuple[int, int] | None = None
    ) -> None:
        """Candidates for a group, queued for a slot; see `Sample`."""
        core = self._core
        origin = group.member(fork[0]) if fork else None
        for _ in range(count):
            trajectory = Trajectory(
                id=core.next_trajectory,
                group=group.id,
                member=group.sampled,  # never used twice: its seed follows from it
                max_tokens=group.max_tokens,
                since=core.now,
                variant=variant,
            )
            if fork and origin is not None:
                begin_as_fork(trajectory, origin, fork[1])
                core.ledger.forked += fork[1]
            core.next_trajectory += 1
            group.sampled += 1
            core.trajectories[trajectory.id] = trajectory
            group.members.append(trajectory)
            self._scheduler.enqueue(trajectory)

    def include(self, group: Group, source: str) -> Trajectory:
        """A response of one of `foreign.sources` becomes a member that has finished."""
        member = self.foreign.member(group, source)
        self._core.trajectories[member.id] = member
        group.members.append(member)
        group.arrivals.append(member.id)
        group.included.append(source)
        if not member.scored:
            self.request_reward(group, member)
        return member

    def request_reward(self, group: Group, trajectory: Trajectory) -> None:
        """Ask for the reward of an ended member; of one that is judged with its whole group, once
        that can be."""
        if group.kind == "train" and self._core.settings.group_reward:
            self.request_group_reward(group)
        else:
            self._request(group, trajectory)

    def request_group_reward(self, group: Group) -> None:
        """Where rewards are over groups: ask about the chosen, in one call. In an audited group
        the others are asked about once all have ended: beside the chosen, which keep the rewards
        that they are trained with."""
        if not self._core.settings.group_reward or group.state is not GroupState.CHOSEN:
            return
        judged = group.judged_together()
        ids = tuple(member.id for member in judged)
        if any(not m.scored and m.id not in self.awaiting_reward for m in judged):
            for member in judged:
                self._request(group, member, ids)

    def _request(
        self, group: Group, trajectory: Trajectory, together: tuple[int, ...] = ()
    ) -> None:
        if not trajectory.scored:
            self.awaiting_reward[trajectory.id] = self._core.now
        self._core.emit(
            RequestReward(
                kind=group.kind,
                prompt=group.prompt,
                group=group.id,
                trajectory=trajectory.id,
                tokens=bytes(trajectory.tokens),
                finish="stop" if trajectory.state is TrajectoryState.FINISHED else "length",
                appended=tuple(trajectory.appended),
                step=self._core.step,
                steps=self._core.settings.steps,
                variant=trajectory.variant,
                together=together,
            )
        )

    def cancel_reward(self, trajectory: Trajectory) -> None:
        """Its reward is not wanted any more, if it was still to come."""
        if self.awaiting_reward.pop(trajectory.id, None) is not None:
            self._core.emit(CancelReward(trajectory=trajectory.id))

    # --- the end ------------------------------------------------------------------------

    def end(self, group: Group, state: GroupState, why: str = "", kind: str = "") -> None:
        """Books are closed on every member; the prompt goes where it belongs.

        Args:
            kind: what the step's record counts it by; `why` if there is none.
        """
        core = self._core
        if group.replay:
            self._end_replay(group, group.replay, state, why)
            return
        if state is GroupState.TRAINED and core.settings.keep:
            self.replay_buffer.keep(group)
        if state is GroupState.TRAINED:
            self.foreign.keep(group)
        if group.is_sent and state is not GroupState.TRAINED:
            core.emit(ForgetGroup(rank=group.rank, group=group.id))
        self.token_stream.close_group(group)
        core.advance(group, state, why)
        trained = dict(zip(group.chosen, group.weights, strict=False))
        table: list[list[object]] = []
        for member in group.members:
            if member.state in UNENDED:
                self.abort_member(member, "aborted")
            elif member.state is not TrajectoryState.ABORTED:
                fate = self._fate(group, member, trained.get(member.id, 0.0), why)
                self.close_member(member, fate, why)
            table.append(
                [
                    member.id,
                    member.state.value,
                    member.sampled,
                    round(member.confidence, 4),
                    member.reward,
                    trained.get(member.id, 0.0) > 0,
                    member.versions,
                    *([member.turns, member.appended_tokens] if member.turns else ()),
                ]
            )
        learned = state is GroupState.TRAINED
        del core.groups[group.id]
        self.keep_rollouts(group, group.members)
        self._report_end(
            group,
            state.value,
            table,
            **records(group),
            **({"advantages": _by_member(group)} if learned else {}),
            **({"advantage_why": group.advantage_why} if group.advantage_why else {}),
            **({"end_kind": kind} if kind else {}),
        )
        if group.kind == "train":
            self._prompt_ended(group, state, kind or why)
            self._tell_plugins(group, why, kind)
            core.needs_update = True

    def keep_rollouts(self, group: Group, members: Sequence[Trajectory]) -> None:
        """Have the responses of members that have left kept, if those of this step are."""
        core = self._core
        every = core.settings.rollouts_every
        if group.kind != "train" or not members or not rollouts.wanted(core.step, every):
            return
        core.emit(
            KeepRollouts(
                step=core.step,
                group=group.id,
                prompt=group.prompt,
                attempt=group.attempt,
                version=core.version,
                fate="open" if group.id in core.groups else group.state.value,
                why=group.why,
                rollouts=tuple(rollouts.rollout_of(group, member) for member in members),
            )
        )

    def _end_replay(self, group: Group, kept: Kept, state: GroupState, why: str) -> None:
        """It has no members, no prompt and no account of its own."""
        core = self._core
        if group.is_sent and state is not GroupState.TRAINED:
            core.emit(ForgetGroup(rank=group.rank, group=group.id))
        core.advance(group, state, why)
        del core.groups[group.id]
        self.replay_buffer.end(group, kept)
        fate = "replayed" if state is GroupState.TRAINED else state.value
        self._report_end(group, fate, [], replay_of=kept.group)
        core.needs_update = True

    def _report_end(
        self, group: Group, fate: str, members: list[list[object]], **more: object
    ) -> None:
        """Write the group's line in decisions.jsonl."""
        self._core.report(
            "group",
            version=self._core.version,
            group=group.id,
            kind=group.kind,
            prompt=group.prompt,
            attempt=group.attempt,
            fate=fate,
            why=group.why,
            members=members,
            **more,
        )

    @staticmethod
    def _fate(group: Group, member: Trajectory, weight: float, why: str) -> str:
        if group.state is GroupState.EVALUATED:
            return "eval"
        if member.reward_failed:
            return "failed"
        if group.state is GroupState.TRAINED:
            return "trained" if weight > 0 else "redundant"
        return "stale" if why == "stale" else "dropped"

    def _tell_plugins(self, group: Group, why: str, kind: str) -> None:
        """Tell every plug-in that wants to know; lengths of aborted members are lower bounds."""
        listeners = [
            (name, tell)
            for name in self._core.plugins.__struct_fields__
            if (tell := getattr(getattr(self._core.plugins, name), "ended", None)) is not None
        ]
        if not listeners:
            return
        candidates = group.candidates
        held = [m for m in candidates if m.sampled]
        scored = [m for m in candidates if m.reward is not None]
        view = EndedView(
            prompt=group.prompt,
            tokens=self._core.prompt_tokens[group.prompt],
            tag=self._core.tag(group.prompt),
            lengths=tuple(m.sampled for m in held),
            censored=tuple(m.state is not TrajectoryState.FINISHED for m in held),
            group=group.id,
            fate=group.state.value,
            why=why,
            kind=kind,
            step=self._core.step,
            opened=group.step,
            rewards=tuple(m.reward for m in scored if m.reward is not None),
            scored=tuple(m.sampled for m in scored),
            variants=tuple(m.variant for m in scored),
        )
        for name, tell in listeners:
            with plugin_guard(getattr(self._core.plugins, name), name, group.id):
                tell(view)

    def _prompt_ended(self, group: Group, state: GroupState, why: str) -> None:
        del self.outstanding[group.prompt]
        label = state.value if state is GroupState.TRAINED else f"{state.value}: {why}"
        rewards = [m.reward for m in group.candidates if m.reward is not None]
        self._core.stats.add_fate(label, rewards)
        if state is GroupState.DEFERRED:
            self.deferred.append((group.prompt, group.attempt + 1))
        elif state is GroupState.TRAINED:
            self.ended_trained += 1
        else:
            self.ended_dropped += 1

    def abort_member(self, member: Trajectory, account: str) -> None:
        """An unended member leaves: its tokens are waste and counted so."""
        if member.state is TrajectoryState.RUNNING and member.engine:
            self._scheduler.end_leg(member)
        self._core.cancel_environment_call(member.id)
        source = "parked" if member.state is TrajectoryState.PARKED else "open"
        self.token_stream.drop_member(self._core.groups[member.group], member)
        member.advance(TrajectoryEvent.DISCARDED, self._core.now)
        member.account = account
        self._core.ledger.move(member.own, source, account)
        del self._core.trajectories[member.id]

    def close_member(self, member: Trajectory, account: str, why: str = "") -> None:
        """An ended member's books are closed."""
        self.cancel_reward(member)
        member.account = account
        self._core.ledger.move(member.own, "open", account, why)
        if account == "trained" and member.state is TrajectoryState.TRUNCATED:
            self._core.ledger.truncated += member.own
        if account == "trained" and member.foreign:
            self._core.ledger.foreign += member.sampled
            self._core.stats.add_foreign(member.sampled)
        del self._core.trajectories[member.id]


def _by_member(group: Group) -> list[tuple[int, float, float]]:
    """(id, advantage, loss weight) of each member that was chosen."""
    rows = zip(group.chosen, group.advantages, group.weights, strict=True)
    return [(i, round(advantage, 6), round(weight, 6)) for i, advantage, weight in rows]
