"""The model of long sums has the traits that it is there for: a tail, in right responses too."""

from dataclasses import dataclass
from statistics import mean

import pytest

from pipeline.tasks import long_sums
from tests.paths import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS, SAMPLES = 8, 16
COUNTED = 90  # re-checks


@dataclass(frozen=True)
class Sampled:
    text: str
    length: int
    right: bool
    ended: bool


@pytest.fixture(scope="module")
def groups() -> list[list[Sampled]]:
    from scripts.bench.plain_loop import Policy

    policy = Policy(ROOT / "models" / "long-sums", threads=1, max_tokens=long_sums.MAX_TOKENS)
    items = [i for i in long_sums.generate("held_out", PROMPTS) for _ in range(SAMPLES)]
    responses = policy.sample_responses(
        [policy.encode_text(item["prompt"]) for item in items], torch.Generator().manual_seed(0)
    )
    found = [
        Sampled(
            policy.tokenizer.decode(response.tokens, skip_special_tokens=True),
            len(response.tokens),
            policy.is_right(response, item["answer"]),
            response.ended,
        )
        for item, response in zip(items, responses, strict=True)
    ]
    return [found[i : i + SAMPLES] for i in range(0, len(found), SAMPLES)]


def test_about_four_responses_in_ten_are_right(groups: list[list[Sampled]]):
    assert 0.25 <= mean(one.right for group in groups for one in group) <= 0.55


def test_the_longest_response_to_a_prompt_is_several_times_the_mean(groups: list[list[Sampled]]):
    lengths = [[one.length for one in group] for group in groups]
    assert mean(max(group) / mean(group) for group in lengths) > 3.5
    assert 80 < mean(length for group in lengths for length in group) < 160


def test_right_responses_have_the_tail_as_well_and_almost_none_is_cut(groups: list[list[Sampled]]):
    every = [one for group in groups for one in group]
    assert sum(not one.ended for one in every) <= 0.01 * len(every)
    long = [one.right for one in every if one.length > 300]
    short = [one.right for one in every if one.length <= 300]
    assert abs(mean(long) - mean(short)) < 0.25


def test_long_responses_still_follow_the_grammar(groups: list[list[Sampled]]):
    """Hundreds of tokens on, re-checks are still counted one by one and repeat one value."""
    long = [one.text for group in groups for one in group if one.length > 300]
    assert mean(follows_grammar(text) for text in long) > 0.9


def follows_grammar(text: str) -> bool:
    *statements, answer = text.split(";")
    rechecks = [statement for statement in statements if statement.startswith("?")]
    expected = [f"?{n}:{answer[1:]}" for n in range(1, len(rechecks) + 1)]
    return rechecks[:COUNTED] == expected[:COUNTED]  # after 99 some count from 90 again
