"""What a reader should know of a run's model and data before it starts: facts and warnings.

Facts: which tokens end a response, and which begins a prompt. Warnings: a chat template that ends
turns with another token, held-out prompts that are trained on, prompts that are there many times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.config.schema import Config
from pipeline.data.chat_template import ChatTemplate
from pipeline.data.dataset import Dataset
from pipeline.data.tokenizer import Tokenizer

_NO_TEXT = ("nan", "none", "null", "<na>", "nat")
"""What tables make of nothing where it is turned into text."""
_SHARE = 0.01
"""Share of prompts that are there again, from which on it is told."""


def facts_of(tokenizer: Tokenizer, stops: Sequence[str] = ()) -> Iterator[str]:
    """Lines on the tokens between prompt and response, as the model's files name them.

    Args:
        stops: texts that end a response too (`sampling.stop`).
    """
    ends = [
        f"{tokenizer.text_of(token)} ({token}, by {', '.join(files)})"
        for token, files in sorted(tokenizer.facts.ends.items())
    ]
    ends += [f"the text {text!r} (sampling.stop)" for text in stops]
    yield f"a response ends with {' or '.join(ends)}"
    if tokenizer.first is not None:
        word = tokenizer.text_of(tokenizer.first)
        yield f"a prompt that is text begins with {word} ({tokenizer.first}), as by its tokenizer"


def warnings_of(config: Config, tokenizer: Tokenizer, *data: Dataset) -> Iterator[str]:
    """Lines on what a response may not end with, and on prompts and answers that may be others than
    they were meant to be."""
    for word, file in tokenizer.facts.unknown_ends.items():
        yield f"{file} names {word!r} as the end of a text, which is no token of the tokenizer"
    items = [item for one in data for item in one.items]
    ended = [item for item in items if item.messages and item.messages[-1]["role"] == "assistant"]
    if ended:
        yield (
            f"{len(ended)} of {len(items)} prompts end with the assistant's message, such as "
            f"{ended[0].where}: the model continues it; leave it out if it is the answer"
        )
    no_text = [item for item in items if item.answer.strip().lower() in _NO_TEXT]
    if no_text:
        yield (
            f"{len(no_text)} of {len(items)} answers are the text {no_text[0].answer.strip()!r}, "
            f"such as {no_text[0].where}: the answer itself, or a cell that was empty?"
        )
    messages = any(item.messages for item in items)
    if not messages and config.data.chat != "always":
        return
    end = ChatTemplate(tokenizer.directory, config.data).turn_end()
    token = tokenizer.special_in(end)
    if token is not None and token not in tokenizer.eos:
        yield (
            f"the chat template ends a turn with {tokenizer.text_of(token)!r} ({token}), and no "
            f"response ends with it: add {token} to eos_token_id in generation_config.json"
        )


def overlap_of(train: Dataset, held_out: Dataset) -> Iterator[str]:
    """Lines on prompts that are there more than once."""
    if shared := shared_prompts(train, held_out):
        yield (
            f"{shared} of {len(held_out)} held-out prompts are in the training data too: "
            "evaluations on them do not show what was learned"
        )
    for source in train.sources:
        items = train.items[source.first : source.first + source.count]
        times = Counter(item.tokens for item in items)
        if source.task or len(items) - len(times) < max(1, _SHARE * len(items)):
            continue
        [(_, most)] = times.most_common(1)
        yield (
            f"{source.name}: {len(items)} prompts, of which {len(times)} are different; one is "
            f"there {most} times"
        )


def shared_prompts(one: Dataset, other: Dataset) -> int:
    """Counts the prompts of `other` that are also in `one`, whatever their spaces and capitals."""
    known = {_bare(item.prompt) for item in one.items}
    return sum(_bare(item.prompt) in known for item in other.items)


def _bare(prompt: str) -> str:
    return "".join(prompt.casefold().split())
