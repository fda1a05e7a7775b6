"""Reward `python`: your own functions, with the signature that they already have.

TRL's `(prompts, completions, **columns)` that returns a list, verl's `(data_source,
solution_str, ground_truth, extra_info)` that returns a number or a dict with "score", also its form
for a batch, and `(sample)` with everything. Sync or async. Several are summed with weights, each is
a part of the reward. The current directory is importable, as it is for `python -m`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.plugins.interfaces import RewardOptions
from pipeline.plugins.registry import register
from pipeline.plugins.rewards._functions import Function
from pipeline.plugins.rewards._results import Outcome, outcomes, weighted_sum
from pipeline.plugins.views import Sampled


class PythonOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `python` reward."""

    function: str | tuple[str, ...]
    """`package.module:callable` or `file.py:callable` (`file.py` alone: its `compute_score`); or a
    list of them, whose rewards are summed."""
    weights: tuple[float, ...] = ()
    """Of the functions, in their order; empty: 1 each."""
    arguments: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    """Given to every call, by name; verl calls them `reward_kwargs`."""

    def problems(self, group_size: int) -> Iterator[str]:
        functions = _listed(self.function)
        if not functions:
            yield "function is an empty list, expected at least one name"
        known: dict[str, str] = {}
        for name in functions:
            try:
                short = Function(name, self.arguments).name
            except ValueError as error:
                yield f"function is {name!r}: {error}"
                continue
            if short in known:
                yield f"function is {name!r}: {known[short]} has the same name, {short!r}; rename"
            known[short] = name
        if self.weights and len(self.weights) != len(functions):
            yield f"weights is {len(self.weights)} numbers for {len(functions)} functions"


@register("reward", "python")
class Python:
    Options = PythonOptions

    @staticmethod
    def columns(options: PythonOptions) -> frozenset[str] | None:
        """Columns of the data that the functions may read; None: any."""
        read = [function.columns for function in _functions(options)]
        known = [names for names in read if names is not None]
        return frozenset[str]().union(*known) if len(known) == len(read) else None

    @staticmethod
    def needed_columns(options: PythonOptions) -> frozenset[str]:
        return frozenset[str]().union(*(f.needed_columns for f in _functions(options)))

    def __init__(self, options: PythonOptions) -> None:
        functions = _functions(options)
        self.folders = tuple(dict.fromkeys(filter(None, (f.folder for f in functions))))
        """Where the functions' sources lie."""
        self._functions = {function.name: function for function in functions}
        weights = options.weights or (1.0,) * len(functions)
        self._weights = dict(zip(self._functions, weights, strict=True))

    def score(self, sample: Sampled) -> Any:
        [result] = self.score_all([sample])
        return result

    def score_all(self, samples: Sequence[Sampled]) -> Sequence[Any]:
        if len(self._functions) == 1 and self._weights == {next(iter(self._weights)): 1.0}:
            return next(iter(self._functions.values())).results(samples)
        found = {n: outcomes(_Alone(f), samples) for n, f in self._functions.items()}
        return [self._sum({n: of[i] for n, of in found.items()}) for i in range(len(samples))]

    def _sum(self, given: Mapping[str, Outcome]) -> Outcome:
        return weighted_sum(given, self._weights, without=True)


class _Alone:
    """One function as a reward."""

    def __init__(self, function: Function) -> None:
        self.score_all = function.results


def _functions(options: PythonOptions) -> list[Function]:
    return [Function(name, options.arguments) for name in _listed(options.function)]


def _listed(function: str | tuple[str, ...]) -> tuple[str, ...]:
    return (function,) if isinstance(function, str) else function
