"""Each loss against its published formula, written out here in torch, and by worked numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from learner.losses import Loss, LossBatch
from learner.losses.cispo import Cispo, CispoOptions
from learner.losses.clip_cov import ClipCov, ClipCovOptions
from learner.losses.dapo import Dapo, DapoOptions
from learner.losses.decoupled_ppo import DecoupledPpo, DecoupledPpoOptions
from learner.losses.drpo import Drpo, DrpoOptions
from learner.losses.echo import Echo, EchoOptions, tail_confidences, uncertainties
from learner.losses.gmpo import Gmpo
from learner.losses.gspo import Gspo, GspoOptions
from learner.losses.kl_cov import KlCov, KlCovOptions
from learner.losses.minpro import Minpro, MinproOptions, least_before
from learner.losses.reinforce import Reinforce
from learner.losses.sapo import Sapo
from learner.losses.vcpo import Vcpo, VcpoOptions
from learner.losses.vespo import Vespo
from tests.learner.losses.batches import batch_of, changed, outcome, random_batch


def plain() -> LossBatch:
    """A random batch whose members and tokens all count once: sums are sums."""
    batch = random_batch()
    ones_BT = torch.ones_like(batch.mask_BT)
    return changed(batch, weights_B=torch.ones(len(batch.group_B)), importance_BT=ones_BT)


def expected(batch: LossBatch, token_loss: Any) -> tuple[float, torch.Tensor]:
    """Value and gradient of the masked sum of a token's loss, a function of logprobs (B, T)."""
    logprobs_BT = batch.logprobs_BT.detach().clone().requires_grad_()
    loss = (token_loss(logprobs_BT) * batch.mask_BT).sum()
    loss.backward()
    assert logprobs_BT.grad is not None
    return loss.item(), logprobs_BT.grad


def agrees(loss: Loss, batch: LossBatch, token_loss: Any) -> None:
    value, gradient_BT = expected(batch, token_loss)
    found, found_BT, _ = outcome(loss, batch)
    assert found == pytest.approx(value, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(found_BT, gradient_BT, rtol=1e-4, atol=1e-6)


def mean_of_rows(values_BT: torch.Tensor, batch: LossBatch) -> torch.Tensor:
    return (values_BT * batch.mask_BT).sum(-1, keepdim=True) / batch.mask_BT.sum(-1, keepdim=True)


# --- TRL's formulas: `GRPOTrainer._compute_loss` of TRL 1.16, on the same inputs ------------------


def trl_clipped(batch: LossBatch, low: float, high: float, level: str) -> Any:
    def token_loss(logprobs_BT: torch.Tensor) -> torch.Tensor:
        log_weights = logprobs_BT - batch.old_logprobs_BT
        if level == "sequence":
            log_weights = mean_of_rows(log_weights, batch)
        coef_1 = log_weights.exp()
        coef_2 = torch.clamp(coef_1, 1 - low, 1 + high)
        advantages = batch.advantages_B.unsqueeze(1)
        return -torch.min(coef_1 * advantages, coef_2 * advantages)

    return token_loss


def test_dapo_is_trls_token_loss():
    batch = plain()
    agrees(
        Dapo(DapoOptions(clip_low=0.2, clip_high=0.28)),
        batch,
        trl_clipped(batch, 0.2, 0.28, "token"),
    )


@pytest.mark.parametrize("low, high", [(3e-4, 4e-4), (0.1, 0.15)])
def test_gspo_is_trls_loss_of_level_sequence(low: float, high: float):
    """Every token carries its sequence's ratio, so a sum over tokens is length times the loss."""
    batch = plain()
    agrees(
        Gspo(GspoOptions(clip_low=low, clip_high=high)),
        batch,
        trl_clipped(batch, low, high, "sequence"),
    )


def test_gspo_by_hand():
    batch = batch_of([[math.exp(0.2), math.exp(-0.1)]], [2.0])
    value, _, metrics = outcome(Gspo(GspoOptions(clip_low=0.01, clip_high=0.02)), batch)
    assert math.exp(0.05) > 1.02  # exp(mean of .2 and -.1) is over the clip
    assert value == pytest.approx(-2 * 2.0 * 1.02, rel=1e-6)
    assert metrics["clipped"] == 2
    assert metrics["ratio"] == pytest.approx(2 * math.exp(0.05))


def test_gspo_with_advantages_of_tokens_clips_each_by_its_own_sign():
    """GSPO-token: the ratio 1.2 is over the clip for the good token only."""
    batch = batch_of([[1.2, 1.2]], [9.0], advantages_BT=torch.tensor([[1.0, -1.0]]))
    value, gradient_BT, _ = outcome(Gspo(GspoOptions(clip_low=0.1, clip_high=0.1)), batch)
    assert value == pytest.approx(-1.1 + 1.2, rel=1e-5)
    assert gradient_BT.tolist()[0] == pytest.approx([0.0, 1.2], rel=1e-5)


def test_cispo_is_trls():
    batch = plain()

    def token_loss(logprobs_BT: torch.Tensor) -> torch.Tensor:
        ratio = (logprobs_BT - batch.old_logprobs_BT).exp()
        return -torch.clamp(ratio, max=1.1).detach() * batch.advantages_B.unsqueeze(1) * logprobs_BT

    agrees(Cispo(CispoOptions(most=1.1)), batch, token_loss)


def test_cispo_cuts_a_ratio_and_keeps_its_gradient():
    batch = batch_of([[4.0, 0.5]], [1.0])
    _, gradient_BT, metrics = outcome(Cispo(CispoOptions(least=0.8, most=3.0)), batch)
    assert gradient_BT.tolist()[0] == pytest.approx([-3.0, -0.8])
    assert metrics["clipped"] == 2


def test_sapo_is_trls():
    batch = plain()

    def token_loss(logprobs_BT: torch.Tensor) -> torch.Tensor:
        advantages = batch.advantages_B.unsqueeze(1)
        temperatures = torch.where(advantages > 0, 1.0, 1.05)
        ratio = (logprobs_BT - batch.old_logprobs_BT).exp()
        return -torch.sigmoid(temperatures * (ratio - 1)) * 4 / temperatures * advantages

    agrees(Sapo(), batch, token_loss)


def test_sapos_gate_has_slope_one_at_ratio_one_and_fades_far_from_it():
    batch = batch_of([[1.0, 8.0], [1.0, 8.0]], [1.0, -1.0])
    _, gradient_BT, _ = outcome(Sapo(), batch)
    assert gradient_BT[:, 0].tolist() == pytest.approx([-1.0, 1.0])
    # r f'(r), f' = 4 s (1 - s), s = sigmoid(tau (r - 1))
    fading = [8 * 4 * (s := 1 / (1 + math.exp(-tau * 7))) * (1 - s) for tau in (1.0, 1.05)]
    assert gradient_BT[:, 1].tolist() == pytest.approx([-fading[0], fading[1]], rel=1e-3)


def test_gmpo_is_verls_geo_mean():
    batch = plain()

    def token_loss(logprobs_BT: torch.Tensor) -> torch.Tensor:
        log = logprobs_BT - batch.old_logprobs_BT
        sign = batch.advantages_B.unsqueeze(1).sign()
        least = sign * torch.min(sign * log, sign * log.clamp(-0.4, 0.4))
        return (-batch.advantages_B.unsqueeze(1) * mean_of_rows(least, batch).exp()).expand_as(log)

    agrees(Gmpo(), batch, token_loss)


def test_gmpo_by_hand():
    """Log ratios .6 -> .4 and -.1: exp(.15), for a good answer; for a bad one exp(.25)."""
    rows = [[math.exp(0.6), math.exp(-0.1)]] * 2
    found, _, metrics = outcome(Gmpo(), batch_of(rows, [1.0, -1.0]))
    assert found == pytest.approx(2 * (-math.exp(0.15) + math.exp(0.25)), rel=1e-5)
    assert metrics["clipped"] == 1


def test_reinforce_is_the_policy_gradient():
    batch = plain()
    agrees(Reinforce(), batch, lambda logprobs_BT: -batch.advantages_B.unsqueeze(1) * logprobs_BT)


def test_dual_clip_bounds_what_a_bad_token_may_cost():
    """arXiv 1912.09729: max(min(r A, clip(r) A), c A) for A < 0; verl's `clip_ratio_c`."""
    batch = batch_of([[0.5, 2.0, 5.0], [0.5, 2.0, 5.0]], [-1.0, 1.0])
    options = DapoOptions(clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    value, gradient_BT, metrics = outcome(Dapo(options), batch)
    assert value == pytest.approx((0.8 + 2.0 + 3.0) - (0.5 + 1.28 + 1.28), rel=1e-5)
    assert (gradient_BT == 0).tolist() == [[True, False, True], [False, True, True]]
    assert metrics["clipped"] == 4


def test_mastered_tokens_of_a_sure_right_answer_are_not_trained_on():
    """METHODS-MORE, UloRL: p = [.999, .5, .99], H .1 -> mask [1, 0, 1]; H .2, or reward 0: none."""
    old_BT = torch.tensor([[0.999, 0.5, 0.99]]).log().repeat(3, 1)
    batch = changed(
        batch_of([[1.0] * 3] * 3, [1.0] * 3, rewards_B=torch.tensor([1.0, 1.0, 0.0])),
        old_logprobs_BT=old_BT,
        logprobs_BT=old_BT,
        entropy_BT=torch.tensor([[0.1] * 3, [0.2] * 3, [0.1] * 3]),
    )
    value, gradient_BT, metrics = outcome(Dapo(DapoOptions(mastered_tau=0.99)), batch)
    assert gradient_BT.tolist() == [[0.0, -1.0, 0.0], [-1.0] * 3, [-1.0] * 3]
    assert metrics["mastered"] == 2
    assert value == pytest.approx(-7.0)
    with pytest.raises(ValueError, match="needs_entropy"):
        Dapo(DapoOptions(mastered_tau=0.99)).loss(changed(batch, entropy_BT=None))


def test_minpro_weighs_by_the_least_ratio_of_the_prefix():
    """METHODS-MORE, MinPRO: rho [1.1, .8, 1.2, .9] -> m [1, 1.1, .8, .8], times rho below."""
    rho = torch.tensor([[1.1, 0.8, 1.2, 0.9]])
    assert least_before(rho, torch.ones(1, 4)).tolist()[0] == pytest.approx([1, 1.1, 0.8, 0.8])
    _, gradient_BT, _ = outcome(Minpro(), batch_of(rho.tolist(), [-1.0]))
    assert gradient_BT.tolist()[0] == pytest.approx([1.1, 0.88, 0.96, 0.72])
    _, gradient_BT, _ = outcome(
        Minpro(MinproOptions(prefix_at_most_one=True)), batch_of(rho.tolist(), [-1.0])
    )
    assert gradient_BT.tolist()[0] == pytest.approx([1.1, 0.8, 0.96, 0.72])
    _, gradient_BT, metrics = outcome(
        Minpro(MinproOptions(most=1.0)), batch_of(rho.tolist(), [-1.0])
    )
    assert gradient_BT.tolist()[0] == pytest.approx([1.0, 0.88, 0.96, 0.72])
    assert metrics["clipped"] == 1


def test_minpro_passes_over_appended_tokens():
    mask_BT = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert least_before(torch.tensor([[0.1, 0.7, 0.2, 0.9]]), mask_BT).tolist()[0] == pytest.approx(
        [1, 1, 0.7, 0.7]
    )


def test_decoupled_ppo_is_the_published_objective_and_leaves_wild_tokens_out():
    """-(p/b) min(u A, clip(u) A), and nothing where p/b is above the cap."""
    old_BT = torch.tensor([[0.5, 0.5, 0.5]]).log()
    batch = changed(
        batch_of([[1.0] * 3], [2.0]),
        logprobs_BT=torch.tensor([[0.6, 0.7, 0.5]]).log(),
        old_logprobs_BT=old_BT,
        behaviour_BT=torch.tensor([[0.4, 0.5, 0.05]]).log(),
    )
    value, _, metrics = outcome(DecoupledPpo(), batch)
    assert value == pytest.approx(-2.0 * (1.25 * 1.2 + 1.0 * 1.2), rel=1e-5)
    assert metrics["left_out"] == 1
    value, _, _ = outcome(DecoupledPpo(DecoupledPpoOptions(behaviour_cap=10.001)), batch)
    assert value == pytest.approx(-2.0 * (1.25 * 1.2 + 1.2 + 10.0), rel=1e-5)


def test_ppo_ewma_takes_the_reference_for_the_proximal_policy():
    """-(p/b) min(u A, clip(u) A), u = new/p, whatever the old logprobs are: here 1.1 and 1.4."""
    given = {
        "logprobs_BT": torch.tensor([[0.55, 0.7]]).log(),
        "behaviour_BT": torch.tensor([[0.4, 0.5]]).log(),
        "reference_BT": torch.tensor([[0.5, 0.5]]).log(),
    }
    batch = changed(batch_of([[1.0] * 2], [2.0]), **given)
    value, gradient_BT, _ = outcome(DecoupledPpo(DecoupledPpoOptions(proximal="reference")), batch)
    assert value == pytest.approx(-2.0 * (1.25 * 1.1 + 1.0 * 1.2), rel=1e-5)
    assert gradient_BT[0].tolist() == pytest.approx([-2.75, 0.0], abs=1e-5)


def test_decoupled_ppo_of_an_impossible_behaviour_is_finite():
    batch = batch_of([[1.0]], [1.0], behaviour_BT=torch.tensor([[-1000.0]]))
    value, gradient_BT, _ = outcome(DecoupledPpo(), batch)
    assert (value, gradient_BT.item()) == (0.0, 0.0)


# --- VCPO -------------------------------------------------------------------------------------


def test_vcpo_scales_the_rate_by_the_effective_sample_size():
    """METHODS-MORE, VCPO: w = [1, 1, 2, .5] -> ESS 3.24, rho .81, rate x .9."""
    loss = Vcpo()
    rows = [[1.0, 1.0], [0.5, 2.0], [4.0, 0.5], [1.0, 0.5]]
    _, gradient_BT, metrics = outcome(loss, batch_of(rows, [1.0] * 4))
    sums = {"_weight": 4.5, "_weight_squared": 6.25, "_sequences": 4.0}
    assert {name: metrics[name] for name in sums} == pytest.approx(sums)
    assert loss.step_scale(metrics) == pytest.approx(0.9)
    assert Vcpo(VcpoOptions(scaling="linear")).step_scale(metrics) == pytest.approx(0.81)
    assert Vcpo(VcpoOptions(target=0.5)).step_scale(metrics) == 1.0
    assert Vcpo(VcpoOptions(scaling="off")).step_scale(metrics) == 1.0
    assert gradient_BT[:, 0].tolist() == pytest.approx([-1, -1, -2, -0.5])


def test_vcpo_truncates_in_the_gradient_and_not_in_the_sample_size():
    loss = Vcpo(VcpoOptions(most=8.0))
    _, gradient_BT, metrics = outcome(loss, batch_of([[10.0, 10.0], [1.0, 1.0]], [1.0, 1.0]))
    assert gradient_BT[:, 0].tolist() == pytest.approx([-8, -1], rel=1e-5)
    assert metrics["_weight"] == pytest.approx(101, rel=1e-5)
    assert metrics["clipped"] == 2
    assert loss.step_scale(metrics) == pytest.approx(math.sqrt(101**2 / 10001 / 2), rel=1e-4)


def test_vcpo_of_an_absurd_ratio_is_finite():
    batch = batch_of([[1.0] * 4], [1.0], behaviour_BT=torch.full((1, 4), -1000.0))
    value, _, metrics = outcome(Vcpo(), batch)
    assert math.isfinite(value)
    assert Vcpo().step_scale(metrics) == 1.0


# --- DRPO -------------------------------------------------------------------------------------


def drpo_batch() -> LossBatch:
    """Lengths and scores of the worked number, scaled down by 1,000; the token logprobs of a
    response are its score."""
    lengths, scores = [2, 4, 1, 1], [-0.2, -0.3, -0.3, -0.5]
    mask_BT = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])
    logprobs_BT = torch.tensor(scores).unsqueeze(1).expand(4, 4) * mask_BT
    batch = batch_of([[1.0] * 4] * 4, [1.0, 1.0, -1.0, -1.0], mask_BT=mask_BT)
    weights_B = torch.full((4,), 1 / 8)  # a mean over groups of one of 8 tokens
    return changed(
        batch,
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=logprobs_BT,
        weights_B=weights_B,
        max_tokens=8,
    )


def test_drpo_by_the_worked_number():
    """METHODS-MORE, DRPO: w = [.92414, .07586]; J = -.207586 + .399500 = .191914; weights of the
    wrong [-.505000, -.495000]."""
    value, gradient_BT, metrics = outcome(Drpo(), drpo_batch())
    assert value == pytest.approx(-0.191914, abs=2e-6)
    assert metrics["gain"] == pytest.approx(0.191914, abs=2e-6)
    assert (-gradient_BT.sum(1)).tolist() == pytest.approx(
        [0.92414, 0.07586, -0.505, -0.495], abs=2e-5
    )


def test_drpo_without_a_length_scale_is_disco_and_a_group_of_one_kind_teaches_nothing():
    _, gradient_BT, _ = outcome(Drpo(DrpoOptions(length_scale=1e6)), drpo_batch())
    assert (-gradient_BT.sum(1)).tolist()[:2] == pytest.approx([0.5, 0.5], abs=1e-4)
    value, gradient_BT, _ = outcome(Drpo(), changed(drpo_batch(), rewards_B=torch.ones(4)))
    assert value == 0.0
    assert not bool(gradient_BT.any())


def test_drpo_pays_for_divergence_above_its_limit_with_the_first_factor_detached():
    batch = drpo_batch()
    old_BT = batch.logprobs_BT.detach() + 0.01 * batch.mask_BT  # KL = mean of old - new = .01
    batch = changed(batch, old_logprobs_BT=old_BT, rewards_B=torch.ones(4))
    options = DrpoOptions(kl_limit=0.004, kl_weight=10.0)
    value, gradient_BT, metrics = outcome(Drpo(options), batch)
    assert metrics["drift"] == pytest.approx(0.01, rel=1e-4)
    assert value == pytest.approx(10 * 0.006 * 0.01, rel=1e-3)
    # d/dlogp of 10 x .006 x KL, KL the mean over 8 tokens
    assert gradient_BT[1].tolist() == pytest.approx([-10 * 0.006 / 8] * 4, rel=1e-3)


# --- Clip-Cov and KL-Cov ----------------------------------------------------------------------


def covariance_batch() -> LossBatch:
    """One group; mean advantage 0, mean logprob -2: covariances [-3, 3, 0, 0, 0, 0]."""
    logprobs_BT = torch.tensor([[-5.0, 1.0, -2.0], [-2.0, -2.0, -2.0]])
    batch = batch_of([[1.0] * 3] * 2, [1.0, -1.0])
    return changed(batch, logprobs_BT=logprobs_BT, old_logprobs_BT=logprobs_BT)


def test_clip_cov_leaves_out_tokens_whose_covariance_is_in_its_band():
    options = ClipCovOptions(share=1.0, low=1.0, high=5.0)
    _, gradient_BT, metrics = outcome(ClipCov(options), covariance_batch())
    assert gradient_BT.tolist() == [[-1, 0, -1], [1, 1, 1]]
    assert metrics["left_out"] == 1
    _, gradient_BT, _ = outcome(
        ClipCov(ClipCovOptions(share=1.0, low=1.0, high=2.9)), covariance_batch()
    )
    assert gradient_BT.tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_clip_cov_leaves_out_its_share_at_random_and_the_same_in_a_replay():
    """All 40 tokens are in the band; a tenth of them goes."""
    logprobs_BT = torch.tensor([[1.0] * 20, [0.0] * 20])
    batch = changed(
        batch_of([[1.0] * 20] * 2, [4.0, 0.0]), logprobs_BT=logprobs_BT, old_logprobs_BT=logprobs_BT
    )  # covariances (4 - 2)(1 - .5) and (0 - 2)(0 - .5), all 1
    loss = ClipCov(ClipCovOptions(share=0.1, low=0.5, high=5.0))
    _, first_BT, metrics = outcome(loss, batch)
    _, again_BT, _ = outcome(loss, batch)
    _, other_BT, _ = outcome(loss, changed(batch, group_B=torch.full((2,), 7)))
    assert metrics["left_out"] == 4
    assert torch.equal(first_BT, again_BT)
    assert not torch.equal(first_BT, other_BT)


def test_kl_cov_holds_the_tokens_of_the_highest_covariance_near_the_old_policy():
    """verl: -A r, and -A r + |log r| at the k highest."""
    batch = covariance_batch()
    old_BT = batch.logprobs_BT.detach() - math.log(1.5)  # every ratio is 1.5
    batch = changed(batch, old_logprobs_BT=old_BT)
    loss = KlCov(KlCovOptions(share=1.001 / 6, weight=2.0))
    value, gradient_BT, metrics = outcome(loss, batch)
    assert metrics["held"] == 1
    assert value == pytest.approx(2.0 * math.log(1.5), rel=1e-5)
    assert gradient_BT[0].tolist()[1] == pytest.approx(-1.5 + 2.0)
    assert gradient_BT[0].tolist()[0] == pytest.approx(-1.5)


# --- VESPO ------------------------------------------------------------------------------------


def test_vespo_is_trls():
    batch = plain()

    def token_loss(logprobs_BT: torch.Tensor) -> torch.Tensor:
        log = ((logprobs_BT.detach() - batch.behaviour_BT) * batch.mask_BT).sum(-1, keepdim=True)
        good = batch.advantages_B.unsqueeze(1) >= 0
        k, lam = torch.where(good, 2.0, 3.0), torch.where(good, 3.0, 2.0)
        phi = torch.exp(lam + k * log - lam * log.exp())
        return -phi * batch.advantages_B.unsqueeze(1) * logprobs_BT

    agrees(Vespo(), batch, token_loss)


def test_vespos_gate_is_one_at_ratio_one_and_closes_on_both_sides():
    rows = [[1.0, 1.0], [8.0, 8.0], [0.1, 0.1]]
    _, gradient_BT, _ = outcome(Vespo(), batch_of(rows, [1.0] * 3))
    own = [-value for value in gradient_BT[:, 0].tolist()]
    assert own == pytest.approx(
        [1.0, math.exp(3) * 64**2 * math.exp(-192), math.exp(3) * 1e-4 * math.exp(-0.03)], rel=1e-4
    )


def test_echos_clip_narrows_with_the_confidence_of_the_tail():
    """METHODS-MORE, ECHO: e is .125 at a confidence of 1, .182120 at .5."""
    found = Echo().clips(torch.tensor([1.0, 0.5])).tolist()
    assert found == pytest.approx([0.125, 0.182120], abs=1e-6)
    batch = changed(
        batch_of([[1.0] * 4] * 2, [1.0, -1.0]),
        entropy_BT=-torch.tensor([[0.1, 1.0, 0.5, 0.7], [0.2, 0.4, 0.9, 0.3]]).log(),
        mask_BT=torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]),
    )
    tails = tail_confidences(batch, 2)  # the appended .5 is no token of the model's
    assert tails.tolist() == pytest.approx([0.85, 0.2])


def test_echo_is_its_formula_group_by_group():
    batch = plain()
    assert batch.entropy_BT is not None
    uncertain_BT = torch.zeros_like(batch.mask_BT)
    for group in (0, 1, 2):
        held_BT = (batch.mask_BT > 0) & (batch.group_B == group).unsqueeze(1)
        entropy_N = batch.entropy_BT[held_BT]
        for values_N in (entropy_N, 1 - (-entropy_N).exp()):
            uncertain_BT[held_BT] += (values_N - values_N.mean()) / values_N.std(correction=0)
    torch.testing.assert_close(uncertainties(batch), uncertain_BT)
    clip_B1 = Echo().clips(tail_confidences(batch, 8)).unsqueeze(1)
    advantages_BT = batch.advantages_BT * (1 + 0.3 * uncertain_BT) + 0.2 * uncertain_BT

    def token_loss(logprobs_BT: torch.Tensor) -> torch.Tensor:
        ratio = (logprobs_BT - batch.old_logprobs_BT).exp()
        clipped = ratio.clamp(1 - clip_B1, 1 + clip_B1)
        return -torch.min(ratio * advantages_BT, clipped * advantages_BT)

    agrees(Echo(EchoOptions(scale=0.3, shift=0.2)), batch, token_loss)


def test_echo_leaves_a_group_alone_that_is_equally_sure_everywhere():
    batch = changed(batch_of([[1.1, 0.9]] * 2, [1.0, -1.0]), entropy_BT=torch.full((2, 2), 0.3))
    value, _, metrics = outcome(Echo(), batch)
    assert value == pytest.approx(-2.0 + 2.0, abs=1e-6)
    assert metrics["clip"] == pytest.approx(4 * Echo().clips(torch.tensor(math.exp(-0.3))).item())
