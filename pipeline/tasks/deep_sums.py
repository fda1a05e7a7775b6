"""Task `deep_sums`: chain sums of 4 to 7 numbers.

The grammar, the warm model and the held-out rule are those of `chain_sums`; the
prompts are deeper. The warm start has seen no prompt with 7 numbers: .05 of its
answers to them are right. Training has 1024 items, so a run goes over them
several times.
"""

from random import Random

from pipeline.tasks.chain_sums import Item, Split, draw_terms, sum_item

TERMS_MIN, TERMS_MAX = 4, 7
PROMPTS = 1024


def generate(split: Split, count: int = PROMPTS, seed: int = 0) -> list[Item]:
    """Make the first `count` items of a split; "train" has at most `PROMPTS`."""
    items: list[Item] = []
    for index in range(min(count, PROMPTS) if split == "train" else count):
        rng = Random(f"deep_sums/{split}/{seed}/{index}")
        items.append(sum_item(draw_terms(split, rng, rng.randint(TERMS_MIN, TERMS_MAX))))
    return items
