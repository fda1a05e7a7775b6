"""Task `mixed_sums`: three prompts in four add 2 or 3 numbers, the fourth 6.

The grammar, the warm model and the held-out rule are those of `chain_sums`, but the
lengths differ: once re-checks are unlearned, most groups are short and a few are
several times as long, so the remaining gain lies between prompts. Training has 1024 items, so a
run uses each several times.
"""

from random import Random

from pipeline.tasks.chain_sums import Item, Split, draw_terms, sum_item

FEW, MANY = (2, 3), 6
MANY_ONE_IN = 4
PROMPTS = 1024


def generate(split: Split, count: int = PROMPTS, seed: int = 0) -> list[Item]:
    """Make the first `count` items of a split; "train" has at most `PROMPTS`.

    Items are drawn with replacement: only about ten prompts with two terms are held out.
    """
    items: list[Item] = []
    for index in range(min(count, PROMPTS) if split == "train" else count):
        rng = Random(f"mixed_sums/{split}/{seed}/{index}")
        terms = MANY if rng.randrange(MANY_ONE_IN) == 0 else rng.choice(FEW)
        items.append(sum_item(draw_terms(split, rng, terms)))
    return items
