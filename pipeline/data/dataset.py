"""Loads prompts with their token ids from built-in tasks, files and folders.

Every row is checked before anything starts: a bad one is named by file and
line, and stops the run or is skipped and counted. Invariant: each item of a
`Dataset` can be sampled from (it is not empty and leaves room for a response), and
the same files give the same items in the same order, with no column that nobody
reads. Must not know groups, order or rewards.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from pipeline.config import hub, rules
from pipeline.config.schema import DataConfig, SourceConfig
from pipeline.data.chat_template import ChatTemplate
from pipeline.data.fields import ANSWERS, Fields, solution_of, variant_of
from pipeline.data.files import DataError, Row, has_held_out, rows_of, split_note
from pipeline.data.items import Dataset, Item, LoadedSource
from pipeline.data.plain_values import plain
from pipeline.data.prompt_columns import columns_beside, columns_used, template_arguments
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import EVERYTHING, Wanted

__all__ = [
    "ANSWERS",
    "DataError",
    "Dataset",
    "Item",
    "LoadedSource",
    "held_out_beside",
    "load_held_out",
    "load_train",
]

TASK_PROMPTS = 20_000
"""Training prompts of a task: more than a run of an hour uses."""
TASK_HELD_OUT = 256
"""Prompts of a task that is named as a held-out set: the default of `data.held_out`."""

_SHOWN = 20  # bad lines listed in an error
_BATCH = 1024  # texts encoded at once


def load_train(
    data: DataConfig, tokenizer: Tokenizer, max_tokens: int, wanted: Wanted = EVERYTHING
) -> Dataset:
    """Load the prompts to train on. Raises DataError.

    Args:
        data: the section of the configuration.
        tokenizer: that of the model to train.
        max_tokens: most tokens of a response; prompt and response must fit the model.
        wanted: what the run reads beside the prompts.
    """
    sources = (SourceConfig(path=data.train),) if isinstance(data.train, str) else data.train
    return _Loading(data, tokenizer, max_tokens, wanted).dataset(sources, "train", TASK_PROMPTS)


def load_held_out(
    data: DataConfig, tokenizer: Tokenizer, max_tokens: int, wanted: Wanted = EVERYTHING
) -> Dataset:
    """Load the prompts to evaluate on, the same for every seed. Raises DataError.

    A number in `data.held_out` is how many of a task, or of the split `test` or `validation` of
    the folder that is trained on; other files have none.
    """
    loading = _Loading(data, tokenizer, max_tokens, wanted)
    if isinstance(data.held_out, str):
        return loading.dataset((SourceConfig(path=data.held_out),), "held_out", TASK_HELD_OUT)
    beside = held_out_beside(data) if data.held_out else ""
    if not beside:
        return Dataset("no held-out prompts", [])
    return loading.dataset((SourceConfig(path=beside),), "held_out", data.held_out)


def held_out_beside(data: DataConfig) -> str:
    """The task or folder that is trained on, where it has held-out prompts too; else ""."""
    train = data.train if isinstance(data.train, str) else ""
    return train if train in rules.tasks() or has_held_out(train) else ""


class _Prepared(msgspec.Struct):
    """A row that may become an item."""

    where: str
    row: dict[str, Any]
    given: Any  # the prompt as in the row
    prompt: str
    templated: bool
    variants: dict[str, str]
    solution: str
    tokens: bytes = b""
    solved: bytes = b""
    behind: dict[str, bytes] = {}


class _Loading:
    """Reads the sources of one data set, and collects problems with rows."""

    def __init__(
        self, data: DataConfig, tokenizer: Tokenizer, max_tokens: int, wanted: Wanted
    ) -> None:
        self._data, self._tokenizer, self._max_tokens = data, tokenizer, max_tokens
        self._wanted = wanted
        self._chat = ChatTemplate(tokenizer.directory, data)
        self._problems: list[str] = []
        self._columns: tuple[str, ...] = ()  # of variants
        self._solution = ""  # field of solutions
        self._dropped = self._cut = 0  # of the source being read
        self._used: set[str] = set()  # columns that are arguments of the template
        self._beside: set[str] = set()  # columns that only look like a part of the prompt

    def dataset(self, sources: Sequence[SourceConfig], split: str, count: int) -> Dataset:
        """Load all sources, one after another. `count`: prompts of a task."""
        items: list[Item] = []
        self._columns = self._data.variants if split == "train" else ()
        self._solution = self._data.solution if split == "train" else ""
        loaded: list[LoadedSource] = []
        empty = ""
        source: SourceConfig
        for source in sources:
            first, before = len(items), len(self._problems)
            self._dropped = self._cut = 0
            name, rows = self._rows(source.path, split, count)
            task = source.path in rules.tasks()
            notes = [] if task else [split_note(source.path, split)]
            self._used, self._beside = set(), set()
            fields = Fields(source, self._data)
            prepared = [*self._fit(rows, fields)]
            self._settle(name, fields, [one.row for one in prepared])
            found = [*self._items(prepared, fields, source.tag)]
            items += found
            if self._used:
                notes.append(f"in the prompt too: {' and '.join(sorted(self._used))}")
            if self._beside:
                notes.append(f"not in the prompt: {' and '.join(sorted(self._beside))}")
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
                    unsolved=sum(not i.solution for i in found) if self._solution else 0,
                    note=", ".join(filter(None, notes)),
                    task=task,
                )
            )
        if self._problems and self._data.bad_lines == "stop":
            more = len(self._problems) - _SHOWN
            tail = [f"and {more} more"] if more > 0 else []
            cure = "correct them, or leave them out with data.bad_lines: skip"
            raise DataError("\n".join([*self._problems[:_SHOWN], *tail, cure]))
        if self._solution and items and not any(item.solution for item in items):
            raise DataError(
                f"no row has a text of at most {self._max_tokens} tokens (sampling.max_tokens) in "
                f"the field {self._solution!r} (data.solution); name the field of the solutions"
            )
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
        rows = rows_of(path, split, self._problems.append)
        if split == "held_out" and isinstance(self._data.held_out, int):  # so many of the split
            rows = itertools.islice(rows, count)
        return hub.pinned(path), rows

    def _settle(self, name: str, fields: Fields, rows: Sequence[dict[str, Any]]) -> None:
        """Choose the answer's field, and look for columns that the reward needs."""
        try:
            fields.settle(rows)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        lacks = [
            column
            for column in sorted(self._wanted.needed)
            if rows and not any(column in row for row in rows)
        ]
        if lacks:
            raise DataError(
                f"{name}: the reward needs {', '.join(lacks)}: no column of this data, which has "
                f"{', '.join(dict.fromkeys(key for row in rows for key in row))[:200]}"
            )

    def _fit(self, rows: Iterator[Row], fields: Fields) -> Iterator[_Prepared]:
        """Prepare the rows whose prompt is usable; many are tokenized at once."""
        batch: list[_Prepared] = []
        for where, row in rows:
            try:
                batch.append(self._prepared(where, row, fields))
            except ValueError as error:
                self._problems.append(f"{where}: {error}")
                continue
            if len(batch) == _BATCH:
                yield from self._encoded(batch)
                batch.clear()
        yield from self._encoded(batch)

    def _prepared(self, where: str, row: dict[str, Any], fields: Fields) -> _Prepared:
        """Prepare a row. Raises ValueError for a bad one."""
        prompt = fields.prompt_of(row)
        arguments = template_arguments(row)
        self._used.update(columns_used(row))
        self._beside.update(columns_beside(row))
        try:
            text, templated = self._chat.prompt_text(prompt, arguments)
        except ValueError as error:
            raise ValueError(f"{fields.prompt} {error}") from error
        if not text.strip():
            raise ValueError(f"{fields.prompt} is empty, expected text")
        variants = {name: variant_of(row, name) for name in self._columns}
        solution = solution_of(row, self._solution) if self._solution else ""
        return _Prepared(where, row, prompt, text, templated, variants, solution)

    def _encoded(self, batch: Sequence[_Prepared]) -> Iterator[_Prepared]:
        encoded = self._ids([prepared.prompt for prepared in batch])
        behind = {name: self._ids([p.variants[name] for p in batch]) for name in self._columns}
        solved = self._ids([p.solution for p in batch]) if self._solution else [[]] * len(batch)
        for number, prepared in enumerate(batch):
            variants = {name: found[number] for name, found in behind.items()}
            ids = encoded[number]
            if isinstance(ids, list):
                ids = self._fitting(prepared, ids, variants)
            solution = solved[number]
            if isinstance(ids, str):
                self._problems.append(f"{prepared.where}: prompt {ids}")
            elif isinstance(solution, str):
                self._problems.append(f"{prepared.where}: {self._solution} {solution}")
            elif ids:
                prepared.tokens = _int32(ids)
                prepared.solved = self._response(solution)
                prepared.behind = {
                    name: _int32(found)
                    for name, found in variants.items()
                    if isinstance(found, list)
                }
                yield prepared

    def _response(self, ids: list[int]) -> bytes:
        """Return a solution as a response that has ended, b"" if it is longer than any may be."""
        end = [] if ids and ids[-1] in self._tokenizer.eos else [self._tokenizer.end]
        fits = 0 < len(ids) <= self._max_tokens - len(end)
        return _int32([*ids, *end]) if fits else b""

    def _items(self, found: Sequence[_Prepared], fields: Fields, tag: str) -> Iterator[Item]:
        """Items of the rows whose answer and columns are usable too."""
        for prepared in found:
            row = prepared.row
            try:
                answer = fields.answer_of(row, self._wanted.answers)
                columns = self._kept(row)
                messages = plain(prepared.given) if isinstance(prepared.given, list) else ()
            except ValueError as error:
                self._problems.append(f"{prepared.where}: {error}")
                continue
            terms = row.get("terms")
            own = f"terms={terms}" if isinstance(terms, int) else ""
            yield Item(
                prompt=prepared.prompt,
                tokens=prepared.tokens,
                answer=answer,
                columns=columns,
                tag=tag or own,
                where=prepared.where,
                messages=messages,
                solution=prepared.solved,
                variants=prepared.behind,
            )

    def _kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the run reads of a row. Raises ValueError with the column that JSON cannot hold."""
        read, columns = self._wanted.columns, dict[str, Any]()
        for name, value in row.items():
            if read is None or name in read:
                try:
                    columns[name] = plain(value)
                except ValueError as error:
                    raise ValueError(f"column {name!r} {error}") from error
        return columns

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
        first = self._tokenizer.first  # where the tokenizer would put it, the template did
        if first is not None and not prepared.templated and ids[0] != first:
            ids = [first, *ids]
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
            begin = ids[:1] if ids[0] == first else []
            kept = ids[len(ids) - limit + len(begin) :]
            prepared.prompt = self._tokenizer.decode(kept)
            return [*begin, *kept]
        cure = "leave long prompts out with data.long_prompts: drop"
        if most == wanted:
            return f"{whole.rstrip(',')}, but data.max_prompt_tokens is {wanted}; {cure}"
        return (
            f"{whole} and sampling.max_tokens {self._max_tokens} "
            f"are {len(ids) + behind + self._max_tokens}, the model takes {model}; {cure}"
        )


def _int32(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def _ids_or_complaint(prompt: str, tokenizer: Tokenizer) -> list[int] | str:
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        return str(error)
