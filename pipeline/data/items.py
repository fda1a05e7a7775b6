"""Prompts with their token ids, and what a data set of them is made of.

Invariant: each item can be sampled from: it is not empty and leaves room for a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.plugins.variants import column_and_share, tokens_of
from pipeline.plugins.views import SourceView
from pipeline.system.terminal_text import counted


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt."""

    prompt: str  # as the model reads it, after the chat template
    tokens: bytes  # int32
    answer: str  # what the reward compares with; "" if the data has none
    columns: dict[str, Any]  # of the row, those that the run reads, in JSON's types
    tag: str = ""  # kind of prompt, for budgets ("terms=3")
    where: str = ""  # file and line
    messages: Sequence[dict[str, Any]] = ()  # the prompt, where the row has messages
    solution: bytes = b""  # int32, a response to it with the token that ends it; empty: none
    variants: dict[str, bytes] = {}  # field -> int32, what a variant puts behind the prompt

    def tokens_behind(self, variant: str) -> bytes:
        """int32, what this variant puts behind the prompt. Raises ValueError if there is none."""
        if not variant:
            return b""
        column, share = column_and_share(variant, self.variants)
        found = self.variants[column]
        return found[: 4 * tokens_of(share, len(found) // 4)]

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt with the longest of its variants."""
        return (len(self.tokens) + max(map(len, self.variants.values()), default=0)) // 4


class LoadedSource(msgspec.Struct, frozen=True, kw_only=True):
    """Result of loading one source."""

    name: str
    first: int  # index of its first prompt
    count: int
    weight: float
    answer: str  # the field that is used; "" if there is none
    sought: bool = False  # no field was named
    dropped: int = 0  # prompts left out as too long
    cut: int = 0  # prompts shortened
    unsolved: int = 0  # prompts without a solution that fits, where solutions are read
    note: str = ""  # on files of other splits, and on columns in the prompt
    task: bool = False  # a built-in one


class Dataset:
    """Prompts by index, and lines that were left out."""

    def __init__(
        self,
        name: str,
        items: Sequence[Item],
        skipped: Sequence[str] = (),
        sources: Sequence[LoadedSource] = (),
    ) -> None:
        self.name = name
        self.items = tuple(items)
        self.skipped = tuple(skipped)
        """One line for each bad line that was skipped."""
        self.sources = tuple(sources)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def prompt_tokens(self, index: int, variant: str = "") -> bytes:
        """int32, a prompt as engines and learner get it, with what its variant adds."""
        item = self.items[index]
        return item.tokens + item.tokens_behind(variant)

    def variant_lengths(self) -> dict[str, list[int]]:
        """Field of `data.variants` -> its tokens, for each prompt."""
        columns = self.items[0].variants if self.items else {}
        return {name: [len(i.variants[name]) // 4 for i in self.items] for name in columns}

    def solutions(self) -> list[bytes]:
        """int32, the data's response to each prompt; [] where `data.solution` is not set."""
        found = [item.solution for item in self.items]
        return found if any(found) else []

    @property
    def shares(self) -> tuple[SourceView, ...]:
        """Ranges and weights of several sources, for the order of prompts; () for a single one."""
        if len(self.sources) < 2:
            return ()
        return tuple(SourceView(s.first, s.count, s.weight) for s in self.sources)

    def summary_line(self) -> str:
        """Describe the data set in one line, for the log.

        >>> Dataset("train.jsonl", []).summary_line()
        'train.jsonl: 0 prompts'
        """
        notes = [f"{self.name}: {counted(len(self), 'prompt')}"]
        if self.skipped:
            notes.append(f"{len(self.skipped)} bad lines skipped")
        for what, count in (
            ("too long and left out", sum(source.dropped for source in self.sources)),
            ("cut", sum(source.cut for source in self.sources)),
            ("without a solution that fits", sum(source.unsolved for source in self.sources)),
        ):
            notes += [f"{count} {what}"] if count else []
        sought = (source.answer or "none" for source in self.sources if source.sought)
        if answers := " and ".join(dict.fromkeys(sought)):
            notes.append(f"answer: {answers}")
        notes += [source.note for source in self.sources if source.note]
        return ", ".join(notes)
