"""Mini-batches of a step: every group once an epoch, the same on every rank."""

from __future__ import annotations

import subprocess
import sys

import pytest

from learner.step.mini_batches import mini_batches
from tests.learner.ranks import ROOT

GROUPS = (11, 3, 7, 5, 2, 13, 17)


@pytest.mark.parametrize("updates", [1, 2, 3, 7])
def test_every_epoch_has_each_group_once_in_parts_that_differ_by_one_at_most(updates: int):
    found = mini_batches(GROUPS, updates=updates, epochs=3, step=4)
    assert len(found) == 3 * updates
    for epoch in range(3):
        parts = found[epoch * updates : (epoch + 1) * updates]
        assert sorted(group for part in parts for group in part) == sorted(GROUPS)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_first_epoch_keeps_the_order_and_later_ones_shuffle_by_step():
    [first, second] = mini_batches(GROUPS, updates=1, epochs=2, step=4)
    assert first == GROUPS
    assert second != GROUPS
    assert mini_batches(GROUPS, updates=1, epochs=2, step=5)[1] != second


def test_fewer_groups_than_updates_make_no_empty_mini_batch():
    assert mini_batches([4, 9], updates=5, epochs=1, step=0) == [(4,), (9,)]


def test_another_process_splits_alike():
    call = f"mini_batches({GROUPS}, updates=2, epochs=3, step=4)"
    code = f"from learner.step.mini_batches import mini_batches; print({call})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(mini_batches(GROUPS, updates=2, epochs=3, step=4))
