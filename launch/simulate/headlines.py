"""What the papers behind the recipes report, and why a simulated run is elsewhere.

Figures are those of the publications as docs/methods.md and the recipes name them; a paper of
which we have none is `NONE`. `Counts` names what a simulation of time has, too. Where the headline
is an accuracy, or a length after training, nothing is compared.
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec


class Counts(StrEnum):
    """What a headline counts that a simulated run has, too."""

    STEP = "step"
    """Steps a second."""
    THROUGHPUT = "throughput"
    """Tokens sampled a second, with a learner that costs nothing."""
    BUBBLE = "bubble"
    """Idle slots: the factor by which their share falls."""
    ROLLOUTS = "rollouts"
    """Rollouts for the same signal: the factor by which they fall."""
    SIGNAL = "signal"
    """Signal a second, in the place of the time to an accuracy."""


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """One paper's headline.

    Args:
        says: in words.
        counts: None: what a simulation of time does not have.
        low, high: the published factor over the paper's own baseline.
        why: why the simulated figure is more than `TOLERANCE` away.
    """

    says: str
    counts: Counts | None = None
    low: float = 0.0
    high: float = 0.0
    why: str = ""

    def deviation(self, simulated: float) -> float:
        """Of a simulated factor from the nearest that was published; 0 within the range."""
        nearest = min(max(simulated, self.low), self.high)
        return simulated / nearest - 1.0


TOLERANCE = 0.15
"""A deviation that needs no reason: the simulator's own error in predicting real runs is 11%."""


def _time(says: str, low: float, high: float = 0.0, why: str = "") -> Headline:
    return Headline(says=says, counts=Counts.STEP, low=low, high=high or low, why=why)


OURS = Headline(says="ours")
NONE = Headline(says="none given")

HEADLINES: dict[str, Headline] = {
    # --- ours, and recipes whose sources we have no figure of
    **dict.fromkeys(("concise_confident", "darts_barrier", "top_up", "top_up_quorum"), OURS),
    **dict.fromkeys(
        (
            "dapo",
            "first_m",
            "gfpo",
            "gfpo_shortest",
            "longest_first",
            "loong_rl",
            "off_policy_mask",
            "ppo_ewma",
            "reward_variance",
            "vespo",
        ),
        NONE,
    ),
    # --- times and rollouts
    "april": Headline(
        says="rollout throughput +22.5% on average, +44% at most",
        counts=Counts.THROUGHPUT,
        low=1.225,
        high=1.44,
    ),
    "areal": _time(
        "2.57x over the best synchronous system",
        2.57,
        why="synchronous rollout has 32 requests an engine here and leaves 78% of its slots idle; "
        "five steps' requests at once leave 33%.",
    ),
    "arrol": _time(
        "up to 1.7x faster",
        1.7,
        why="twice as many are sampled up to the checkpoint, a quarter of the limit, and "
        "who is left is chosen by predicted reward, not by length: a step still waits for its "
        "longest and generates 7% longer. What it gains is signal.",
    ),
    "brorl": Headline(
        says="nearly double generation throughput, of 512 rollouts over 16",
        counts=Counts.THROUGHPUT,
        low=2.0,
        high=2.0,
        why="16 prompts of 16 are 32 requests an engine, of which the tail leaves most slots idle; "
        "16 of 512 leave 24% idle. A baseline with more prompts a step would have less to win.",
    ),
    "dart_gui": _time(
        "training throughput 1.9x",
        1.9,
        why="the paper's figure is of engines, learner and environments that no longer wait for "
        "each other; the recipe is its budget by difficulty and its stored successes, and overlap "
        "alone gives 1.12.",
    ),
    "darts_published": _time(
        "1.45x end to end (7B)",
        1.45,
        why="slots are idle, so more candidates cost the budget's utility no time: from the second "
        "step on it asks for 16 a prompt, the most, and groups of 16 are pruned to their first 8, "
        "where the paper prunes about 5% of prompts. Twice as many tokens are sampled as are "
        "trained on. With a mean of 10 a prompt the first table has 1.14x (`waiting`).",
    ),
    "decoupled_ppo": Headline(says="AReaL's: see `areal`"),
    "duet": _time(
        "1.62x faster at the full budget, 2.51x at half of it",
        1.62,
        2.51,
        why="the tokens that its gate saves are of slots that are idle anyway (81%): a step still "
        "waits for the longest response that is kept, and overlap alone gives 1.12.",
    ),
    "pilot_commit": Headline(
        says="1.9x fewer rollouts than GRPO to the same accuracy",
        counts=Counts.ROLLOUTS,
        low=1.9,
        high=1.9,
        why="a rollout trained on carries 1.5 times the signal, but 1.5 are begun for each "
        "that is trained on: 16 pilots of every prompt that is not committed to, or is still held "
        "at the end of the run. The paper counts rollouts to an accuracy.",
    ),
    "roll": _time("1.35x to 2.05x end to end", 1.35, 2.05),
    **dict.fromkeys(
        ("sorted_rl", "sorted_rl_strict"),
        Headline(
            says="bubble ratio down by over 50%", counts=Counts.BUBBLE, low=2.0, high=math.inf
        ),
    ),
    "tail_batching": _time("2.03x to 2.56x (128 H800)", 2.03, 2.56),
    "ulorl": _time(
        "2.06x with four segments (64k outputs, 30B-A3B)",
        2.06,
        why="of the few steps that are simulated the last ones leave their parked responses "
        "behind: 1.46 tokens are sampled for each that is trained on.",
    ),
    "vcpo": _time("2.5x faster to the same accuracy at a lag of 2", 2.5),
    "past_future": Headline(says="2 to 3 times the goodput under heavy load, of serving"),
    # --- time to an accuracy
    **dict.fromkeys(
        ("difficulty", "difficulty_replay"),
        Headline(
            says="23 to 62% less time to GRPO's accuracy",
            counts=Counts.SIGNAL,
            low=1 / 0.77,
            high=1 / 0.38,
        ),
    ),
    "extremes": Headline(
        says="up to 4.64x faster convergence, of images",
        counts=Counts.SIGNAL,
        low=4.64,
        high=4.64,
        why="the paper's many candidates are cheap, in low precision; here ten tokens are sampled "
        "for each that is trained on, and all of them cost the same.",
    ),
    "nudge": Headline(says="beats GRPO with up to 8 times the rollouts"),
    "xrpo": Headline(
        says="2.7x faster convergence",
        counts=Counts.SIGNAL,
        low=2.7,
        high=2.7,
        why="it samples in rounds that wait for each other's rewards, so that a step has several "
        "tails in a row (86% of slots idle).",
    ),
    # --- lengths after training
    "apriel": Headline(says="30 to 50% shorter traces after training"),
    "dot": Headline(says="78% fewer tokens after training (AIME24)"),
    "drpo": Headline(says="77% shorter after training for 1.1% accuracy"),
    "grpo_lambda": Headline(says="47.3% shorter after training, accuracy +1.48%"),
    "rorecomp": Headline(says="27.7% shorter after training"),
    "siri": Headline(says="accuracy +43.2% with 46.9% fewer tokens after three cycles"),
    # --- accuracy
    "dars": Headline(says="higher pass@k at no extra inference cost at convergence"),
    "dars_breadth": Headline(says="pass@1 beside pass@k"),
    "dars_hardness": Headline(says="higher pass@k at no extra inference cost at convergence"),
    "echo": Headline(says="accuracy +0.63 to +12.36%"),
    "mc_grpo": Headline(says="groups of 2 within 1% of the accuracy of groups of 8"),
    "minpro": Headline(says="a better peak and more stability under large lag"),
    "scope": Headline(says="diversity +13.5%, 46.6% on average in mathematics"),
    "seele": Headline(says="accuracy +11.8 points"),
    "tti": Headline(says="the best web agents with open data, of a 12B model"),
}
"""By recipe. Recipes that act on the learner alone and are not here have no figure in our
sources."""
