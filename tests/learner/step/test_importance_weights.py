"""Importance weights by hand: w = exp(old - behaviour), cut as each mode says."""

from __future__ import annotations

import math

import pytest
import torch

from learner.step.importance_weights import drifted_rows, importance_weights, rejected_rows

WEIGHTS = [0.25, 0.5, 0.8, 1.0, 1.9, 2.0, 3.0, math.inf]
OLD_BT = torch.tensor([WEIGHTS]).log()
BEHAVIOUR_BT = torch.zeros(1, len(WEIGHTS))


@pytest.mark.parametrize(
    "mode, weights, cut",
    [
        ("truncate", [0.25, 0.5, 0.8, 1.0, 1.9, 2.0, 2.0, 2.0], [0, 0, 0, 0, 0, 0, 1, 1]),
        ("mask", [0, 0.5, 0.8, 1.0, 1.9, 2.0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 1]),
        ("off", [1.0] * 8, [0] * 8),
    ],
)
def test_weights_are_cut_at_the_cap_and_its_inverse(
    mode: str, weights: list[float], cut: list[int]
):
    found_BT, cut_BT = importance_weights(OLD_BT, BEHAVIOUR_BT, mode=mode, cap=2.000001)
    torch.testing.assert_close(found_BT, torch.tensor([weights]), atol=1e-5, rtol=0)
    assert cut_BT.tolist() == [[float(value) for value in cut]]


def test_the_weight_is_of_old_over_behaviour_and_not_the_other_way_round():
    old_BT, behaviour_BT = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    found_BT, _ = importance_weights(old_BT, behaviour_BT, mode="truncate", cap=9.0)
    assert found_BT.item() == pytest.approx(math.exp(0.5))


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="unknown importance mode 'clip'"):
        importance_weights(OLD_BT, BEHAVIOUR_BT, mode="clip", cap=2.0)


RATIOS_BT = torch.tensor([[2.0, 4.0, 9.0], [0.5, 0.5, 1.0]])
SAMPLED_BT = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    "mode, weights, cut",
    [
        ("sequence", [5.0, 0.25], [1.0, 0.0]),  # 2 x 4 is cut, .5 x .5
        ("geometric", [math.sqrt(8), 0.25 ** (1 / 3)], [0.0, 0.0]),
    ],
)
def test_a_sequence_has_one_weight_for_all_its_tokens(
    mode: str, weights: list[float], cut: list[float]
):
    found_BT, cut_BT = importance_weights(
        RATIOS_BT.log(), torch.zeros(2, 3), mode=mode, cap=5.0, mask_BT=SAMPLED_BT
    )
    torch.testing.assert_close(found_BT, torch.tensor(weights).unsqueeze(1).expand(2, 3))
    assert cut_BT.tolist() == [[one] * 3 for one in cut]


def test_rolls_filter_of_mismatch():
    """METHODS-MORE, ROLL: r = [1, 3, .5] -> weights [1, 2, .5], mask [1, 0, 1]; one r of 5e-5 ->
    the whole response dropped."""
    r_BT = torch.tensor([[1.0, 3.0, 0.5]])
    zeros = torch.zeros(1, 3)
    weights_BT, _ = importance_weights(r_BT.log(), zeros, mode="truncate", cap=2.0)
    assert weights_BT.tolist()[0] == pytest.approx([1, 2, 0.5])
    masked_BT, cut_BT = importance_weights(r_BT.log(), zeros, mode="mask", cap=2.00001)
    assert cut_BT.tolist() == [[0, 1, 0]]
    assert masked_BT.tolist()[0] == pytest.approx([1, 0, 0.5])
    r_BT = torch.tensor([[1.0, 3.0, 0.5], [1.0, 5e-5, 1.0]])
    rejected_B = rejected_rows(r_BT.log(), torch.zeros(2, 3), torch.ones(2, 3), below=1e-4, band=0)
    assert rejected_B.tolist() == [0, 1]


def test_responses_outside_of_the_band_are_rejected_by_their_geometric_mean():
    r_BT = torch.tensor([[9.0, 12.0], [11.0, 11.0], [0.05, 0.05], [0.01, 5.0], [99.0, 1.0]])
    mask_BT = torch.tensor([[1.0, 1.0]] * 4 + [[0.0, 1.0]])  # means 10.4, 11, .05, .22, 1
    zeros = torch.zeros(5, 2)
    assert rejected_rows(r_BT.log(), zeros, mask_BT, below=0, band=10.5).tolist() == [0, 1, 1, 0, 0]
    assert rejected_rows(r_BT.log(), zeros, mask_BT, below=0, band=0).tolist() == [0] * 5
    assert rejected_rows(r_BT.log(), zeros, mask_BT, below=0.02, band=0).tolist() == [0, 0, 0, 1, 0]


def test_responses_that_have_become_unlikely_are_found_by_their_mean():
    """behaviour less new, TRL's `get_off_policy_mask`: .5, .2 of the sampled ones, -1."""
    new_BT = torch.tensor([[-1.0, -1.0], [-0.2, -9.0], [-1.0, -1.0]])
    behaviour_BT = torch.tensor([[-0.5, -0.5], [0.0, 0.0], [-2.0, -2.0]])
    mask_BT = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert drifted_rows(new_BT, behaviour_BT, mask_BT, limit=0.3).tolist() == [1, 0, 0]
    assert drifted_rows(new_BT, behaviour_BT, mask_BT, limit=0.1).tolist() == [1, 1, 0]
