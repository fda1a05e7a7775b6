"""Packing: every member once, groups together, never over the cap."""

from __future__ import annotations

import random

import pytest

from learner.forward.packing import Part, pack


def test_every_member_comes_once_and_no_micro_batch_is_over_the_cap() -> None:
    rng = random.Random(5)
    for _ in range(300):
        groups = [
            (rng.randint(0, 40), [rng.randint(1, 150) for _ in range(rng.randint(0, 9))])
            for _ in range(rng.randint(0, 8))
        ]
        cap = rng.randint(1, 900)
        batches = pack(groups, cap)
        found = [
            (part.group, index) for batch in batches for part in batch for index in part.members
        ]
        every = [
            (at, index) for at, (_, members) in enumerate(groups) for index in range(len(members))
        ]
        assert sorted(found) == every
        for batch in batches:
            tokens = sum(
                groups[part.group][0] + sum(groups[part.group][1][index] for index in part.members)
                for part in batch
            )
            alone = len(batch) == 1 and len(batch[0].members) == 1
            assert tokens <= cap or alone


def test_a_group_that_fits_stays_together() -> None:
    rng = random.Random(6)
    for _ in range(200):
        groups = [(rng.randint(0, 9), [rng.randint(1, 30) for _ in range(4)]) for _ in range(6)]
        parts = [part for batch in pack(groups, cap=150) for part in batch]
        assert sorted(part.group for part in parts) == list(range(6)), "its prefix is run once"


def test_a_group_over_the_cap_is_split_and_a_member_over_it_stands_alone() -> None:
    assert pack([(5, [60, 60, 200])], cap=130) == [
        [Part(0, (2,))],
        [Part(0, (0, 1))],
    ]


def test_small_groups_share_a_micro_batch() -> None:
    assert len(pack([(3, [10, 10])] * 6, cap=1000)) == 1


@pytest.mark.parametrize("groups,cap", [([(3, [3, 0])], 10), ([(-1, [3])], 10), ([(1, [1])], 0)])
def test_a_length_that_is_none_is_refused(groups: list[tuple[int, list[int]]], cap: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pack(groups, cap)


def test_a_group_that_has_to_stay_whole_is_never_split_and_small_ones_still_share() -> None:
    groups = [(5, [60, 60, 200]), (3, [10, 10]), (4, []), (3, [20])]
    assert pack(groups, cap=130, whole_groups=True) == [
        [Part(0, (0, 1, 2))],
        [Part(1, (0, 1)), Part(3, (0,))],
    ]


def test_parts_of_one_owner_stay_together_when_groups_have_to_stay_whole() -> None:
    rng = random.Random(8)
    for _ in range(200):
        groups = [
            (rng.randint(0, 40), [rng.randint(1, 90) for _ in range(rng.randint(0, 5))])
            for _ in range(8)
        ]
        owners = sorted(rng.randint(0, 3) for _ in groups)
        batches = pack(groups, rng.randint(1, 400), whole_groups=True, owners=owners)
        places: dict[int, set[int]] = {}
        for place, batch in enumerate(batches):
            for part in batch:
                places.setdefault(owners[part.group], set()).add(place)
        assert all(len(found) == 1 for found in places.values())
        found = [(p.group, index) for batch in batches for p in batch for index in p.members]
        every = [
            (at, index) for at, (_, members) in enumerate(groups) for index in range(len(members))
        ]
        assert sorted(found) == every
