"""Feeds learner ranks: tokens of growing trajectories early, and groups that were taken.

Tokens are streamed to the rank that will train on the group, where a consumer of old or
reference logprobs exists. Streaming saves time and changes no result: tokens that were not
streamed ahead are computed when the group arrives.
"""

from __future__ import annotations

import numpy as np

from pipeline.coordinator import old_logprobs
from pipeline.coordinator.events import DropStream, StreamTokens, TrainGroup
from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.state import CoordinatorState
from pipeline.wire.messages import TrainMember, floats


class TokenStream:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core

    def stream_growth(self, trajectory: Trajectory) -> None:
        """Send the tokens that its rank does not have yet; later, while the weights change."""
        core = self._core
        group = core.groups[trajectory.group]
        if (
            not core.settings.stream
            or core.weights_move
            or group.kind != "train"
            or trajectory.streamed == trajectory.held
        ):
            return
        if group.rank < 0:
            group.rank = group.id % core.settings.ranks
        start, trajectory.streamed = trajectory.streamed, trajectory.held
        core.stats.streamed += trajectory.held - start
        core.emit(
            StreamTokens(
                rank=group.rank,
                group=group.id,
                prompt=group.prompt,
                trajectory=trajectory.id,
                offset=start,
                tokens=bytes(trajectory.tokens[4 * start :]),
                variant=trajectory.variant,
            )
        )

    def drop_member(self, group: Group, trajectory: Trajectory) -> None:
        """It will never be trained on: its rows are free."""
        if trajectory.streamed:
            trajectory.streamed = 0
            self._core.emit(DropStream(rank=group.rank, trajectories=(trajectory.id,)))

    def close_group(self, group: Group) -> None:
        """The group has ended, with all that it still holds."""
        streamed = [member for member in group.members if member.streamed]
        for member in streamed:
            member.streamed = 0
        if streamed:
            self._core.emit(DropStream(rank=group.rank, trajectories=tuple(m.id for m in streamed)))


def train_group(group: Group, step: int, version: int) -> TrainGroup:
    """A taken group with all that a rank needs to train on it in a step that begins with
    `version`."""
    if group.replay:
        return TrainGroup(
            rank=group.rank,
            step=step,
            group=group.id,
            prompt=group.prompt,
            members=group.replay.members,
            variants=group.replay.variants,
        )
    members = [(i, group.member(i)) for i in group.chosen]
    of_tokens = group.token_advantages or [b""] * len(members)
    return TrainGroup(
        rank=group.rank,
        step=step,
        group=group.id,
        prompt=group.prompt,
        members=tuple(
            TrainMember(
                trajectory=i,
                response=bytes(m.tokens),
                behaviour=bytes(m.logprobs),
                appended=tuple(m.appended),
                reward=m.reward or 0.0,
                advantage=advantage,
                weight=weight,
                truncated=m.state is TrajectoryState.TRUNCATED,
                old=bytes(m.logprobs) if m.foreign else old_logprobs.for_training(m, version),
                foreign=bool(m.foreign),
                token_advantages=_at_tokens(m, tokens),
            )
            for (i, m), advantage, weight, tokens in zip(
                members, group.advantages, group.weights, of_tokens, strict=True
            )
            if m is not None
        ),
        variants={i: m.variant for i, m in members if m is not None and m.variant},
    )


def _at_tokens(member: Trajectory, sampled: bytes) -> bytes:
    """Spread float32 of sampled tokens over the response: 0 at tokens that were appended."""
    if not sampled or not member.appended:
        return sampled
    found = np.zeros(member.held, dtype="<f4")
    ours = np.ones(member.held, dtype=bool)
    for first, count in member.appended:
        ours[first : first + count] = False
    found[ours] = floats(sampled)
    return found.tobytes()
