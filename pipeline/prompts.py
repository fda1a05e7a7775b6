"""A task of the house, or a JSONL file -> prompts with their token ids.

Every line is checked before anything starts: a bad one is named by file and
line, and stops the run or is skipped and counted. Invariant: each item of a
`Dataset` can be sampled from (not empty, and a response fits behind it). Must
not know groups, order or rewards.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from pipeline import configrules
from pipeline.config import Data
from pipeline.text import Tokenizer

TASK_PROMPTS = 20_000
"""Prompts that a task gives for training: more than a run of an hour asks for."""

_SHOWN = 20  # bad lines listed in an error
_BATCH = 1024  # texts encoded at once
_LINE_BYTES = 64 << 20  # a longer one is no prompt


class DataError(Exception):
    """Prompts cannot be used; the text names every bad line, up to twenty."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt."""

    prompt: str
    tokens: bytes  # int32
    answer: str  # what the reward compares with
    columns: dict[str, Any]  # the line as it was, for rewards that read more of it
    tag: str = ""  # a kind of prompt, for budgets ("terms=3")
    where: str = ""  # file and line


class Dataset:
    """Prompts by index, and what was left out."""

    def __init__(self, name: str, items: Sequence[Item], skipped: Sequence[str] = ()) -> None:
        self.name = name
        self.items = tuple(items)
        self.skipped = tuple(skipped)
        """One line for each bad line that was skipped."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def summary(self) -> str:
        """For the log.

        >>> Dataset("train.jsonl", []).summary()
        'train.jsonl: 0 prompts'
        """
        text = f"{self.name}: {len(self)} prompts"
        return f"{text}, {len(self.skipped)} bad lines skipped" if self.skipped else text


def load_train(data: Data, tokenizer: Tokenizer, max_tokens: int) -> Dataset:
    """Prompts to train on. Raises DataError.

    Args:
        data: the section.
        tokenizer: of the model to train.
        max_tokens: limit of a response; prompt and response must fit the model.
    """
    return _load(data.train, "train", TASK_PROMPTS, data, tokenizer, max_tokens)


def load_held_out(data: Data, tokenizer: Tokenizer, max_tokens: int) -> Dataset:
    """Prompts to evaluate on, the same for every seed. Raises DataError."""
    if isinstance(data.held_out, str):
        return _load(data.held_out, "held_out", 0, data, tokenizer, max_tokens)
    if data.held_out == 0:
        return Dataset("no held-out prompts", [])
    return _load(data.train, "held_out", data.held_out, data, tokenizer, max_tokens)


def _load(
    source: str, split: str, count: int, data: Data, tokenizer: Tokenizer, max_tokens: int
) -> Dataset:
    problems: list[str] = []
    if source in configrules.tasks():
        task = importlib.import_module(f"pipeline.tasks.{source}")
        name = f"{source} ({split.replace('_', ' ')})"
        rows = _task_rows(name, task.generate(split, count))
        data = Data(train=source)  # a task's fields have the house's names
    else:
        name = source
        rows = _file_rows(Path(source), problems)
    items = list(_items(rows, data, tokenizer, max_tokens, problems))
    if problems and data.bad_lines == "stop":
        more = len(problems) - _SHOWN
        tail = [f"and {more} more"] if more > 0 else []
        cure = "mend them, or leave them out with data.bad_lines: skip"
        raise DataError("\n".join([*problems[:_SHOWN], *tail, cure]))
    if not items:
        reason = f"; first: {problems[0]}" if problems else ""
        raise DataError(f"{name}: no usable prompt{reason}")
    return Dataset(name, items, problems)


Row = tuple[str, dict[str, Any]]  # where, the line


def _task_rows(name: str, generated: Sequence[Any]) -> Iterator[Row]:
    for index, item in enumerate(generated):
        yield f"{name} {index}", dict(item)


def _file_rows(path: Path, problems: list[str]) -> Iterator[Row]:
    decoder = msgspec.json.Decoder()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE_BYTES), b""), start=1):
                if len(line) == _LINE_BYTES:
                    raise DataError(f"{path}:{number}: a line of more than {_LINE_BYTES} bytes")
                if not line.strip():
                    continue
                try:
                    row = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    problems.append(f"{path}:{number}: not JSON: {error}")
                    continue
                if not isinstance(row, dict):
                    kind = _kind(row)
                    problems.append(f"{path}:{number}: found {kind}, expected an object")
                    continue
                yield f"{path}:{number}", cast(dict[str, Any], row)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _items(
    rows: Iterator[Row], data: Data, tokenizer: Tokenizer, max_tokens: int, problems: list[str]
) -> Iterator[Item]:
    """Usable rows as items; the tokenizer is asked for many at once."""
    batch: list[tuple[str, dict[str, Any], str, str]] = []
    for where, row in rows:
        prompt, answer = row.get(data.prompt), row.get(data.answer)
        complaint = _complaint(row, data)
        if complaint:
            problems.append(f"{where}: {complaint}")
            continue
        batch.append((where, row, str(prompt), str(answer)))
        if len(batch) == _BATCH:
            yield from _encoded(batch, tokenizer, max_tokens, problems)
            batch.clear()
    yield from _encoded(batch, tokenizer, max_tokens, problems)


def _complaint(row: dict[str, Any], data: Data) -> str:
    for key, field, kinds, rule in (
        ("data.prompt", data.prompt, (str,), "text"),
        ("data.answer", data.answer, (str, int, float), "text or a number"),
    ):
        if field not in row:
            fields = ", ".join(row) or "none"
            return f"no field {field!r} ({key}); fields: {fields[:200]}"
        value = row[field]
        if not isinstance(value, kinds) or isinstance(value, bool):
            return f"{field} is {_kind(value)}, expected {rule}"
    return "" if row[data.prompt] else f"{data.prompt} is empty"


def _encoded(
    batch: Sequence[tuple[str, dict[str, Any], str, str]],
    tokenizer: Tokenizer,
    max_tokens: int,
    problems: list[str],
) -> Iterator[Item]:
    prompts = [prompt for _, _, prompt, _ in batch]
    try:
        encoded: list[list[int] | str] = [*tokenizer.encode_all(prompts)]
    except ValueError:  # some one of them: find out which
        encoded = [_ids_or_complaint(prompt, tokenizer) for prompt in prompts]
    limit = tokenizer.max_model_tokens
    for (where, row, prompt, answer), ids in zip(batch, encoded, strict=True):
        if isinstance(ids, str):
            problems.append(f"{where}: prompt {ids}")
        elif not ids:
            problems.append(f"{where}: prompt has no token")
        elif limit and len(ids) + max_tokens > limit:
            problems.append(
                f"{where}: prompt of {len(ids)} tokens and sampling.max_tokens {max_tokens} "
                f"are {len(ids) + max_tokens}, the model takes {limit}"
            )
        else:
            tokens = np.asarray(ids, dtype="<i4").tobytes()
            tag = f"terms={row['terms']}" if isinstance(row.get("terms"), int) else ""
            yield Item(
                prompt=prompt, tokens=tokens, answer=answer, columns=row, tag=tag, where=where
            )


def _ids_or_complaint(prompt: str, tokenizer: Tokenizer) -> list[int] | str:
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        return str(error)


_KINDS: dict[type[Any], str] = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")
