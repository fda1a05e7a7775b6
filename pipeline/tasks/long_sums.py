"""Task `long_sums`: add 3 to 8 numbers; responses whose lengths stay uneven in training.

Turns (split, seed) into prompts and answers, and random numbers into a written-out trace for a
warm start. The prompts and the held-out rule are those of `chain_sums`, the model is another
(`models/long-sums`). Must not know: models, tokenizers, rewards.

A response is a chain of statements, then numbered re-checks of its result, then the answer:
`7+9=16;16+2=18;?1:18;?2:18;#18`. What makes it right or wrong happens in the chain: a leap (all
terms in one statement, mostly wrong where they are many) and a slip (`!` changes a statement to
something wrong) are one-character decisions. What makes it long happens after the chain, is
drawn without regard to it and changes no result. So training has much to gain and nothing
against long responses: the tail of chain sums, where long responses are the wrong ones, is gone
after fifteen steps, and this one stays. The re-checks are numbered because a model knows of a
trace only what it can read: most end after a few, one that has done ten goes on for sixty more,
and none does 100.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

from pipeline.tasks.chain_sums import Item, Split, draw_terms, slip, sum_item

TERMS_MIN, TERMS_MAX = 3, 8
PROMPTS = 1024
MAX_TOKENS = 800
"""Longer than any response of the traces: limit of sampling for the warm model."""

Style = Literal["leap", "slip", "clean"]

# Share of traces with 3 and with 8 terms, linear in between.
_STYLES: dict[Style, tuple[float, float]] = {
    "leap": (0.35, 0.45),
    "slip": (0.28, 0.28),
    "clean": (0.37, 0.27),
}
# Share of leaps that are wrong, by number of terms.
_LEAP_WRONG = {3: 0.3, 4: 0.5, 5: 0.7, 6: 0.85, 7: 0.92, 8: 0.95}
# Chance to stop after this many re-checks, and after more up to the next row.
_STOPS = (
    (0, 0.47),
    (1, 0.25),
    (5, 0.03),
    (10, 0.002),
    (70, 0.03),
    (80, 0.06),
    (90, 0.1),
    (99, 1.0),
)


def generate(split: Split, count: int = PROMPTS, seed: int = 0) -> list[Item]:
    """Make the first `count` items of a split; "train" has at most `PROMPTS`."""
    items: list[Item] = []
    for index in range(min(count, PROMPTS) if split == "train" else count):
        rng = Random(f"long_sums/{split}/{seed}/{index}")
        items.append(sum_item(draw_prompt(split, rng)))
    return items


def draw_prompt(split: Split, rng: Random) -> list[int]:
    """Draw the terms of one prompt; every number of terms is equally likely."""
    return draw_terms(split, rng, rng.randint(TERMS_MIN, TERMS_MAX))


def trace(terms: Sequence[int], rng: Random) -> tuple[str, Style]:
    """Write one response, good or bad, in a style drawn for its depth.

    Args:
        terms: the numbers of the prompt.
        rng: draws the style and every decision within it.

    Returns: the response without end-of-sequence character, and its style.
    """
    share = (len(terms) - TERMS_MIN) / (TERMS_MAX - TERMS_MIN)
    weights = [shallow + (deep - shallow) * share for shallow, deep in _STYLES.values()]
    [style] = rng.choices(list(_STYLES), weights)
    text, acc = _leap(terms, rng) if style == "leap" else _chain(terms, style == "slip", rng)
    for number in range(1, _draw_rechecks(rng) + 1):
        text += f"?{number}:{acc};"
    return f"{text}#{acc}", style


def _leap(terms: Sequence[int], rng: Random) -> tuple[str, int]:
    """Write one statement for all terms; returns it and its value, mostly wrong when deep."""
    value = sum(terms)
    if rng.random() < _LEAP_WRONG[len(terms)]:
        value = slip(value, rng)
    return f"{'+'.join(map(str, terms))}={value};", value


def _chain(terms: Sequence[int], slips: bool, rng: Random) -> tuple[str, int]:
    """Write a statement for each term after the first; returns them and the last value."""
    slips_at = rng.randrange(1, len(terms)) if slips else None
    text, acc = "", terms[0]
    for position, term in enumerate(terms[1:], start=1):
        question, acc = f"{acc}+{term}=", acc + term
        text += f"{question}{acc};"
        if position == slips_at:
            acc = slip(acc, rng)
            text += f"!{question}{acc};"
    return text, acc


def _draw_rechecks(rng: Random) -> int:
    """Draw how many re-checks a trace ends with: mostly none, sometimes 60 to 99."""
    done = 0
    while True:
        stop = [chance for number, chance in _STOPS if number <= done][-1]
        if rng.random() < stop:
            return done
        done += 1
