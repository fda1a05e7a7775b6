"""What every loss of the house keeps to, so that aggregation, streaming and masks need not know it.

Of each: the sum over groups is the whole, whatever shares a call; weights scale; what is
masked changes nothing; a member that it calls silent is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.losses import Loss, LossBatch
from pipeline.plugins import registry
from tests.learner.losses.batches import changed, outcome, random_batch, rows_of

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dapo": [{}, {"kl": 0.1}, {"dual_clip": 1.2}, {"mastered_tau": 0.5, "mastered_entropy": 0.9}],
    "clip_cov": [{}, {"share": 0.3, "low": 0.0}],
    "kl_cov": [{}, {"share": 0.3}],
    "drpo": [{}, {"kl_weight": 5.0, "kl_limit": 0.0}],
    "decoupled_ppo": [{}, {"proximal": "reference"}],
    "vcpo": [{}, {"kl": 0.1, "kl_estimator": "k2"}],
}
LOSSES = [
    pytest.param(name, options, id=f"{name}-{number}")
    for name in registry.builtin_names("loss")
    for number, options in enumerate(OPTIONS.get(name, [{}]))
]


def made(name: str, options: dict[str, Any]) -> Loss:
    cls = registry.find_plugin("loss", name)
    return cls(registry.options_type(cls)(**options))


def is_silent(case: Any) -> bool:
    return getattr(made(*case.values), "silent_without_advantage", False)


def sums(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith("_max")}


def pieces(loss: Loss, batch: LossBatch) -> list[torch.Tensor]:
    """Rows that may share a micro-batch without others: each alone, or each group."""
    if getattr(loss, "whole_groups", False):
        return [batch.group_B == group for group in sorted(set(batch.group_B.tolist()))]
    return [torch.arange(len(batch.group_B)) == row for row in range(len(batch.group_B))]


@pytest.mark.parametrize("name, options", LOSSES)
def test_pieces_of_a_batch_sum_to_the_whole(name: str, options: dict[str, Any]):
    loss, batch = made(name, options), random_batch()
    value, gradient_BT, metrics = outcome(loss, batch)
    assert bool(gradient_BT.any()), "nothing is learned"
    parts = [(rows_B, outcome(loss, rows_of(batch, rows_B))) for rows_B in pieces(loss, batch)]
    assert sum(part for _, (part, _, _) in parts) == pytest.approx(value, rel=1e-5, abs=1e-5)
    for rows_B, (_, part_BT, _) in parts:
        torch.testing.assert_close(part_BT, gradient_BT[rows_B], rtol=1e-4, atol=1e-6)
    for key, whole in sums(metrics).items():
        assert sum(found[key] for _, (_, _, found) in parts) == pytest.approx(
            whole, rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("name, options", LOSSES)
def test_weights_scale_the_loss(name: str, options: dict[str, Any]):
    loss, batch = made(name, options), random_batch()
    value, gradient_BT, _ = outcome(loss, batch)
    twice, more_BT, _ = outcome(loss, changed(batch, weights_B=2 * batch.weights_B))
    assert twice == pytest.approx(2 * value, rel=1e-5)
    torch.testing.assert_close(more_BT, 2 * gradient_BT, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name, options", LOSSES)
def test_masked_positions_change_nothing(name: str, options: dict[str, Any]):
    loss, batch = made(name, options), random_batch()
    value, gradient_BT, metrics = outcome(loss, batch)
    outside_BT = batch.mask_BT == 0
    assert bool(outside_BT.any())
    assert bool((gradient_BT[outside_BT] == 0).all())
    fields = ("logprobs_BT", "old_logprobs_BT", "behaviour_BT", "advantages_BT", "importance_BT")
    others = {}
    for number, field in enumerate((*fields, "reference_BT", "entropy_BT")):
        values_BT = getattr(batch, field).detach()
        others[field] = values_BT.where(~outside_BT, -1.5 + number * 0.7)
    again, other_BT, found = outcome(loss, changed(batch, **others))
    assert again == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(other_BT, gradient_BT, rtol=1e-5, atol=1e-7)
    assert found == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("name, options", filter(is_silent, LOSSES))
def test_a_member_that_is_called_silent_adds_nothing(name: str, options: dict[str, Any]):
    loss, batch = made(name, options), random_batch()
    heard_B = batch.advantages_B != 0
    value, gradient_BT, _ = outcome(loss, batch)
    without, fewer_BT, _ = outcome(loss, rows_of(batch, heard_B))
    assert without == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(fewer_BT, gradient_BT[heard_B], rtol=1e-5, atol=1e-7)
    assert bool((gradient_BT[~heard_B] == 0).all())


def test_most_losses_are_silent_without_advantage_and_none_with_a_divergence():
    silent = {
        name
        for name in registry.builtin_names("loss")
        if getattr(made(name, {}), "silent_without_advantage", False)
    }
    assert silent >= {"dapo", "gspo", "cispo", "sapo", "gmpo", "reinforce", "minpro"}
    assert not silent & {"vcpo", "drpo", "echo", "clip_cov", "kl_cov"}
    for name in silent:
        assert not getattr(made(name, {"kl": 0.1}), "silent_without_advantage", False)


@pytest.mark.parametrize("name, options", LOSSES)
def test_a_loss_leaves_its_batch_as_it_was_and_answers_alike_again(
    name: str, options: dict[str, Any]
):
    loss, batch = made(name, options), random_batch()
    before = {key: value.clone() for key, value in tensors(batch).items()}
    first, again = outcome(loss, batch), outcome(made(name, options), batch)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    for key, value in tensors(batch).items():
        assert torch.equal(value, before[key]), key


def tensors(batch: LossBatch) -> dict[str, torch.Tensor]:
    found = {name: getattr(batch, name) for name in LossBatch.__slots__}
    return {
        name: value.detach() for name, value in found.items() if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("name", registry.builtin_names("loss"))
def test_the_mean_that_a_loss_names_exists(name: str):
    named = getattr(registry.find_plugin("loss", name), "aggregate", "token")
    assert named in ("token", "sequence", "group", "constant")
