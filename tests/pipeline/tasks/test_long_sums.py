"""The traces of long sums: what makes them right, what makes them long, and that neither knows."""

from random import Random
from statistics import mean

import pytest

from pipeline.tasks import chain_sums, long_sums


def traces(count: int) -> list[tuple[list[int], str, str]]:
    """Terms, text and style."""
    rng = Random(0)
    drawn = [long_sums.draw_prompt("train", rng) for _ in range(count)]
    return [(terms, *long_sums.trace(terms, rng)) for terms in drawn]


def is_right(terms: list[int], text: str) -> bool:
    return text.rpartition("#")[2] == str(sum(terms))


def test_the_same_arguments_give_the_same_items_for_ever():
    assert long_sums.generate("train", 2) == long_sums.generate("train", 9)[:2]
    assert long_sums.generate("train", 1) == [chain_sums.sum_item([9, 8, 8])]
    assert long_sums.generate("train", 50, seed=0) != long_sums.generate("train", 50, seed=1)


def test_a_clean_trace_is_right_and_a_slip_is_carried_on():
    for terms, text, style in traces(600):
        if style == "clean":
            assert is_right(terms, text)
            assert "!" not in text
        elif style == "slip":
            assert not is_right(terms, text)
            assert text.count("!") == 1
        else:
            assert text.startswith(chain_sums.prompt_of(terms))


def test_rechecks_are_numbered_from_one_and_repeat_what_the_answer_will_be():
    for _, text, _ in traces(600):
        *statements, answer = text.split(";")
        rechecks = [statement for statement in statements if statement.startswith("?")]
        assert statements[len(statements) - len(rechecks) :] == rechecks
        assert rechecks == [f"?{n}:{answer[1:]}" for n in range(1, len(rechecks) + 1)]


def test_traces_are_long_whether_right_or_wrong_and_none_is_longer_than_the_limit():
    drawn = traces(4000)
    right = mean(len(text) for terms, text, _ in drawn if is_right(terms, text))
    wrong = mean(len(text) for terms, text, _ in drawn if not is_right(terms, text))
    assert 100 < right < 140
    assert right / wrong == pytest.approx(1.0, abs=0.15)
    assert 700 < max(len(text) for _, text, _ in drawn) < long_sums.MAX_TOKENS


def test_traces_use_the_alphabet_only_and_never_its_special_characters():
    letters = set(chain_sums.ALPHABET) - {chain_sums.PAD, chain_sums.EOS}
    assert all(set(text) <= letters for _, text, _ in traces(500))
