"""Task `chain_sums`: add 2 to 6 small numbers, `7+9+2=` -> `7+9=16;16+2=18;#18`.

Turns (split, seed, index) into a prompt and its answer, and random numbers into
a written-out trace for a warm start. Invariant: the same arguments give the same
item on every machine, and no prompt is in both splits. Must not know: models,
tokenizers, rewards.

A response is a row of statements `acc+term=value;` and at last `#answer`. Its
quality hangs on three one-character decisions: `#` (answer now), `?` (write the
last statement again) and `!` (change it to something wrong). A model that learned
the traces below is right about half of the time and has two kinds of prompt:
shallow ones, whose wrong responses are the long ones, and deep ones, whose wrong
responses are short guesses.
"""

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Literal, TypedDict

PAD = "~"
EOS = "$"
ALPHABET = PAD + EOS + "0123456789+=;#?!>,:"
"""Every character of this task; its index is its token id."""

TERMS_MIN, TERMS_MAX = 2, 6
TERM_LOW, TERM_HIGH = 1, 9

Split = Literal["train", "held_out"]
Style = Literal["direct", "clean", "verbose", "loop"]


class Item(TypedDict):
    """One prompt of the task."""

    prompt: str  # "7+9+2="
    answer: str  # "18": what has to follow the last `#`
    terms: int  # how many numbers are added; the depth of the prompt
    solution: str  # "7+9=16;16+2=18;": what leads to the answer, without it
    hint_1: str  # "7+9=16;": the beginning of the solution, its first statement
    hint_2: str  # its first two, if it has as many
    worked_solution: str  # "7+9=16;16+2=18;#18": a whole response that is right


# Share of traces with 2 and with 6 terms, linear in between. Chosen by measurement: after
# the warm start .54 of the samples are right and half of the prompts have a sample more than
# three times as long as their mean.
_STYLES: dict[Style, tuple[float, float]] = {
    "direct": (0.12, 0.45),
    "clean": (0.25, 0.22),
    "verbose": (0.35, 0.30),
    "loop": (0.28, 0.03),
}
# Share of direct answers that are wrong, by number of terms: a guess gets worse with depth.
_DIRECT_WRONG = {2: 0.02, 3: 0.15, 4: 0.6, 5: 0.85, 6: 0.9}
_RECHECK_AGAIN = (0.88, 0.78)  # after one re-check, another: with 2 and with 6 terms
_RECHECK_FALLS = (0.04, 0.02)  # a re-check turns into an error loop instead
_ERROR_AGAIN = 0.88
_SLIPS = (-3, -2, -1, 1, 2, 3, 10, -10)

_HASH_MODULUS = 1009
_HELD_OUT_ONE_IN = 8


def prompt_of(terms: Sequence[int]) -> str:
    """Write the question.

    >>> prompt_of([7, 9, 2])
    '7+9+2='
    """
    return "+".join(map(str, terms)) + "="


def is_held_out(terms: Sequence[int]) -> bool:
    """Return True for the held-out eighth of prompts, by a hash of the terms in order."""
    value = 0
    for term in terms:
        value = (31 * value + 7 * term + 3) % _HASH_MODULUS
    return value % _HELD_OUT_ONE_IN == 0


def item(split: Split, index: int, seed: int = 0) -> Item:
    """Make item `index` of an endless split.

    Items are drawn with replacement: only about ten prompts with two terms are held out.

    Args:
        split: "train" or "held_out"; they share no prompt, whatever the seeds.
        index: from 0, without end.
        seed: another seed, another order.
    """
    rng = Random(f"chain_sums/{split}/{seed}/{index}")
    return sum_item(draw_terms(split, rng))


def sum_item(terms: Sequence[int]) -> Item:
    """Make the item that asks for the sum of these."""
    sums = list(accumulate(terms))
    steps = [f"{a}+{b}={c};" for a, b, c in zip(sums, terms[1:], sums[1:], strict=False)]
    return Item(
        prompt=prompt_of(terms),
        answer=str(sums[-1]),
        terms=len(terms),
        solution="".join(steps),
        hint_1=steps[0],
        hint_2="".join(steps[:2]),
        worked_solution=f"{''.join(steps)}#{sums[-1]}",
    )


def generate(split: Split, count: int = 100_000, seed: int = 0) -> list[Item]:
    """Make the first `count` items of a split."""
    return [item(split, index, seed) for index in range(count)]


def draw_terms(split: Split, rng: Random, count: int | None = None) -> list[int]:
    """Draw the terms of one prompt of `split`: `count`, or any number, equally likely."""
    count = rng.randint(TERMS_MIN, TERMS_MAX) if count is None else count
    while True:
        terms = [rng.randint(TERM_LOW, TERM_HIGH) for _ in range(count)]
        if is_held_out(terms) == (split == "held_out"):
            return terms


def trace(terms: Sequence[int], rng: Random) -> tuple[str, Style]:
    """Write one response, good or bad, in a style drawn for its depth.

    Args:
        terms: the numbers of the prompt.
        rng: draws the style and every decision within it.

    Returns: the response without end-of-sequence character, and its style.
    """
    depth = len(terms)
    weights = [_by_depth(ends, depth) for ends in _STYLES.values()]
    [style] = rng.choices(list(_STYLES), weights)
    if style == "direct":
        total = sum(terms)
        wrong = rng.random() < _DIRECT_WRONG[depth]
        return f"#{slip(total, rng) if wrong else total}", style

    slips_at = rng.randrange(1, depth) if style == "loop" else None
    text, acc = "", terms[0]
    for position, term in enumerate(terms[1:], start=1):
        question, acc = f"{acc}+{term}=", acc + term
        text += f"{question}{acc};"
        if style == "verbose":
            added, acc = _rechecks(question, acc, depth, rng)
            text += added
        elif position == slips_at:
            added, acc = _error_loop(question, acc, rng)
            text += added
    return f"{text}#{acc}", style


def _rechecks(question: str, value: int, depth: int, rng: Random) -> tuple[str, int]:
    """Write re-checks after a statement; returns them and the value that is carried on."""
    text = ""
    going = rng.random() < min(0.9, 0.8 / (depth - 1) + 0.06)
    while going:
        if rng.random() < _by_depth(_RECHECK_FALLS, depth):
            added, value = _error_loop(question, value, rng)
            return text + added, value
        text += f"?{question}{value};"
        going = rng.random() < _by_depth(_RECHECK_AGAIN, depth)
    return text, value


def _error_loop(question: str, truth: int, rng: Random) -> tuple[str, int]:
    """Write wrong changes of mind, at least one; returns them and the last wrong value."""
    text = ""
    while True:
        wrong = slip(truth, rng)
        text += f"!{question}{wrong};"
        if rng.random() >= _ERROR_AGAIN:
            return text, wrong


def slip(truth: int, rng: Random) -> int:
    """Draw a wrong number near the truth, above zero."""
    return rng.choice([truth + slip for slip in _SLIPS if truth + slip > 0])


def _by_depth(ends: tuple[float, float], depth: int) -> float:
    """Interpolate between the value at 2 terms and that at 6."""
    shallow, deep = ends
    return shallow + (deep - shallow) * (depth - TERMS_MIN) / (TERMS_MAX - TERMS_MIN)
