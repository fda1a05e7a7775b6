"""Loads prompts with their token ids from built-in tasks, files and folders.

Every row is checked before anything starts: a bad one is named by file and
line, and stops the run or is skipped and counted. Invariant: each item of a
`Dataset` can be sampled from (it is not empty and leaves room for a response), and
the same files give the same items in the same order. Must not know groups, order
or rewards.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from pipeline.config import rules
from pipeline.config.schema import DataConfig, SourceConfig
from pipeline.data.chat_template import ChatTemplate
from pipeline.data.files import DataError, Row, field_of, kind_of, rows_of
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.variants import column_and_share, tokens_of
from pipeline.plugins.views import SourceView

__all__ = ["DataError", "Dataset", "Item", "load_held_out", "load_train"]

TASK_PROMPTS = 20_000
"""Training prompts of a task: more than a run of an hour uses."""
TASK_HELD_OUT = 256
"""Prompts of a task that is named as a held-out set: the default of `data.held_out`."""

ANSWERS = ("answer", "reward_model.ground_truth", "solution")
"""Fields tried if no answer is named: of darts and TRL, verl, TRL."""

_SHOWN = 20  # bad lines listed in an error
_BATCH = 1024  # texts encoded at once


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt."""

    prompt: str  # as the model reads it, after the chat template
    tokens: bytes  # int32
    answer: str  # what the reward compares with; "" if the data has none
    columns: dict[str, Any]  # the whole row, for rewards that use more of it
    tag: str = ""  # kind of prompt, for budgets ("terms=3")
    where: str = ""  # file and line
    messages: Sequence[dict[str, Any]] = ()  # the prompt, where the row has messages
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
        notes = [f"{self.name}: {len(self)} prompts"]
        if self.skipped:
            notes.append(f"{len(self.skipped)} bad lines skipped")
        for what, count in (
            ("too long and left out", sum(source.dropped for source in self.sources)),
            ("cut", sum(source.cut for source in self.sources)),
        ):
            notes += [f"{count} {what}"] if count else []
        sought = (source.answer or "none" for source in self.sources if source.sought)
        if answers := " and ".join(dict.fromkeys(sought)):
            notes.append(f"answer: {answers}")
        return ", ".join(notes)


def load_train(data: DataConfig, tokenizer: Tokenizer, max_tokens: int) -> Dataset:
    """Load the prompts to train on. Raises DataError.

    Args:
        data: the section of the configuration.
        tokenizer: that of the model to train.
        max_tokens: most tokens of a response; prompt and response must fit the model.
    """
    sources = (SourceConfig(path=data.train),) if isinstance(data.train, str) else data.train
    return _Loading(data, tokenizer, max_tokens).dataset(sources, "train", TASK_PROMPTS)


def load_held_out(data: DataConfig, tokenizer: Tokenizer, max_tokens: int) -> Dataset:
    """Load the prompts to evaluate on, the same for every seed. Raises DataError.

    A number in `data.held_out` counts for tasks only.
    """
    loading = _Loading(data, tokenizer, max_tokens)
    if isinstance(data.held_out, str):
        return loading.dataset((SourceConfig(path=data.held_out),), "held_out", TASK_HELD_OUT)
    if data.held_out == 0 or data.train not in rules.tasks():
        return Dataset("no held-out prompts", [])
    return loading.dataset((SourceConfig(path=data.train),), "held_out", data.held_out)


class _Prepared(msgspec.Struct):
    """A row that may become an item."""

    where: str
    row: dict[str, Any]
    given: Any  # the prompt as in the row
    prompt: str
    templated: bool
    answer: str
    variants: dict[str, str]


class _Loading:
    """Reads the sources of one data set, and collects problems with rows."""

    def __init__(self, data: DataConfig, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._data, self._tokenizer, self._max_tokens = data, tokenizer, max_tokens
        self._chat = ChatTemplate(tokenizer.directory, data)
        self._problems: list[str] = []
        self._columns: tuple[str, ...] = ()  # of variants
        self._dropped = self._cut = 0  # of the source being read

    def dataset(self, sources: Sequence[SourceConfig], split: str, count: int) -> Dataset:
        """Load all sources, one after another. `count`: prompts of a task."""
        items: list[Item] = []
        self._columns = self._data.variants if split == "train" else ()
        loaded: list[LoadedSource] = []
        empty = ""
        for source in sources:
            first, before = len(items), len(self._problems)
            self._dropped = self._cut = 0
            name, rows = self._rows(source.path, split, count)
            fields = _Fields(source, self._data)
            items += self._items(rows, fields, source.tag)
            if len(items) == first and not empty:
                why = [*self._problems[before : before + 1], *self._dropped_note()]
                empty = f"{name}: no usable prompt{'; first: ' if why else ''}{'; '.join(why)}"
            loaded.append(
                LoadedSource(
                    name=name,
                    first=first,
                    count=len(items) - first,
                    weight=source.weight,
                    answer=fields.answer or "",
                    sought=fields.sought,
                    dropped=self._dropped,
                    cut=self._cut,
                )
            )
        if self._problems and self._data.bad_lines == "stop":
            more = len(self._problems) - _SHOWN
            tail = [f"and {more} more"] if more > 0 else []
            cure = "correct them, or leave them out with data.bad_lines: skip"
            raise DataError("\n".join([*self._problems[:_SHOWN], *tail, cure]))
        if empty:
            raise DataError(f"{empty}; expected at least one, correct the file or name another")
        return Dataset(", ".join(source.name for source in loaded), items, self._problems, loaded)

    def _dropped_note(self) -> list[str]:
        return [f"all {self._dropped} are too long"] if self._dropped else []

    def _rows(self, path: str, split: str, count: int) -> tuple[str, Iterator[Row]]:
        if path in rules.tasks():
            task = importlib.import_module(f"pipeline.tasks.{path}")
            name = f"{path} ({split.replace('_', ' ')})"
            given = task.generate(split, count)
            return name, ((f"{name} {index}", dict(item)) for index, item in enumerate(given))
        return path, rows_of(path, split, self._problems.append)

    def _items(self, rows: Iterator[Row], fields: _Fields, tag: str) -> Iterator[Item]:
        """Turn usable rows into items; many are tokenized at once."""
        batch: list[_Prepared] = []
        for where, row in rows:
            try:
                batch.append(self._prepared(where, row, fields))
            except ValueError as error:
                self._problems.append(f"{where}: {error}")
                continue
            if len(batch) == _BATCH:
                yield from self._encoded(batch, tag)
                batch.clear()
        yield from self._encoded(batch, tag)

    def _prepared(self, where: str, row: dict[str, Any], fields: _Fields) -> _Prepared:
        """Prepare a row. Raises ValueError for a bad one."""
        prompt, answer = fields.read_row(row)
        try:
            text, templated = self._chat.prompt_text(prompt)
        except ValueError as error:
            raise ValueError(f"{fields.prompt} {error}") from error
        if not text:
            raise ValueError(f"{fields.prompt} is empty, expected text")
        variants = {name: _column(row, name) for name in self._columns}
        return _Prepared(where, row, prompt, text, templated, answer, variants)

    def _encoded(self, batch: Sequence[_Prepared], tag: str) -> Iterator[Item]:
        encoded = self._ids([prepared.prompt for prepared in batch])
        behind = {name: self._ids([p.variants[name] for p in batch]) for name in self._columns}
        for number, prepared in enumerate(batch):
            variants = {name: found[number] for name, found in behind.items()}
            ids = encoded[number]
            if isinstance(ids, list):
                ids = self._fitting(prepared, ids, variants)
            if isinstance(ids, str):
                self._problems.append(f"{prepared.where}: prompt {ids}")
            elif ids:
                terms = prepared.row.get("terms")
                own = f"terms={terms}" if isinstance(terms, int) else ""
                yield Item(
                    prompt=prepared.prompt,
                    tokens=np.asarray(ids, dtype="<i4").tobytes(),
                    answer=prepared.answer,
                    columns=prepared.row,
                    tag=tag or own,
                    where=prepared.where,
                    messages=prepared.given if isinstance(prepared.given, list) else (),
                    variants={
                        name: np.asarray(found, dtype="<i4").tobytes()
                        for name, found in variants.items()
                        if isinstance(found, list)
                    },
                )

    def _ids(self, texts: Sequence[str]) -> list[list[int] | str]:
        """Return the ids of each text, or why it has none."""
        try:
            return [*self._tokenizer.encode_all(texts)]
        except ValueError:  # at least one is bad: find out which
            return [_ids_or_complaint(text, self._tokenizer) for text in texts]

    def _fitting(
        self, prepared: _Prepared, ids: list[int], variants: Mapping[str, list[int] | str]
    ) -> list[int] | str:
        """Return the prompt's ids, [] to leave it out, or a complaint.

        `variants`: what may stand behind it, or what is wrong with that; the longest counts too.
        """
        if not ids:
            return "has no token, expected at least one"
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in self._tokenizer.bos:
            return (
                "begins with the beginning-of-sequence token twice: the chat template adds it; "
                "remove it from the text"
            )
        for name, found in variants.items():
            if isinstance(found, str):
                return f"may be followed by {name}, which {found}"
        behind = max(map(len, variants.values()), default=0)
        whole = f"of {len(ids)} tokens"
        if behind:
            whole += f", with up to {behind} of data.variants behind them,"
        wanted, model = self._data.max_prompt_tokens, self._tokenizer.max_model_tokens
        room = model - self._max_tokens if model else wanted
        most = min(wanted, room) if wanted else room
        if not (wanted or model) or len(ids) <= (limit := most - behind):
            return ids
        if self._data.long_prompts == "drop":
            self._dropped += 1
            return []
        if self._data.long_prompts == "cut" and limit > 0:
            if prepared.templated:
                return (
                    f"{whole} is longer than {most}, and text of a chat template is not cut; set "
                    "data.long_prompts: drop"
                )
            self._cut += 1
            prepared.prompt = self._tokenizer.decode(ids[-limit:])
            return ids[-limit:]
        cure = "leave long prompts out with data.long_prompts: drop"
        if most == wanted:
            return f"{whole.rstrip(',')}, but data.max_prompt_tokens is {wanted}; {cure}"
        return (
            f"{whole} and sampling.max_tokens {self._max_tokens} "
            f"are {len(ids) + behind + self._max_tokens}, the model takes {model}; {cure}"
        )


class _Fields:
    """Finds prompt and answer in the rows of a source."""

    def __init__(self, source: SourceConfig, data: DataConfig) -> None:
        task = source.path in rules.tasks()  # with fixed field names
        self.prompt = "prompt" if task else source.prompt or data.prompt
        named = "answer" if task else source.answer or data.answer
        self.sought = not named
        self.answer: str | None = named or None
        """None until a row has been seen; "" if it had none of `ANSWERS`."""

    def read_row(self, row: dict[str, Any]) -> tuple[Any, str]:
        """Return prompt and answer of a row. Raises ValueError for a bad one."""
        there, prompt = field_of(row, self.prompt)
        if not there:
            raise ValueError(_missing(row, "data.prompt", self.prompt))
        if self.answer is None:
            given = (name for name in ANSWERS if field_of(row, name)[1] is not None)
            self.answer = next(given, "")
        if not self.answer:
            return prompt, ""
        there, answer = field_of(row, self.answer)
        if not there:
            raise ValueError(_missing(row, "data.answer", self.answer))
        if isinstance(answer, list | dict) and self.answer == "reward_model.ground_truth":
            # in verl it may be any value that the reward function understands
            return prompt, msgspec.json.encode(answer).decode()
        if not isinstance(answer, str | int | float) or isinstance(answer, bool):
            raise ValueError(f"{self.answer} is {kind_of(answer)}, expected text or a number")
        return prompt, str(answer)


def _missing(row: dict[str, Any], key: str, field: str) -> str:
    fields = ", ".join(row) or "none"
    return f"no field {field!r} ({key}); fields: {fields[:200]}; name one of these"


def _ids_or_complaint(prompt: str, tokenizer: Tokenizer) -> list[int] | str:
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        return str(error)


def _column(row: dict[str, Any], field: str) -> str:
    """Return the text of a field that a variant may name. Raises ValueError for a bad row."""
    there, found = field_of(row, field)
    if not there:
        raise ValueError(_missing(row, "data.variants", field))
    if not isinstance(found, str | int | float) or isinstance(found, bool):
        raise ValueError(f"{field} is {kind_of(found)}, expected text (data.variants)")
    return str(found)
