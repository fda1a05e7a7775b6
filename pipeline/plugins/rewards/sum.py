"""Reward `sum`: a weighted sum of other rewards, each a part of it.

A response that one of them fails on, or has no opinion on, has no sum either.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from pipeline.plugins import interfaces, registry
from pipeline.plugins.interfaces import RewardOptions, WorkerOptions, WorkerSettings
from pipeline.plugins.ranges import broken, did_you_mean
from pipeline.plugins.registry import PluginError, register
from pipeline.plugins.rewards._results import (
    Outcome,
    group_outcomes,
    outcomes,
    weighted_sum,
)
from pipeline.plugins.views import Sampled

_EXAMPLE = "[{math: {}, weight: 1}, {python: {function: my_rewards:brief}, weight: 0.2}]"
_OWN = frozenset(RewardOptions.__struct_fields__)


class SumOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `sum` reward."""

    of: tuple[str | dict[str, Any], ...]
    """Each a reward with its options, and `weight` (1) and `name` (the reward's own) of the part.
    How many are given to one call (`batch`) is the sum's own, not the parts'."""

    def problems(self, group_size: int) -> Iterator[str]:
        if not self.of:
            yield f"of is empty, expected rewards, as in {_EXAMPLE}"
        names: set[str] = set()
        for index, given in enumerate(self.of):
            try:
                part = _Part(given)
            except ValueError as error:
                yield f"of [{index}]: {error}"
                continue
            for text in part.options.problems(group_size):
                yield f"of [{index}] {part.plugin}: {text}"
            if part.name in names:
                yield f"of [{index}]: there is a part {part.name!r} already; give this one a `name`"
            names.add(part.name)

    @property
    def parts(self) -> tuple[interfaces.Options, ...]:
        """Options of the parts."""
        return tuple(_Part(given).options for given in self.of)

    def worker_problems(self, workers: WorkerSettings) -> Iterator[str]:
        for index, given in enumerate(self.of):
            with contextlib.suppress(ValueError):  # which `problems` tells of
                part = _Part(given)
                if isinstance(part.options, WorkerOptions):
                    for text in part.options.worker_problems(workers):
                        yield f"of [{index}] {part.plugin}: {text}"


def _asked(part: _Part, name: str) -> frozenset[str] | None:
    found: Any = getattr(part.cls, name, None)
    return cast("frozenset[str] | None", found(part.options) if callable(found) else found)


class _Part:
    """One entry of `of`. Raises ValueError with what does not fit."""

    def __init__(self, given: str | dict[str, Any]) -> None:
        entry = {given: None} if isinstance(given, str) else dict(given)
        weight, name = entry.pop("weight", 1.0), entry.pop("name", None)
        if len(entry) != 1:
            raise ValueError(
                f"found {', '.join(entry) or 'nothing'}, expected one reward, as in {_EXAMPLE}"
            )
        [(self.plugin, options)] = entry.items()
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"weight is {weight!r}, expected a number")
        if not math.isfinite(weight):
            raise ValueError(f"weight is {weight}, expected a finite number")
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"name is {name!r}, expected text")
        self.weight, self.name = float(weight), name or self.plugin
        if self.plugin == "sum":
            raise ValueError("a sum in a sum; put its parts beside the others")
        try:
            self.cls = registry.find_plugin("reward", self.plugin)
        except PluginError as error:
            raise ValueError(str(error)) from error
        self.options = self._converted(options)

    def _converted(self, options: Any) -> interfaces.Options:
        struct = registry.options_type(self.cls)
        given: dict[str, Any] = {} if options is None else options
        if not isinstance(given, dict):
            raise ValueError(f"found {given!r:.60} for {self.plugin}, expected its options")
        if own := sorted(_OWN & given.keys()):
            cure = f"the sum has its own; set reward.sum.{own[0]}"
            raise ValueError(f"{self.plugin}: {', '.join(own)}: {cure}")
        known = {f.name: f.type for f in msgspec.structs.fields(struct) if f.name not in _OWN}
        for name, value in given.items():
            if name not in known:
                hint = did_you_mean(name, known) or f"; options: {', '.join(known)}"
                raise ValueError(f"{self.plugin}.{name}: unknown option{hint}")
            try:
                rule = broken(value, known[name])
            except msgspec.ValidationError as error:
                raise ValueError(f"{self.plugin}.{name}: {error}") from error
            if rule:
                raise ValueError(f"{self.plugin}.{name}: found {value!r}, {rule}")
        try:
            return msgspec.convert(given, struct)
        except msgspec.ValidationError as error:  # a needed option is missing
            raise ValueError(f"{self.plugin}: {error}") from error


@register("reward", "sum")
class Sum:
    Options = SumOptions

    @staticmethod
    def needs_answer(options: SumOptions) -> bool:
        """Returns True if one of its parts needs the answer."""
        return any(registry.needs_answer(part.cls, part.options) for part in map(_Part, options.of))

    @staticmethod
    def columns(options: SumOptions) -> frozenset[str] | None:
        """Columns of the data that the parts may read; None: any."""
        read = [_asked(part, "columns") for part in map(_Part, options.of)]
        known = [names for names in read if names is not None]
        return frozenset[str]().union(*known) if len(known) == len(read) else None

    @staticmethod
    def needed_columns(options: SumOptions) -> frozenset[str]:
        found = (_asked(part, "needed_columns") or () for part in map(_Part, options.of))
        return frozenset[str]().union(*found)

    @staticmethod
    def judges_groups(options: SumOptions) -> bool:
        """Returns True if one of its parts judges whole groups; then the sum is of a group, too."""
        return any(
            registry.judges_groups(part.cls, part.options) for part in map(_Part, options.of)
        )

    def __init__(self, options: SumOptions) -> None:
        parts = [_Part(given) for given in options.of]
        self._rewards = {part.name: part.cls(part.options) for part in parts}
        self.parts = tuple(self._rewards.values())
        self._weights = {part.name: part.weight for part in parts}

    def score(self, sample: Sampled) -> Outcome:
        [result] = self.score_all([sample])
        return result

    def score_all(self, samples: Sequence[Sampled]) -> list[Outcome]:
        return self._sums(
            {name: outcomes(r, samples) for name, r in self._rewards.items()}, samples
        )

    def score_group(self, samples: Sequence[Sampled]) -> list[Outcome]:
        whole = {name: hasattr(reward, "score_group") for name, reward in self._rewards.items()}
        judges = {name: group_outcomes if whole[name] else outcomes for name in whole}
        found = {name: judges[name](r, samples) for name, r in self._rewards.items()}
        return self._sums(found, samples)

    def _sums(self, found: dict[str, list[Outcome]], samples: Sequence[Sampled]) -> list[Outcome]:
        return [
            weighted_sum({n: of[i] for n, of in found.items()}, self._weights, without=False)
            for i in range(len(samples))
        ]

    def complaint(self, sample: Sampled) -> str:
        """The first part's that has one."""
        for name, reward in self._rewards.items():
            text = reward.complaint(sample) if hasattr(reward, "complaint") else ""
            if not sample.answer and getattr(reward, "needs_answer", False):
                text = text or "there is none, and it compares with one"
            if text:
                return f"{name}: {text}"
        return ""
