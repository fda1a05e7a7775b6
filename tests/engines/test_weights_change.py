"""What a probe can tell about a new version: `judge_change` by hand-made and random logprobs."""

import math

import numpy as np
import pytest

from engines.weights_change import Answer, Change, Probed, judge_change

N = 32


def judge(learner: float, engine: float, noise: float, seed: int = 0, part: float = 0.0) -> Change:
    """A learner that moves by `learner` nats a position, and an engine that follows by the share
    `engine`, in another direction by `part`, with this noise in each of its logprobs."""
    draw = np.random.default_rng(seed)
    p0, step, other = draw.normal(-3, 1, N), draw.normal(0, 1, N), draw.normal(0, 1, N)
    e0 = p0 + draw.normal(0, noise, N)
    p1 = p0 + learner * step
    e1 = p0 + learner * (engine * step + part * other) + draw.normal(0, noise, N)
    return judge_change(Probed(4, p0.tolist(), e0.tolist()), Probed(5, p1.tolist(), e1.tolist()))


def test_the_first_version_has_nothing_to_be_compared_with():
    assert judge_change(None, Probed(0, [-1.0] * N, [-1.0] * N)).answer == Answer.UNSURE


def test_a_learner_that_did_not_change_proves_nothing():
    assert judge(0.0, 1.0, 1e-6).answer == Answer.UNSURE


@pytest.mark.parametrize("seed", range(20))
def test_a_change_far_above_the_noise_is_proved_or_stale(seed: int):
    assert judge(1e-2, 1.0, 2e-6, seed).answer == Answer.PROVED
    assert judge(1e-2, 0.0, 2e-6, seed).answer == Answer.STALE
    assert judge(1e-2, 1.0, 2e-6, seed, part=0.02).answer == Answer.STALE, "a fiftieth is missing"


@pytest.mark.parametrize("seed", range(20))
def test_a_change_below_the_noise_cannot_be_told(seed: int):
    for engine in (0.0, 1.0):
        assert judge(2e-3, engine, 0.06, seed).answer == Answer.UNSURE


@pytest.mark.parametrize("seed", range(20))
def test_a_change_of_a_few_times_the_noise_is_stale_or_unsure_and_never_proved(seed: int):
    stale, new = judge(0.4, 0.0, 0.06, seed), judge(0.4, 1.0, 0.06, seed)
    assert stale.answer == Answer.STALE
    assert (new.answer, new.arrived) == (Answer.UNSURE, True), "a layer could hide in the noise"


def test_noise_alone_is_refused_less_than_once_in_two_thousand_versions():
    for size in (2e-3, 0.05, 0.4, 3.0):
        refused = sum(judge(size, 1.0, 0.06, seed).answer == Answer.STALE for seed in range(2000))
        assert refused == 0, f"learner moves by {size}"


def test_moved_is_the_share_of_the_learners_change():
    change = judge(1.0, 0.25, 0.0)
    assert change.moved == pytest.approx(0.25)
    assert change.missing == pytest.approx(0.75)
    assert change.doubt == pytest.approx(0, abs=1e-5)


def test_positions_that_one_of_them_did_not_answer_do_not_count():
    nan = math.nan
    before = Probed(0, [-1.0] * 10, [-1.0] * 8 + [nan, -1.0])
    now = Probed(1, [-1.5] * 10, [-1.5] * 8 + [-9.0, nan])
    assert judge_change(before, now).answer == Answer.PROVED
