"""Importance weights by hand: w = exp(old - behaviour), cut as each mode says."""

from __future__ import annotations

import math

import pytest
import torch

from learner.step.importance_weights import importance_weights

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
