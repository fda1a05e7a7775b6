"""The tasks beside chain sums: same prompts, other depths."""

from collections import Counter
from types import ModuleType

import pytest

from pipeline.tasks import chain_sums, deep_sums, long_sums, loong, mixed_sums

TASKS = [deep_sums, long_sums, mixed_sums]


@pytest.mark.parametrize("task", TASKS)
def test_items_ask_for_the_sum_of_their_terms_and_no_prompt_is_in_both_splits(task: ModuleType):
    for split, is_held_out in (("train", False), ("held_out", True)):
        for item in task.generate(split, 300, seed=1):
            terms = [int(term) for term in item["prompt"].removesuffix("=").split("+")]
            assert item["answer"] == str(sum(terms))
            assert item["terms"] == len(terms)
            assert chain_sums.is_held_out(terms) is is_held_out


@pytest.mark.parametrize("task", TASKS)
def test_training_is_gone_over_in_epochs_and_held_out_is_not_cut(task: ModuleType):
    assert task.generate("train", 20_000) == task.generate("train")
    assert len(task.generate("train")) == task.PROMPTS
    assert len(task.generate("held_out", 2 * task.PROMPTS)) == 2 * task.PROMPTS


@pytest.mark.parametrize("task", [*TASKS, loong])
def test_a_solution_leads_to_the_answer_and_hints_are_its_beginning(task: ModuleType):
    for item in task.generate("train", 100):
        statements = item["solution"].removesuffix(";").split(";")
        for statement in statements:
            question, value = statement.split("=")
            assert sum(map(int, question.split("+"))) == int(value)
        assert statements[-1].endswith(f"={item['answer']}")
        assert item["hint_1"] == f"{statements[0]};"
        assert item["hint_2"] == "".join(f"{one};" for one in statements[:2])


def test_deep_sums_are_deeper_than_what_the_warm_start_has_seen():
    counts = Counter(item["terms"] for item in deep_sums.generate("train"))
    assert sorted(counts) == [4, 5, 6, 7]
    assert min(counts.values()) > deep_sums.PROMPTS / 5


def test_mixed_sums_are_mostly_short_and_a_quarter_are_deep():
    counts = Counter(item["terms"] for item in mixed_sums.generate("train"))
    assert sorted(counts) == [2, 3, 6]
    assert 0.2 < counts[6] / mixed_sums.PROMPTS < 0.3
