"""A data set -> the report of `darts data check`: counts, lengths, bad lines, tokens.

Lengths are in tokens, after the chat template.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np

from pipeline.config.schema import Config
from pipeline.data import findings
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer

FAULTS = 20
"""Bad lines that are listed; the others are only counted."""
_BINS = 8
_PAIRS = 5  # duplicates listed


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of prompts, tokens."""

    min: int
    median: float
    p95: float
    max: int
    histogram: tuple[tuple[int, int, int], ...]  # from, to (the last one included), prompts


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One source of a data set."""

    name: str
    prompts: int
    weight: float
    answer: str  # the field that is used; "" if there is none
    too_long: int  # left out
    cut: int
    note: str  # on files of other splits
    tags: dict[str, int]  # kind -> prompts; "" for those without one
    lengths: Lengths


class FirstPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as the model reads it."""

    where: str
    text: str
    tokens: int
    answer: str


class TokenReport(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens between prompt and response, as the model's files have them."""

    facts: tuple[str, ...]
    warnings: tuple[str, ...]


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """One data set."""

    prompts: int
    sources: tuple[SourceReport, ...]
    lengths: Lengths
    duplicates: int  # prompts that occur earlier
    first_duplicates: tuple[tuple[str, str], ...]  # place, and earlier place
    faults: int  # bad lines
    first_faults: tuple[str, ...]
    first: FirstPrompt


def report_of(data: Dataset) -> DataReport:
    """Reports on a data set, which has at least one prompt."""
    before: dict[bytes, str] = {}
    twice: list[tuple[str, str]] = []
    for item in data.items:
        if item.tokens in before:
            twice.append((item.where, before[item.tokens]))
        else:
            before[item.tokens] = item.where
    first = data[0]
    return DataReport(
        prompts=len(data),
        sources=tuple(
            SourceReport(
                name=source.name,
                prompts=source.count,
                weight=source.weight,
                answer=source.answer,
                too_long=source.dropped,
                cut=source.cut,
                note=source.note,
                tags=dict(Counter(item.tag for item in items)),
                lengths=lengths_of(items),
            )
            for source in data.sources
            for items in [data.items[source.first : source.first + source.count]]
        ),
        lengths=lengths_of(data.items),
        duplicates=len(twice),
        first_duplicates=tuple(twice[:_PAIRS]),
        faults=len(data.skipped),
        first_faults=data.skipped[:FAULTS],
        first=FirstPrompt(
            where=first.where, text=first.prompt, tokens=_length(first), answer=first.answer
        ),
    )


def tokens_of(config: Config, tokenizer: Tokenizer, *data: Dataset) -> TokenReport:
    """Reports on the tokens that begin a prompt and end a response."""
    return TokenReport(
        facts=tuple(findings.facts_of(tokenizer, config.sampling.stop)),
        warnings=tuple(findings.warnings_of(config, tokenizer, *data)),
    )


def lengths_of(items: tuple[Item, ...]) -> Lengths:
    """Summarizes the lengths of at least one prompt."""
    lengths = np.array([_length(item) for item in items])
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.unique(np.linspace(low, high + 1, _BINS + 1).astype(int))
    counts, _ = np.histogram(lengths, bins=edges)
    return Lengths(
        min=low,
        median=float(np.median(lengths)),
        p95=float(np.percentile(lengths, 95)),
        max=high,
        histogram=tuple(
            (int(start), int(end) - 1, int(count))
            for start, end, count in zip(edges, edges[1:], counts, strict=False)
        ),
    )


def _length(item: Item) -> int:
    return len(item.tokens) // 4
