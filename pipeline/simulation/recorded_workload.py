"""Responses of a run that was, as a workload for another selector. Pure.

A member comes back by prompt, opening of that prompt, and number in its group. What is not known of
it is taken from another response of the run, and counted, so that a result can say how much of it
rests on estimates. A response that was cut short has a lower bound for a length: it gets the length
and the reward of a longer one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from pipeline.simulation.workload import Request, Response


class Basis(StrEnum):
    """What a response in the replay rests on."""

    WHOLE = "recorded to its end, and scored"
    UNSCORED = "recorded to its end, never scored: the reward is another's"
    CUT = "cut short in the recording: its end is another's"
    DRAWN = "not recorded at all: another response in its place"


class RecordedMember(msgspec.Struct, frozen=True, kw_only=True):
    """One response of the run."""

    tokens: int  # that are known
    whole: bool  # it ended there, by a stop token or at the limit
    hit_limit: bool = False
    scored: bool = True
    reward: float | None = None  # None: not scored, or the reward failed
    logprobs: bytes = b""  # float32 of each token; b"": not kept

    @property
    def known(self) -> bool:
        """Nothing of it has to be estimated."""
        return self.whole and self.scored


class Recorded:
    """The workload.

    Args:
        groups: in order of opening: (prompt, members).
        limit: longest response, tokens.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, Sequence[RecordedMember]]],
        limit: int,
        *,
        seed: int = 0,
    ) -> None:
        self._limit, self._seed = limit, seed
        self._members: dict[int, list[Sequence[RecordedMember]]] = {}
        for prompt, members in groups:
            self._members.setdefault(prompt, []).append(members)
        self._opened: dict[int, int] = {}  # group -> how often its prompt was opened before
        self._times: dict[int, int] = {}
        everyone = [member for _, members in groups for member in members]
        self._known = sorted((m for m in everyone if m.known), key=lambda m: m.tokens)
        self.basis: dict[tuple[int, int], Basis] = {}
        """(group, member) of the replay -> what its response rests on."""

    def response(self, request: Request) -> Response:
        rng = random.Random(f"{self._seed}/{request.prompt}/{request.group}/{request.member}")
        member, basis = self._member(request, rng)
        self.basis[request.group, request.member] = basis
        if not member.whole:
            return self._finished(member, self._longer(request.prompt, member.tokens), rng)
        reward = member.reward
        if not member.scored:
            known = self._of(request.prompt) or self._known
            reward = rng.choice(known).reward if known else 0.0
        return self._as_it_was(member, reward)

    def _member(self, request: Request, rng: random.Random) -> tuple[RecordedMember, Basis]:
        if request.group not in self._opened:
            self._opened[request.group] = self._times.get(request.prompt, 0)
            self._times[request.prompt] = self._opened[request.group] + 1
        times = self._members.get(request.prompt, [])
        opened = self._opened[request.group]
        if opened < len(times) and request.member < len(times[opened]):
            member = times[opened][request.member]
            if not member.whole:
                return member, Basis.CUT
            return member, Basis.WHOLE if member.scored else Basis.UNSCORED
        like_it = [member for members in times for member in members] or self._known
        nothing = RecordedMember(tokens=0, whole=False)
        return (rng.choice(like_it) if like_it else nothing), Basis.DRAWN

    def _of(self, prompt: int) -> list[RecordedMember]:
        times = self._members.get(prompt, [])
        return [member for members in times for member in members if member.known]

    def _longer(self, prompt: int, tokens: int) -> list[RecordedMember]:
        """Known responses longer than that: of the prompt, else of the run."""
        own = [member for member in self._of(prompt) if member.tokens > tokens]
        return own or [member for member in self._known if member.tokens > tokens]

    def _finished(
        self, member: RecordedMember, longer: Sequence[RecordedMember], rng: random.Random
    ) -> Response:
        """The response to an end that some longer one has; to the limit, if there is none."""
        limit = RecordedMember(tokens=self._limit, whole=True, hit_limit=True, reward=0.0)
        like = rng.choice(longer) if longer else limit
        end = self._as_it_was(like, like.reward)
        return msgspec.structs.replace(
            end, logprobs=member.logprobs + end.logprobs[len(member.logprobs) :]
        )

    def _as_it_was(self, member: RecordedMember, reward: float | None) -> Response:
        mean = _mean(member.logprobs)
        tokens = member.tokens + member.hit_limit  # past the limit there is another token
        return Response(
            tokens=max(1, tokens),
            reward=reward,
            limit_reward=reward if member.hit_limit else 0.0,
            confidence=-0.1 if mean is None else mean,
            logprobs=member.logprobs,
        )


def _mean(logprobs: bytes) -> float | None:
    values = memoryview(logprobs).cast("f")
    return sum(values) / len(values) if len(values) else None
