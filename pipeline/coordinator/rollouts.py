"""What is kept of responses for people to read, once nothing more happens to them.

Turns members of a group into records that hold all that is known of them: tokens, rewards, what
became of them and why. They use the ids and the words of decisions.jsonl. Pure.
"""

from __future__ import annotations

import msgspec

from pipeline.coordinator.groups import Group, GroupState, Trajectory, TrajectoryState


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One response at its end."""

    id: int  # of the trajectory
    state: str  # finished | truncated | aborted
    finish: str  # stop | length | stopped early | aborted
    fate: str  # the account of its tokens: trained | redundant | dropped | aborted | ...
    why: str  # '' if nothing more is to be said
    tokens: bytes  # int32, appended ones included
    logprobs: bytes  # float32, of the engine; empty: it was sampled by none
    appended: tuple[tuple[int, int], ...] = ()  # (first, count) of tokens that were not sampled
    turns: int = 0
    confidence: float = 0.0  # mean logprob, nats per sampled token
    reward: float | None = None
    parts: dict[str, float] = {}
    versions: tuple[int, ...] = ()  # of the policy
    advantage: float | None = None  # None: not trained on
    weight: float = 0.0  # in the loss
    variant: str = ""  # behind its prompt
    foreign: str = ""  # source of one that was not sampled for its group


def wanted(step: int, every: int) -> bool:
    """Whether responses of the open step are kept, for so many steps done.

    >>> [step for step in range(6) if wanted(step, 2)]
    [1, 3, 5]
    """
    return every > 0 and (step + 1) % every == 0


def rollout_of(group: Group, member: Trajectory) -> Rollout:
    """The record of a member that has left its group."""
    fate = member.account or "aborted"  # of a checkpoint without accounts
    place = group.chosen.index(member.id) if member.id in group.chosen else -1
    learned = group.state is GroupState.TRAINED and place >= 0
    return Rollout(
        id=member.id,
        state=member.state.value,
        finish=_finish(member),
        fate=fate,
        why=_why(group, member, fate, chosen=place >= 0),
        tokens=bytes(member.tokens),
        logprobs=bytes(member.logprobs),
        appended=tuple(member.appended),
        turns=member.turns,
        confidence=member.confidence,
        reward=member.reward,
        parts=member.parts,
        versions=tuple(member.versions),
        advantage=group.advantages[place] if learned else None,
        weight=group.weights[place] if learned else 0.0,
        variant=member.variant,
        foreign=member.foreign,
    )


def _finish(member: Trajectory) -> str:
    if member.state is TrajectoryState.FINISHED:
        return "stop"
    if member.state is TrajectoryState.TRUNCATED:
        return "length" if member.limited else "stopped early"
    return "aborted"


def _why(group: Group, member: Trajectory, fate: str, *, chosen: bool) -> str:
    """Its own reason first, then its group's."""
    own = member.reward_why or member.ended_why
    if fate == "redundant":
        return own or ("in the baseline alone: its weight is 0" if chosen else "not chosen")
    if fate == "aborted":
        had = "it still ran" if member.tokens else "it had no token yet"
        return own or f"{had} when its group closed"
    return own or ("" if fate == "trained" else group.why)
