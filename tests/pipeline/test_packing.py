"""Packing: every sequence once, never over the cap, little padding."""

from __future__ import annotations

import random

import pytest

from pipeline.packing import pack


def test_every_sequence_comes_once_and_no_micro_batch_is_over_the_cap():
    rng = random.Random(5)
    for _ in range(200):
        lengths = [rng.randint(1, 150) for _ in range(rng.randint(0, 40))]
        cap = rng.randint(1, 600)
        batches = pack(lengths, cap)
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            padded = max(lengths[index] for index in batch) * len(batch)
            assert padded <= cap or len(batch) == 1


def test_a_long_tail_is_cut_off_instead_of_padding_the_others_to_it():
    lengths = [136, 20, 21, 22, 23, 20, 21, 22]
    assert pack(lengths, cap=4096) == [[1, 5, 2, 6, 3, 7, 4], [0]]


def test_equal_lengths_stay_together_up_to_the_cap():
    assert pack([10] * 6, cap=1000) == [[0, 1, 2, 3, 4, 5]]
    assert [len(batch) for batch in pack([10] * 6, cap=30)] == [3, 3]


def test_cuts_are_the_cheapest_of_all():
    def cheapest(lengths: list[int], cap: int, price: int) -> int:
        if not lengths:
            return 0
        best = 10**9
        for size in range(1, len(lengths) + 1):
            tokens = lengths[-1] * size
            if tokens <= cap or size == 1:
                best = min(best, tokens + price + cheapest(lengths[:-size], cap, price))
        return best

    rng = random.Random(7)
    for _ in range(50):
        lengths = sorted(rng.randint(1, 60) for _ in range(8))
        batches = pack(lengths, 150, price=20)
        cost = sum(max(lengths[i] for i in batch) * len(batch) + 20 for batch in batches)
        assert cost == cheapest(lengths, 150, 20)


def test_a_length_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        pack([3, 0], cap=10)
