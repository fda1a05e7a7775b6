"""The DAPO loss by worked numbers: clip-higher, token sums, weights, importance, KL."""

from __future__ import annotations

import math

import pytest
import torch

from learner.forward.lm_head import token_logprobs
from learner.losses import LossBatch
from learner.losses._terms import Estimator, divergence
from learner.losses.dapo import Dapo, DapoOptions
from learner.step.importance_weights import importance_weights
from pipeline.plugins.testing import option_problems
from tests.learner.losses.batches import batch_of


def test_ratio_is_clipped_above_for_good_tokens_and_below_for_bad_ones():
    batch = batch_of([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]], [2.0, -2.0])
    loss, metrics = Dapo(DapoOptions(clip_low=0.2, clip_high=0.28)).loss(batch)
    good = 2.0 * (1.0 + 1.28 + 0.5)
    bad = -2.0 * (1.0 + 1.5 + 0.8)
    assert loss.item() == pytest.approx(-(good + bad))
    assert metrics["clipped"] == 2
    assert metrics["ratio"] == pytest.approx(6.0)
    loss.backward()
    gradient = batch.logprobs_BT.grad
    assert gradient is not None
    assert (gradient == 0).tolist() == [[False, True, False], [False, False, True]]


def test_gradient_at_ratio_one_is_the_plain_policy_gradient():
    batch = batch_of([[1.0, 1.0]], [3.0])
    Dapo().loss(batch)[0].backward()
    assert batch.logprobs_BT.grad is not None
    assert batch.logprobs_BT.grad.tolist() == [[-3.0, -3.0]]


def test_masked_tokens_and_member_weights_count_as_they_say():
    batch = batch_of(
        [[1.0, 1.0], [1.0, 1.0]],
        [1.0, 1.0],
        mask_BT=torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        weights_B=torch.tensor([1.0, 0.5]),
        behaviour_BT=torch.tensor([[-0.25, -9.0], [0.0, 0.5]]),
    )
    loss, metrics = Dapo().loss(batch)
    assert loss.item() == pytest.approx(-2.0)
    assert metrics["mismatch"] == pytest.approx(0.25 + 0.5 * 0.5)
    assert metrics["mismatch_max"] == pytest.approx(0.5)


OLD = torch.tensor([0.0, 0.0, 0.0, 0.0])
BEHAVIOUR = torch.tensor([-2.0, 2.0, -math.log(1.5), math.log(1.25)])  # w = e^2, e^-2, 1.5, 0.8


def test_importance_is_truncated_above_only():
    weight, cut = importance_weights(OLD, BEHAVIOUR, mode="truncate", cap=2.0)
    assert weight.tolist() == pytest.approx([2.0, math.exp(-2.0), 1.5, 0.8])
    assert cut.tolist() == [1, 0, 0, 0]


def test_masked_importance_leaves_out_tokens_outside_the_band_on_both_sides():
    weight, cut = importance_weights(OLD, BEHAVIOUR, mode="mask", cap=2.0)
    assert weight.tolist() == pytest.approx([0.0, 0.0, 1.5, 0.8])
    assert cut.tolist() == [1, 1, 0, 0]


def test_masked_importance_of_an_infinite_weight_is_zero_and_not_nan():
    weight, _ = importance_weights(
        torch.tensor([0.0]), torch.tensor([-1000.0]), mode="mask", cap=2.0
    )
    assert weight.tolist() == [0.0]


def test_importance_off_weighs_every_token_alike():
    weight, cut = importance_weights(OLD, BEHAVIOUR, mode="off", cap=2.0)
    assert weight.tolist() == [1, 1, 1, 1]
    assert cut.tolist() == [0, 0, 0, 0]


HALF = math.log(0.5)  # the reference gives half the policy's probability: d = -0.693


@pytest.mark.parametrize(
    "estimator,value,slope",
    [
        ("k1", 0.693147, 1.0),
        ("k2", 0.240227, 0.693147),
        ("k3", 0.193147, 0.5),  # 0.5 + 0.693 - 1; slope 1 - exp(d)
    ],
)
def test_divergence_from_the_reference_by_estimator(
    estimator: Estimator, value: float, slope: float
):
    own = torch.tensor([[0.0]], requires_grad=True)
    found = divergence(own, torch.tensor([[HALF]]), estimator)
    assert found.item() == pytest.approx(value, abs=1e-6)
    found.sum().backward()
    assert own.grad is not None
    assert own.grad.item() == pytest.approx(slope, abs=1e-6)


def test_kl_adds_its_share_to_the_loss_once_per_counted_token():
    changes = {
        "reference_BT": torch.tensor([[HALF, HALF, -9.0]]),
        "mask_BT": torch.tensor([[1.0, 1.0, 0.0]]),
        "weights_B": torch.tensor([0.5]),
    }
    without, _ = Dapo().loss(batch_of([[1.0, 1.0, 1.0]], [1.0], **changes))
    found, metrics = Dapo(DapoOptions(kl=0.1)).loss(batch_of([[1.0, 1.0, 1.0]], [1.0], **changes))
    assert metrics["kl"] == pytest.approx(0.193147, abs=1e-6)  # two tokens, half a weight each
    assert (found - without).item() == pytest.approx(0.0193147, abs=1e-6)
    assert metrics["loss"] == pytest.approx(found.item())


def test_options_name_what_does_not_fit():
    assert option_problems(DapoOptions) == []
    assert option_problems(DapoOptions, clip_low=1.5, kl=-1) == [
        "clip_low: found 1.5, expected above 0 and below 1",
        "kl: found -1, expected at least 0",
    ]


def test_logprobs_are_taken_at_the_sampling_temperature():
    logits = torch.tensor([[[0.0, math.log(4.0)]]])
    found = token_logprobs(logits, torch.tensor([[1]]), 0.5)
    assert found.item() == pytest.approx(math.log(16 / 17))


def test_dapo_is_silent_without_advantage_unless_it_or_a_subclass_has_another_term():
    class WithMore(Dapo):
        def loss(self, batch: LossBatch):
            value, metrics = super().loss(batch)
            return value + batch.logprobs_BT.sum(), metrics

    assert Dapo().silent_without_advantage
    assert not Dapo(DapoOptions(kl=0.1)).silent_without_advantage
    assert not WithMore().silent_without_advantage
