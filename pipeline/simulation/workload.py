"""Draws responses in virtual time: how long, how sure, and worth what.

A workload answers one question: what does this request, to this version of the policy,
become? The answer follows from the request's seed, so that a resumed leg continues with
the same response and a second run is the same run.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

import msgspec

from pipeline.coordinator.events import RewardMissing, RewardReady
from pipeline.simulation.policy import Kind, Policy


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """One response, whole."""

    tokens: int  # up to its stop token; the limit may cut it
    reward: float | None  # if it reaches its end; None: the reward fails
    confidence: float  # mean logprob, nats per token
    limit_reward: float | None = 0.0  # if the limit cuts it
    logprobs: bytes = b""  # float32 of its first tokens, where they are known one by one

    def reward_at(self, finish: str) -> float | None:
        """The reward for how it ended: stop, or length."""
        return self.reward if finish == "stop" else self.limit_reward


def reward_event(trajectory: int, value: float | None) -> RewardReady | RewardMissing:
    """The answer of the reward; None: it fails."""
    if value is None:
        return RewardMissing(trajectory=trajectory, why="it fails, as in the recording")
    return RewardReady(trajectory=trajectory, value=value)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """All that a response follows from."""

    kind: str  # train | eval
    prompt: int
    group: int
    member: int
    seed: int
    version: int  # of the policy when it starts


class Workload(Protocol):
    def response(self, request: Request) -> Response: ...


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """A population of prompts: response lengths are lognormal for each of them.

    `median` is that of the prompts' medians; `between` the deviation of their logarithm;
    `within` the deviation of the logarithm of one prompt's lengths, itself lognormal over
    prompts with deviation `uneven` of its logarithm.
    """

    median: float
    between: float
    within: float
    uneven: float = 0.0
    deep: float = 0.3  # share of prompts whose longer responses are right more often
    slope: float = 0.7  # of the logit of being right per deviation of length, down or up
    right: float = 0.2  # mean logit of being right at median length
    difficulty: float = 1.0  # its deviation between prompts


class Parametric:
    """Prompts drawn from a population, and a policy that training moves.

    Length and correctness are tied within a prompt: on `deep` prompts a longer response is
    right more often (necessary depth), on the others less often (ineffective verbosity), as
    arXiv 2605.30859 tells the two kinds of tail apart. Confidence is independent of both.
    """

    def __init__(self, lengths: Lengths, policy: Policy, *, seed: int = 0) -> None:
        self.lengths, self.policy, self._seed = lengths, policy, seed
        self._kinds: dict[tuple[str, int], Kind] = {}

    def kind(self, of: str, prompt: int) -> Kind:
        """The prompt's own figures, the same whenever it is asked for."""
        key = (of, prompt)
        found = self._kinds.get(key)
        if found is None:
            rng = random.Random(f"{self._seed}/{of}/{prompt}")
            law = self.lengths
            deep = rng.random() < law.deep
            found = self._kinds[key] = Kind(
                deep=deep,
                middle=math.log(law.median) + law.between * rng.gauss(0, 1),
                spread=law.within * math.exp(law.uneven * rng.gauss(0, 1)),
                right=law.right + law.difficulty * rng.gauss(0, 1),
                slope=law.slope if deep else -law.slope,
            )
        return found

    def response(self, request: Request) -> Response:
        rng = random.Random(request.seed)
        z, chance, sure = rng.gauss(0, 1), rng.random(), rng.gauss(-0.5, 0.1)
        kind = self.kind(request.kind, request.prompt)
        tokens, right = self.policy.respond(kind, z, request.version)
        return Response(tokens=tokens, reward=float(chance < right), confidence=min(sure, -1e-3))
