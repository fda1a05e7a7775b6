"""Task `loong`: a sum hidden behind a chain of keys, among other chains that lead to other sums.

`841>302,117>5+4,530>841,302>7+9,699>117,?530=` asks for the sum that the chain from 530 leads to:
530, 841, 302, 7+9. Turns (split, seed, index) into a prompt and its answer. Difficulty is the
number of keys to follow (`hops`); length is what other chains fill the prompt with. The characters
are those of `chain_sums`, so its tokenizer reads the prompts; its model has not learned them, and
`models/long-sums` has room for longer ones. Must not know: models, tokenizers, rewards.
Source: KeyChain, LoongRL, arXiv 2510.19363, where keys are UUIDs between documents and the hidden
question is about these.
"""

from collections.abc import Sequence
from random import Random

from pipeline.tasks.chain_sums import TERM_HIGH, TERM_LOW, Item, Split, is_held_out, sum_item

PROMPTS = 1024
HOPS = (1, 4)
LENGTH = 160


def generate(
    split: Split,
    count: int = PROMPTS,
    seed: int = 0,
    *,
    hops: tuple[int, int] = HOPS,
    length: int = LENGTH,
) -> list[Item]:
    """Make the first `count` items of a split; "train" has at most `PROMPTS`.

    Args:
        hops: fewest and most keys of a chain; every number is equally likely.
        length: characters that a prompt has at least.
    """
    items: list[Item] = []
    for index in range(min(count, PROMPTS) if split == "train" else count):
        rng = Random(f"loong/{split}/{seed}/{index}")
        items.append(item(split, rng, rng.randint(*hops), length))
    return items


def item(split: Split, rng: Random, hops: int, length: int) -> Item:
    """Make one prompt of `split` with `hops` keys from the question to the sum.

    Which split it belongs to follows from the keys and the sum that it leads to.
    """
    low = 10 ** (max(3, len(str(length))) - 1)  # more keys than a prompt of this length holds
    while True:
        keys, terms = rng.sample(range(low, 10 * low), hops), _sum(rng)
        if is_held_out([*keys, *terms]) == (split == "held_out"):
            break
    links, used = _links(keys, terms), set(keys)
    size = sum(len(link) + 1 for link in links)
    while size < length - len(f"?{low}="):
        other: list[int] = []
        while len(other) < hops:
            key = rng.randrange(low, 10 * low)
            if key not in used:
                used.add(key)
                other.append(key)
        more = _links(other, _sum(rng))
        links += more
        size += sum(len(link) + 1 for link in more)
    rng.shuffle(links)
    found = sum_item(terms)
    found["prompt"], found["terms"] = f"{','.join(links)},?{keys[0]}=", hops
    return found


def _sum(rng: Random) -> list[int]:
    """Draw two or three terms."""
    return [rng.randint(TERM_LOW, TERM_HIGH) for _ in range(rng.randint(2, 3))]


def _links(keys: Sequence[int], terms: Sequence[int]) -> list[str]:
    """Write a chain: each key leads to the next, the last to the sum.

    >>> _links([530, 841, 302], [7, 9])
    ['530>841', '841>302', '302>7+9']
    """
    ends = [*map(str, keys[1:]), "+".join(map(str, terms))]
    return [f"{key}>{end}" for key, end in zip(keys, ends, strict=True)]
