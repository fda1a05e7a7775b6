"""Predicts how long the engines take to generate a step, given who gets how many candidates.

Turns a law of lengths for each prompt, its candidates and how many of them its group waits for
into seconds. Where every group waits for all of its candidates this is the rollout cost of
arXiv 2605.30859, sum_m (l[m] - l[m-1]) PTL(running), as an expectation over the laws; groups
that close earlier (tail pruning) free their slots and hold the step up no longer. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.plugins.budgets._censored import Lognormal
from pipeline.plugins.views import BudgetView

_POINTS = 97  # lengths at which laws are looked at, in equal ratios from 1 token to the limit
_LEAST = 1e-12  # a share of responses; below, its logarithm is of no use

Floats = npt.NDArray[np.float64]


def generation_seconds(
    laws_P: Sequence[Lognormal],
    candidates_P: Sequence[int],
    waits_P: Sequence[int],
    view: BudgetView,
) -> float:
    """Predict the seconds from the first request of a step to the end of its last group.

    Requests that fit the slots start together. What does not fit waits for slots, which are
    all busy meanwhile; this term is ours, the paper has a slot for every request. Engines get
    equal shares of the requests. Prompts in reserve and candidates added on the way are not
    thought of.

    Args:
        laws_P: response lengths of each prompt.
        candidates_P: requests of each, 1 or more.
        waits_P: candidates that must have ended before the group closes, 1 to `candidates`.
    """
    lengths_L = np.append(0.0, np.geomspace(1.0, max(2.0, view.max_tokens), _POINTS))
    running_L, none_open_L = np.zeros(_POINTS + 1), np.zeros(_POINTS + 1)
    for law, candidates, waits in zip(laws_P, candidates_P, waits_P, strict=True):
        ended_L = _share_ended(law, lengths_L)
        open_L, members_L = _open_group(ended_L, candidates, waits)
        running_L += members_L
        none_open_L += np.log(np.maximum(1.0 - open_L, _LEAST))
    steps_L = np.diff(lengths_L)
    running_L = _middles(running_L) / view.engines
    sampled = float(steps_L @ running_L)  # tokens, of one engine
    requests, slots = sum(candidates_P) / view.engines, max(1, view.slots // view.engines)
    share = min(1.0, slots / requests)  # of the requests, that start at once
    cost_L = np.array([view.latency.seconds(max(1.0, b)) for b in (running_L * share).tolist()])
    some_open_L = 1.0 - np.exp(_middles(none_open_L))
    queued_s = (1.0 - share) * sampled / slots * view.latency.seconds(slots)
    return float(steps_L @ (cost_L * some_open_L)) + queued_s


def _share_ended(law: Lognormal, lengths_L: Floats) -> Floats:
    """Share of responses of at most these lengths; all have ended at the limit, the last one."""
    at_L = (np.log(np.maximum(lengths_L, 0.5)) - law.centre) / law.spread
    share_L = np.array([math.erfc(-at / math.sqrt(2)) / 2 for at in at_L.tolist()])
    share_L[0], share_L[-1] = 0.0, 1.0
    return share_L


def _open_group(ended_L: Floats, candidates: int, waits: int) -> tuple[Floats, Floats]:
    """Return the chance that fewer than `waits` of the candidates have ended, and the expected
    number of members that run then (binomial: candidates end independently)."""
    log_ended_L = np.log(np.maximum(ended_L, _LEAST))
    log_runs_L = np.log(np.maximum(1.0 - ended_L, _LEAST))
    open_L, members_L = np.zeros_like(ended_L), np.zeros_like(ended_L)
    for count in range(waits):
        rest = candidates - count
        ways = math.lgamma(candidates + 1) - math.lgamma(count + 1) - math.lgamma(rest + 1)
        chance_L = np.exp(ways + count * log_ended_L + rest * log_runs_L)
        open_L += chance_L
        members_L += rest * chance_L
    return np.minimum(open_L, 1.0), members_L


def _middles(values_L: Floats) -> Floats:
    return (values_L[1:] + values_L[:-1]) / 2
