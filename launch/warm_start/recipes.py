"""What each task's warm start learns from, and how much of it at a time.

Loads no torch. A recipe's numbers are part of its model: another cut, another model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from pipeline.tasks import chain_sums, long_sums


@dataclass(frozen=True)
class Recipe:
    """The traces of one task, and how they are cut and batched."""

    draw: Callable[[Random], tuple[str, str]]  # a question and a response to it
    max_tokens: int  # longest sequence of the model, prompt included
    # The decisions of a trace depend on what is near: cut traces teach the same ones with fewer
    # tokens, and a share of long ones teaches that place does not matter.
    long_share: float
    long_cut: int  # tokens, prompt included, as is the next
    short_cut: int
    micro_batches: tuple[int, ...]  # traces of a step in order of length: less padding
    role: str  # for the model's README, as are the next two
    about: str
    test: str


def _chain_trace(rng: Random) -> tuple[str, str]:
    terms = chain_sums.draw_terms("train", rng)
    return chain_sums.prompt_of(terms), chain_sums.trace(terms, rng)[0]


def _long_trace(rng: Random) -> tuple[str, str]:
    terms = long_sums.draw_prompt("train", rng)
    return chain_sums.prompt_of(terms), long_sums.trace(terms, rng)[0]


RECIPES: dict[str, Recipe] = {
    "chain_sums": Recipe(
        _chain_trace,
        max_tokens=512,
        long_share=0.3,
        long_cut=140,
        short_cut=72,
        micro_batches=(24, 24, 24, 24),
        role="the model that darts starts from",
        test="test_warm_model.py",
        about="""that answers chain sums such as `7+9+2=` about half of the time,
in responses of very uneven length.""",
    ),
    "long_sums": Recipe(
        _long_trace,
        max_tokens=1024,
        long_share=0.15,
        long_cut=1024,
        short_cut=110,
        micro_batches=(36, 36, 20, 4),
        role="a model whose responses stay uneven in training",
        test="test_long_model.py",
        about="""that answers sums such as `7+9+2=` four times in ten. Right or wrong,
its responses have 120 tokens in the mean and up to 750.""",
    ),
}
