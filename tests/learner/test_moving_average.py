"""The moving average of the weights: by a worked number, over a checkpoint, and in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.checkpoint import save
from learner.moving_average import MovingAverage


def weight_of(value: float, dtype: torch.dtype = torch.float32) -> Any:
    """A model with one weight."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    torch.nn.init.constant_(model.weight, value)
    return model.requires_grad_(False)


def test_the_average_without_bias_is_the_published_one():
    """Source: openai/ppo-ewma: decay .5, weights 0, 1, 1 -> 0, .666667, .857143."""
    trained = weight_of(0.0)
    average = MovingAverage(weight_of(0.0), trained, decay=0.5)
    torch.nn.init.constant_(trained.weight, 1.0)
    found: list[float] = []
    for _ in range(2):
        average.follow()
        found.append(average.model.weight.item())
    assert found == pytest.approx([0.666667, 0.857143], abs=1e-6)
    assert trained.weight.item() == 1.0


def test_without_decay_it_is_the_trained_weights():
    trained = weight_of(3.0)
    average = MovingAverage(weight_of(0.0), trained, decay=0.0)
    average.follow()
    assert average.model.weight.item() == 3.0


def test_it_continues_from_a_checkpoint(tmp_path: Any):
    trained = weight_of(1.0)
    average = MovingAverage(weight_of(0.0), trained, decay=0.5)
    average.follow()
    save.save_tensors(average.state(), tmp_path / save.AVERAGE)
    again = MovingAverage(weight_of(9.0), trained, decay=0.5)
    again.restore(save.load_average(tmp_path))
    for each in (average, again):
        each.follow()
    assert torch.equal(again.model.weight, average.model.weight)


def test_a_checkpoint_without_an_average_is_refused_by_name(tmp_path: Any):
    with pytest.raises(save.ZeroError, match=r"average\.pt is missing"):
        save.load_average(tmp_path)


def test_small_changes_of_weights_in_bfloat16_are_not_lost():
    trained = weight_of(1.0, torch.bfloat16)
    average = MovingAverage(weight_of(1.0), trained, decay=0.99)
    torch.nn.init.constant_(trained.weight, 1.0078125)  # the next number
    average.follow()
    assert 1.003 < average.model.weight.item() < 1.005
