"""Chains of keys: where the question leads, how hard and how long it is, and the two splits."""

from collections import Counter

import pytest

from pipeline.tasks import chain_sums, loong
from pipeline.tasks.chain_sums import Item


def solved(item: Item) -> tuple[str, list[str]]:
    """The answer by following the chain, and its keys."""
    links, _, start = item["prompt"].removesuffix("=").partition(",?")
    leads = dict(link.split(">") for link in links.split(","))
    assert len(leads) == links.count(">"), "a key stands twice"
    keys = [start]
    while leads[keys[-1]] in leads:
        keys.append(leads[keys[-1]])
    return str(sum(map(int, leads[keys[-1]].split("+")))), keys


@pytest.mark.parametrize("hops, length", [((1, 4), 160), ((3, 3), 20), ((2, 6), 3000)])
def test_the_chain_from_the_question_leads_to_the_answer(hops: tuple[int, int], length: int):
    for item in loong.generate("train", 40, hops=hops, length=length):
        answer, keys = solved(item)
        assert item["answer"] == answer
        assert item["terms"] == len(keys) and hops[0] <= len(keys) <= hops[1]
        assert len(item["prompt"]) >= length
        # one more chain at most: a key and its end for each hop
        assert len(item["prompt"]) < length + 12 * (hops[1] + 1)
        assert set(item["prompt"]) <= set(chain_sums.ALPHABET)


def test_what_a_prompt_is_filled_with_are_chains_as_long_as_its_own():
    [item] = loong.generate("train", 1, hops=(3, 3), length=400)
    leads = dict(link.split(">") for link in item["prompt"].partition(",?")[0].split(","))
    starts = set(leads) - set(leads.values())
    assert len(starts) * 3 == len(leads) > 30
    ends = [end for end in leads.values() if "+" in end]
    assert len(ends) == len(starts)


def test_splits_share_no_chain_and_hops_are_spread_evenly():
    train, held_out = loong.generate("train"), loong.generate("held_out", 1024)
    for items, apart in ((train, False), (held_out, True)):
        for item in items:
            answer, keys = solved(item)
            assert answer
            end = dict(link.split(">") for link in item["prompt"].partition(",?")[0].split(","))
            terms = map(int, end[keys[-1]].split("+"))
            assert chain_sums.is_held_out([*map(int, keys), *terms]) is apart
    counts = Counter(item["terms"] for item in train)
    assert sorted(counts) == [1, 2, 3, 4] and min(counts.values()) > 200


def test_the_same_arguments_give_the_same_items_and_training_has_epochs():
    assert loong.generate("train", 5000) == loong.generate("train")
    assert len(loong.generate("held_out", 1100)) == 1100
    assert loong.generate("train", 3, seed=1) != loong.generate("train", 3)
