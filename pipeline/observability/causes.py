"""The links from an order of the stage to its answer: what was waited for, one after another."""

from __future__ import annotations

from pipeline.observability.critical_path import Link, follow
from pipeline.observability.spans import Calling, Leg, Load, Scoring


def leg_link(leg: Leg, now: float) -> Link:
    """From the placement of a leg to the frame that ended it, or that is looked at `now`."""
    lane, who = f"engine {leg.engine}", f"trajectory {leg.trajectory}"
    if leg.finish == "lost":
        return follow(leg.asked, lane, "sampling on an engine that was lost", now, who)
    who += f", {leg.tokens} tokens"
    if not leg.begun:  # the engine does not say, or goes on
        return follow(leg.asked, lane, "decoding", now, who)
    link = follow(leg.asked, lane, "request on its way", leg.begun, who)
    link = follow(link, lane, "to the first token", leg.first or leg.last, who)
    link = follow(link, lane, "decoding", leg.last, who)
    return follow(link, "stage", "tokens on their way", now, who)


def load_link(load: Load) -> Link:
    """From the order to load a version to the word that it is served, or refused."""
    lane = f"engine {load.engine}"
    if not load.stages:
        return follow(load.link, lane, "weights", load.heard)
    link = follow(load.link, lane, "word of new weights on its way", load.stages[0].start_s)
    for stage in load.stages:
        link = follow(link, lane, stage.what, stage.end_s)
    return follow(link, "stage", "word of the load on its way", load.heard)


def scoring_link(scoring: Scoring) -> Link:
    """From the question for a reward to its answer."""
    who = f"trajectory {scoring.trajectory}"
    link = follow(scoring.link, "rewards", "waiting for a worker", scoring.begun, who)
    link = follow(link, "rewards", "scoring", scoring.ended, who)
    return follow(link, "stage", "reward on its way", scoring.heard, who)


def calling_link(calling: Calling) -> Link:
    """From the question what follows a turn to its answer."""
    who = f"trajectory {calling.trajectory}, turn {calling.turn + 1}"
    link = follow(calling.link, "rollouts", "waiting for a worker", calling.begun, who)
    link = follow(link, "rollouts", "asking the rollout", calling.ended, who)
    return follow(link, "stage", "what follows on its way", calling.heard, who)
