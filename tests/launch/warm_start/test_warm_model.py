"""The shipped model has the traits that selection is about: uneven lengths, two kinds of prompt."""

from dataclasses import dataclass
from statistics import mean

import pytest

from pipeline.tasks import chain_sums

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS, SAMPLES = 80, 16


@dataclass(frozen=True)
class Sampled:
    terms: int
    lengths: tuple[int, ...]
    right: tuple[bool, ...]

    @property
    def tail(self) -> float:
        return max(self.lengths) / mean(self.lengths)

    @property
    def right_minus_wrong(self) -> float:
        """Mean length of the right responses, less that of the wrong ones; 0 if all are alike."""
        pairs = list(zip(self.lengths, self.right, strict=True))
        right = [length for length, is_right in pairs if is_right]
        wrong = [length for length, is_right in pairs if not is_right]
        return mean(right) - mean(wrong) if right and wrong else 0.0


@pytest.fixture(scope="module")
def sampled() -> list[Sampled]:
    from scripts.bench.plain_loop import MODEL, Policy

    policy = Policy(MODEL, threads=1)
    items = chain_sums.generate("held_out", PROMPTS)
    prompts = [policy.encode_text(item["prompt"]) for item in items for _ in range(SAMPLES)]
    responses = policy.sample_responses(prompts, torch.Generator().manual_seed(0))
    found: list[Sampled] = []
    for i, item in enumerate(items):
        group = responses[i * SAMPLES : (i + 1) * SAMPLES]
        right = tuple(policy.is_right(response, item["answer"]) for response in group)
        found.append(Sampled(item["terms"], tuple(len(r.tokens) for r in group), right))
    return found


def test_about_half_of_the_responses_are_right(sampled: list[Sampled]):
    assert 0.35 <= mean(is_right for prompt in sampled for is_right in prompt.right) <= 0.65


def test_a_quarter_of_the_prompts_have_a_response_three_times_their_mean(sampled: list[Sampled]):
    assert sum(prompt.tail > 3 for prompt in sampled) >= len(sampled) / 4


def test_wrong_responses_to_shallow_prompts_are_longer_than_right_ones(sampled: list[Sampled]):
    shallow = [prompt for prompt in sampled if prompt.terms <= 3]
    assert sum(prompt.right_minus_wrong < 0 for prompt in shallow) > 0.8 * len(shallow)


def test_wrong_responses_to_deep_prompts_are_mostly_short_guesses(sampled: list[Sampled]):
    deep = [prompt for prompt in sampled if prompt.terms >= 5]
    assert sum(prompt.right_minus_wrong > 0 for prompt in deep) > 0.5 * len(deep)
