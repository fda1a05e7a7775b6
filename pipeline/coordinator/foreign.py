"""Responses that join a group without having been sampled for it (`Include`).

Two sources: the newest success of the group's prompt that was trained on earlier, with the
logprobs and the reward that it had; and the data's own solution, which has no logprobs and is
scored as any other response. Such a member begins as finished, and no version of the policy is its
own: no rule of staleness concerns it, and its tokens are in no account of the ledger, since those
of a stored one are in `trained` already. How many are trained on is counted beside the accounts.
Source: DART-GUI, arXiv 2509.23866 (a stored success in the place of a failure), and LUFFY,
arXiv 2504.14945 (a stronger model's response beside the policy's own).
"""

from __future__ import annotations

import msgspec

from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.state import CoordinatorState

STORED, SOLUTION = "stored", "solution"


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """The newest response of a prompt that was right and trained on."""

    prompt: int
    tokens: bytes  # int32, appended ones included
    logprobs: bytes  # float32, as it was sampled
    logprob_sum: float
    appended: list[tuple[int, int]] = []
    turns: int = 0
    variant: str = ""
    reward: float
    parts: dict[str, float] = {}


class ForeignResponses:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self.stored: dict[int, Success] = {}  # by prompt, oldest first

    def sources(self, group: Group) -> tuple[str, ...]:
        """What may be included in a group now: each source once."""
        core = self._core
        found = [STORED] if group.prompt in self.stored else []
        if core.solutions and core.solutions[group.prompt]:
            found.append(SOLUTION)
        return tuple(source for source in found if source not in group.included)

    def member(self, group: Group, source: str) -> Trajectory:
        """A new member of a group, of one of its `sources`."""
        core = self._core
        known = self.stored[group.prompt] if source == STORED else None
        tokens = known.tokens if known else core.solutions[group.prompt]
        member = Trajectory(
            id=core.next_trajectory,
            group=group.id,
            member=-1,  # nothing is drawn for it
            max_tokens=max(group.max_tokens, len(tokens) // 4),
            state=TrajectoryState.FINISHED,
            since=core.now,
            foreign=source,
            tokens=bytearray(tokens),
        )
        if known:
            member.logprobs, member.logprob_sum = bytearray(known.logprobs), known.logprob_sum
            member.appended, member.turns = list(known.appended), known.turns
            member.appended_tokens = sum(count for _, count in known.appended)
            member.variant = known.variant
            if not core.settings.group_reward:  # else it is judged anew, with its new group
                member.scored, member.reward, member.parts = True, known.reward, dict(known.parts)
        core.next_trajectory += 1
        return member

    def keep(self, group: Group) -> None:
        """Keep the newest success of a group that is about to count as trained."""
        wants = self._core.wants
        if not wants.stored:
            return
        weights = dict(zip(group.chosen, group.weights, strict=True))
        for member in reversed(group.in_order_of_arrival()):
            right = member.reward is not None and member.reward >= wants.right
            whole = member.state is TrajectoryState.FINISHED and not member.foreign
            if right and whole and weights.get(member.id, 0.0) > 0:
                self.stored.pop(group.prompt, None)  # the newest stand last
                self.stored[group.prompt] = _success(group, member)
                break
        while len(self.stored) > wants.stored:
            del self.stored[next(iter(self.stored))]


def _success(group: Group, member: Trajectory) -> Success:
    assert member.reward is not None
    return Success(
        prompt=group.prompt,
        tokens=bytes(member.tokens),
        logprobs=bytes(member.logprobs),
        logprob_sum=member.logprob_sum,
        appended=list(member.appended),
        turns=member.turns,
        variant=member.variant,
        reward=member.reward,
        parts=dict(member.parts),
    )
