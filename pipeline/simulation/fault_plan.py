"""Plans what goes wrong in a simulated run: a list of faults, each at a moment, so that any part
of it can be played alone."""

from __future__ import annotations

import random
from enum import StrEnum

import msgspec


class What(StrEnum):
    ENGINE_DIES = "engine dies"
    ENGINE_SLOW = "engine slow"
    FRAME_LOST = "frame lost"
    FRAME_DOUBLED = "frame doubled"
    FRAME_LATE = "frame late"  # those behind it come first: a gap
    LOAD_REFUSED = "weights refused"
    LOAD_WRONG = "weights wrong"
    REWARD_FAILS = "reward fails"
    REWARD_LATE = "reward late"
    ANSWER_DOUBLED = "answer doubled"  # of a reward worker or the learner
    LOSS_NOT_FINITE = "loss not finite"
    STEP_NOT_FINITE = "step not finite"
    LEARNER_DIES = "learner dies"
    STAGE_DIES = "stage dies"
    # No process dies, and one does not answer any more:
    ENGINE_HANGS = "engine hangs"  # its loop; its heartbeats continue
    ABORT_IGNORED = "abort ignored"
    REQUEST_FORGOTTEN = "request forgotten"
    LOAD_HANGS = "load hangs"
    REWARD_LOST = "reward lost"  # it never answers
    LEARNER_HANGS = "learner hangs"
    SAVE_HANGS = "save hangs"


HANGS = (
    What.ENGINE_HANGS,
    What.ABORT_IGNORED,
    What.REQUEST_FORGOTTEN,
    What.LOAD_HANGS,
    What.REWARD_LOST,
    What.LEARNER_HANGS,
    What.SAVE_HANGS,
)
"""Only the limits of waits bring a run over these."""


DISTRUST = (
    *(What.FRAME_LOST, What.FRAME_LATE, What.LOAD_REFUSED, What.LOAD_WRONG),
    *(What.ENGINE_HANGS, What.ABORT_IGNORED, What.REQUEST_FORGOTTEN, What.LOAD_HANGS),
)
"""After these the coordinator itself has an engine started again."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    at: float  # seconds
    what: What
    target: int = 0  # of the engines
    amount: float = 0.0  # seconds late, or times slower

    def __str__(self) -> str:
        return f"{self.at:.3f} s: {self.what} (e{self.target}, {self.amount:.2g})"


def draw_faults(
    rng: random.Random, count: int, until: float, engines: int, hangs: bool = False
) -> list[Fault]:
    """Draws so many faults at random moments up to `until` seconds; the common ones more often.

    Args:
        hangs: half of them are of those who do not answer any more.
    """
    common = [
        *([What.ENGINE_DIES, What.FRAME_LOST, What.FRAME_DOUBLED, What.FRAME_LATE] * 3),
        *([What.ENGINE_SLOW, What.REWARD_FAILS, What.LOAD_REFUSED, What.LOAD_WRONG] * 2),
        *([What.REWARD_LATE, What.ANSWER_DOUBLED] * 2),
        *(What.LOSS_NOT_FINITE, What.STEP_NOT_FINITE, What.LEARNER_DIES, What.STAGE_DIES),
    ]
    found = [
        Fault(
            at=rng.uniform(0.0, until),
            what=rng.choice(HANGS if hangs and rng.random() < 0.5 else common),
            target=rng.randrange(engines),
            amount=rng.uniform(0.01, 3.0),
        )
        for _ in range(count)
    ]
    return sorted(found, key=lambda fault: fault.at)
