"""Joins all held-out prompts of a run into one data set, with a range of indices for each set.

First those of `data.held_out`, then those of `eval.sets` in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeline.config import rules
from pipeline.config.evaluation import EvalConfig, EvalFileConfig
from pipeline.config.schema import Config
from pipeline.data.dataset import (
    TASK_HELD_OUT,
    DataError,
    Dataset,
    LoadedSource,
    held_out_beside,
    load_held_out,
)
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import wanted_of
from pipeline.plugins.views import EvalSet


class HeldOut(msgspec.Struct, frozen=True):
    data: Dataset
    sets: tuple[EvalSet, ...]

    def __len__(self) -> int:
        return len(self.data)


def load_eval_sets(config: Config, tokenizer: Tokenizer) -> HeldOut:
    """Load all prompts that the run evaluates on. Raises DataError, also where there are none and
    `eval.best` asks for a figure of them."""
    limit, wanted = config.eval.max_tokens or config.sampling.max_tokens, wanted_of(config)
    parts = [("", load_held_out(config.data, tokenizer, limit, wanted))]
    for name, given in config.eval.sets.items():
        file: EvalFileConfig = _file(given)
        data = msgspec.structs.replace(config.data, held_out=file.path)
        if file.path in rules.tasks():
            count = file.prompts or TASK_HELD_OUT
            data = msgspec.structs.replace(config.data, train=file.path, held_out=count)
        found = load_held_out(data, tokenizer, limit, wanted)
        items = found.items[: file.prompts or None]
        parts.append((name, Dataset(found.name, items, found.skipped, found.sources)))
    found = join_sets(parts, config.eval)
    if config.eval.best and (why := nothing_held_out(config)):
        raise DataError(f"eval.best is {config.eval.best!r}, but {why}")
    return found


def nothing_held_out(config: Config) -> str:
    """Why a run has no prompts for evaluations; "" if it has some."""
    data = config.data
    if (
        config.eval.sets
        or isinstance(data.held_out, str)
        or (data.held_out and held_out_beside(data))
    ):
        return ""
    return (
        f"data.held_out is {data.held_out} and data.train has no split test or validation: "
        "nothing is held out, so nothing is evaluated; name prompts with data.held_out=FILE"
    )


def join_sets(parts: Sequence[tuple[str, Dataset]], section: EvalConfig) -> HeldOut:
    """Join sets into one data set.

    Args:
        parts: sets by name, '' for `data.held_out`; empty ones are left out.
    """
    sets: list[EvalSet] = []
    sources: list[LoadedSource] = []
    first = 0
    for name, data in parts:
        given: EvalFileConfig = _file(section.sets[name]) if name else EvalFileConfig(path="")
        samples = given.samples or section.samples
        k = given.k or (section.k if samples == section.samples else ()) or (samples,)
        if len(data):
            sets.append(EvalSet(name=name, first=first, count=len(data), samples=samples, k=k))
        for source in data.sources:  # a set may use only its first prompts
            count = min(source.count, len(data) - source.first)
            where = {"first": first + source.first, "count": count}
            sources.append(msgspec.structs.replace(source, **where))
        first += len(data)
    items = [item for _, data in parts for item in data.items]
    skipped = [line for _, data in parts for line in data.skipped]
    names = [data.name for _, data in parts if len(data)]
    name = ", ".join(names) or parts[0][1].name
    return HeldOut(Dataset(name, items, skipped, sources), tuple(sets))


def _file(given: str | EvalFileConfig) -> EvalFileConfig:
    return EvalFileConfig(path=given) if isinstance(given, str) else given
