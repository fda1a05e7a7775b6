"""Reward `python`: any importable callable, with the signature it already has.

Known by their parameters' names: TRL's `(prompts, completions, **columns)` that
returns a list, verl's `(data_source, solution_str, ground_truth, extra_info)` that
returns a number or a dict with "score", and `(sample)` with everything. Sync or
async. The current directory is importable, as it is for `python -m`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, cast

from pipeline.plugins import RewardOptions, register
from pipeline.verbs import Score
from pipeline.views import Sampled


class PythonOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `python` reward."""

    function: str
    """`package.module:callable`."""

    def problems(self, group_size: int) -> Iterator[str]:
        yield from super().problems(group_size)
        try:
            _arguments_for(imported(self.function))
        except ValueError as error:
            yield f"function is {self.function!r}: {error}"


@register("reward", "python")
class Python:
    Options = PythonOptions

    def __init__(self, options: PythonOptions) -> None:
        self._function = imported(options.function)
        self._arguments = _arguments_for(self._function)

    def score(self, sample: Sampled) -> float | Score:
        result = self._function(**self._arguments(sample))
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        if isinstance(result, list | tuple):
            # TRL: one reward a completion, and there is one completion
            results = cast(list[Any], result)
            if len(results) != 1:
                raise ValueError(f"returned {len(results)} rewards for 1 completion")
            result = results[0]
        return result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def imported(name: str) -> Callable[..., Any]:
    """The callable behind `package.module:callable`. Raises ValueError with the reason."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError("expected package.module:callable")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module does when imported
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"found {type(found).__name__}, expected a callable")
    return found


def _arguments_for(function: Callable[..., Any]) -> Callable[[Sampled], dict[str, Any]]:
    """How to call it, from the names of its parameters. Raises ValueError if they are unknown."""
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def fitting(arguments: Mapping[str, Any]) -> dict[str, Any]:
        if everything:
            return dict(arguments)
        return {name: value for name, value in arguments.items() if name in parameters}

    if "solution_str" in parameters:
        return lambda sample: fitting(_verl(sample))
    if "completions" in parameters:
        return lambda sample: fitting(_trl(sample))
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind < p.VAR_KEYWORD]
    needed = [p for p in needed if p.kind is not p.VAR_POSITIONAL]
    if len(needed) == 1 and needed[0].kind is not needed[0].POSITIONAL_ONLY:
        return lambda sample: {needed[0].name: sample}
    raise ValueError(
        f"takes ({', '.join(parameters)}); expected (prompts, completions, **columns), "
        "(data_source, solution_str, ground_truth, extra_info) or (sample)"
    )


def _verl(sample: Sampled) -> dict[str, Any]:
    model = sample.columns.get("reward_model")
    nested = cast(dict[str, Any], model) if isinstance(model, dict) else {}
    return {
        "data_source": sample.columns.get("data_source", ""),
        "solution_str": sample.response,
        "ground_truth": nested.get("ground_truth", sample.answer),
        "extra_info": sample.columns.get("extra_info") or {},
    }


def _trl(sample: Sampled) -> dict[str, Any]:
    columns = {
        name: [value]
        for name, value in sample.columns.items()
        if name not in ("prompt", "prompts", "completion", "completions")
    }
    return {**columns, "prompts": [sample.prompt], "completions": [sample.response]}
