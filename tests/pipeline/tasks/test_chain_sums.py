"""The chain-sums task: its items, its splits, its traces, its tokenizer."""

from collections import Counter
from random import Random

import pytest

from pipeline.tasks import chain_sums
from tests.paths import MODEL


def terms_of(prompt: str) -> list[int]:
    return [int(term) for term in prompt.removesuffix("=").split("+")]


def test_an_item_asks_for_the_sum_of_its_terms():
    for item in chain_sums.generate("train", 300):
        terms = terms_of(item["prompt"])
        assert item["answer"] == str(sum(terms))
        assert item["terms"] == len(terms)


def test_every_number_of_terms_is_about_equally_frequent():
    counts = Counter(item["terms"] for item in chain_sums.generate("train", 5000))
    assert sorted(counts) == [2, 3, 4, 5, 6]
    assert all(900 < count < 1100 for count in counts.values())


def test_splits_share_no_prompt_whatever_the_seeds():
    train = {item["prompt"] for item in chain_sums.generate("train", 5000, seed=1)}
    held_out = {item["prompt"] for item in chain_sums.generate("held_out", 5000, seed=2)}
    assert not train & held_out
    assert all(chain_sums.is_held_out(terms_of(prompt)) for prompt in held_out)


def test_same_split_index_and_seed_give_the_same_item_for_ever():
    assert chain_sums.item("train", 0) == {
        "prompt": "7+3+8+2+6=",
        "answer": "26",
        "terms": 5,
        "solution": "7+3=10;10+8=18;18+2=20;20+6=26;",
        "hint_1": "7+3=10;",
        "hint_2": "7+3=10;10+8=18;",
        "worked_solution": "7+3=10;10+8=18;18+2=20;20+6=26;#26",
    }
    assert chain_sums.item("train", 7, seed=3) == chain_sums.generate("train", 8, seed=3)[7]
    assert chain_sums.generate("train", 50, seed=0) != chain_sums.generate("train", 50, seed=1)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_a_clean_trace_is_right_and_a_loop_carries_its_last_wrong_number_on(count: int):
    rng = Random(count)
    for _ in range(300):
        terms = chain_sums.draw_terms("train", rng)
        text, style = chain_sums.trace(terms, rng)
        answer = int(text.rpartition("#")[2])
        if style == "clean":
            assert answer == sum(terms)
            assert text.count(";") == len(terms) - 1
        elif style == "loop":
            assert "!" in text
            assert "?" not in text
        elif style == "direct":
            assert text == f"#{answer}"


def test_every_statement_outside_of_an_error_is_true():
    rng = Random(0)
    for _ in range(500):
        text, _ = chain_sums.trace(chain_sums.draw_terms("train", rng), rng)
        for statement in text.split(";")[:-1]:
            left, _, right = statement.lstrip("?!").partition("=")
            true = sum(map(int, left.split("+"))) == int(right)
            assert true != statement.startswith("!")


def test_traces_use_the_alphabet_only_and_never_its_special_characters():
    rng = Random(0)
    letters = set(chain_sums.ALPHABET) - {chain_sums.PAD, chain_sums.EOS}
    for _ in range(500):
        terms = chain_sums.draw_terms("train", rng)
        assert set(chain_sums.prompt_of(terms) + chain_sums.trace(terms, rng)[0]) <= letters


def test_the_shipped_tokenizer_gives_back_every_text_one_token_a_character():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    rng = Random(0)
    for _ in range(50):
        terms = chain_sums.draw_terms("train", rng)
        text = chain_sums.prompt_of(terms) + chain_sums.trace(terms, rng)[0]
        ids = tokenizer.encode(text)
        assert ids == [chain_sums.ALPHABET.index(character) for character in text]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, 1, 0, 0], skip_special_tokens=True) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 24)


def test_the_shipped_tokenizer_refuses_a_character_outside_of_the_alphabet():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    with pytest.raises(Exception, match=r"\[UNK\]|unk"):
        tokenizer.encode("7+x=")
