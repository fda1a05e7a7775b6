"""A taken group -> the command that hands it to its learner rank. Pure."""

from __future__ import annotations

from pipeline.coordinator.events import Train
from pipeline.coordinator.groups import Group, State
from pipeline.wire.messages import TrainMember


def train_command(group: Group, step: int) -> Train:
    """A taken group with all that a rank needs to train on it."""
    members = [(i, group.member(i)) for i in group.chosen]
    return Train(
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
                truncated=m.state is State.TRUNCATED,
            )
            for (i, m), advantage, weight in zip(
                members, group.advantages, group.weights, strict=True
            )
            if m is not None
        ),
    )
