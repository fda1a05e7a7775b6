"""A user's reward function, found by name and called with the arguments that it is written for.

Known by the names of its parameters: TRL's (`prompts`, `completions`, columns of the data),
called once for all responses, as is verl's for a batch (`solution_strs`, `ground_truths`, ...);
verl's (`solution_str`, `ground_truth`, ...) and `(sample)`, called for each.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from pipeline.plugins.actions import Score
from pipeline.plugins.rewards._results import as_number, awaited, exited
from pipeline.plugins.views import Sampled

_TRL = ("prompts", "completions", "completion_ids", "completions_ids")
_GIVEN = (*_TRL, "trainer_state", "log_extra", "log_metric")  # whatever the columns are
_VERL, _VERL_BATCH = "solution_str", "solution_strs"
_VERL_COLUMNS = frozenset({"data_source", "reward_model", "extra_info"})
_VERL_NAME = "compute_score"  # where a file is named without a function


class TrainerState(msgspec.Struct, frozen=True, kw_only=True):
    """The part of transformers' TrainerState that a stage knows; TRL calls it `trainer_state`."""

    global_step: int
    max_steps: int
    epoch: float  # share of the run that is done: a run counts as one epoch
    num_train_epochs: int = 1
    log_history: tuple[dict[str, float], ...] = ()
    is_world_process_zero: bool = True
    is_local_process_zero: bool = True


class Function:
    """One function; `results` calls it. Raises ValueError if it is not found, or its parameters
    are of no known kind.

    Args:
        name: `package.module:callable`, `file.py:callable`, or `file.py` for `compute_score`.
        arguments: given to every call, by name.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._function = imported(name)
        self.name: str = getattr(self._function, "__name__", name.rpartition(":")[2])
        self._arguments = arguments
        parameters = inspect.signature(self._function).parameters
        self._known = set(parameters)
        self._everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._needed = [
            name
            for name, p in parameters.items()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        self._ask = self._kind(parameters)
        unknown = [given for given in arguments if given not in self._known]
        if unknown and not self._everything:
            raise ValueError(f"does not take {', '.join(unknown)}")

    def _kind(
        self, parameters: Mapping[str, inspect.Parameter]
    ) -> Callable[[Sequence[Sampled]], list[Any]]:
        if next(iter(parameters), "") == "self":
            raise ValueError("is a method of a class: name that of an object, or a function")
        if "queries" in parameters and "labels" in parameters:
            raise ValueError(
                f"takes ({', '.join(parameters)}), as in OpenRLHF; expected (prompts, completions, "
                "answer, **columns), which returns a list: a query is prompt and completion"
            )
        if _VERL_BATCH in parameters:
            return self._batch
        if _VERL in parameters:
            return lambda samples: self._each([self._fitting(_verl(s)) for s in samples])
        if any(name in parameters for name in _TRL):
            return self._together
        if isinstance(self._function, type):
            raise ValueError("is a class: name an object of it, or a function")
        needed = [
            p
            for p in parameters.values()
            if p.default is p.empty and p.kind < p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
        ]
        needed = [p for p in needed if p.name not in self._arguments]
        if len(needed) == 1 and needed[0].kind is not needed[0].POSITIONAL_ONLY:
            name = needed[0].name
            return lambda samples: self._each([{name: s, **self._arguments} for s in samples])
        raise ValueError(
            f"takes ({', '.join(parameters)}); expected (prompts, completions, **columns), "
            "(data_source, solution_str, ground_truth, extra_info), the same for a batch "
            "(data_sources, solution_strs, ...) or (sample)"
        )

    @property
    def columns(self) -> frozenset[str] | None:
        """Columns of the data that it may read; None: any."""
        if _VERL in self._known or _VERL_BATCH in self._known:
            return _VERL_COLUMNS
        if self._everything or not any(name in self._known for name in _TRL):
            return None
        return frozenset(self._known - {*_GIVEN})

    @property
    def needed_columns(self) -> frozenset[str]:
        """Columns without which it cannot be called."""
        if self._ask != self._together:
            return frozenset()
        return frozenset({*self._needed} - {*_GIVEN, *self._arguments})

    @property
    def folder(self) -> str:
        """Where its source lies; "" if that is not known."""
        return folder_of(self._function)

    def results(self, samples: Sequence[Sampled]) -> list[Any]:
        """One for each: what the function returned, an exception that it raised, or None where
        a function of TRL's kind has no opinion. Raises what a call for all of them raises."""
        return self._ask(samples)

    def _fitting(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        every = {**arguments, **self._arguments}
        if self._everything:
            return every
        return {name: value for name, value in every.items() if name in self._known}

    def _each(self, calls: Sequence[dict[str, Any]]) -> list[Any]:
        """One call for each response; coroutines run together."""
        found: list[Any] = []
        for arguments in calls:
            try:
                found.append(_given(self._function(**arguments)))
            except Exception as error:
                found.append(error)
            except SystemExit as error:
                found.append(exited(error))
        waiting = [index for index, result in enumerate(found) if inspect.isawaitable(result)]
        if waiting:
            ended = awaited(_gathered([found[index] for index in waiting]))
            for index, result in zip(waiting, ended, strict=True):
                found[index] = _given(result)
        return found

    def _batch(self, samples: Sequence[Sampled]) -> list[Any]:
        """verl's for a batch: one call, a list of rewards or of dicts."""
        rows = [_verl(sample) for sample in samples]
        arguments = {f"{name}s": [row[name] for row in rows] for name in rows[0]}
        found = awaited(self._function(**self._fitting(arguments)))
        return [_given(result) for result in _listed(found, len(samples), "solutions")]

    def _together(self, samples: Sequence[Sampled]) -> list[Any]:
        """TRL's: one call, a list of rewards, and figures noted beside them."""
        notes = _Notes(len(samples))
        arguments = _trl(samples) | {"log_extra": notes.extra, "log_metric": notes.metric}
        self._complain(arguments)
        found = awaited(self._function(**self._fitting(arguments)))
        results = _listed(found, len(samples), "completions")
        return [notes.added(index, result) for index, result in enumerate(results)]

    def _complain(self, arguments: Mapping[str, Any]) -> None:
        """Raises ValueError if a column that the function needs is not in the data."""
        missing = [n for n in self._needed if n not in arguments and n not in self._arguments]
        if missing:
            raise ValueError(
                f"{self.name} needs {', '.join(missing)}: no column of this data, which has "
                f"{', '.join(name for name in arguments if name not in _GIVEN) or 'none'}"
            )


class _Notes:
    """Collects what a function of TRL's kind logs: numbers become parts of the call's rewards."""

    def __init__(self, count: int) -> None:
        self._parts: list[dict[str, float]] = [{} for _ in range(count)]

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """`log_extra`: one value for each completion; text is left out."""
        if len(values) != len(self._parts):
            raise ValueError(
                f"log_extra({column!r}): {len(values)} values for {len(self._parts)} completions"
            )
        for parts, value in zip(self._parts, values, strict=True):
            if (found := as_number(value)) is not None:
                parts[column] = found

    def metric(self, name: str, value: float) -> None:
        """`log_metric`: one value for the call."""
        for parts in self._parts:
            parts[name] = float(value)

    def added(self, index: int, result: Any) -> Any:
        parts = self._parts[index]
        return result if result is None or not parts else Score(result, parts)


def _listed(found: Any, count: int, what: str) -> list[Any]:
    """What a function returned for many. Raises TypeError or ValueError if it is no list of as
    many."""
    if hasattr(found, "tolist"):  # numpy's and torch's
        found = found.tolist()
    if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
        kind = type(cast(object, found)).__name__
        raise TypeError(f"returned {kind} {found!r:.80}, expected a list of {count} rewards")
    results = list(cast(Iterable[Any], found))
    if len(results) != count:
        raise ValueError(f"returned {len(results)} rewards for {count} {what}")
    return results


def _given(result: Any) -> Any:
    """None is no opinion for a function that answers for many; one that is asked for a single
    response has to give a number."""
    return TypeError("returned NoneType None, expected a number") if result is None else result


async def _gathered(waiting: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*waiting, return_exceptions=True)


def _verl(sample: Sampled) -> dict[str, Any]:
    model = sample.columns.get("reward_model")
    nested = cast(dict[str, Any], model) if isinstance(model, dict) else {}
    return {
        "data_source": sample.columns.get("data_source", ""),
        "solution_str": sample.response,
        "ground_truth": nested.get("ground_truth", sample.answer),
        "extra_info": sample.columns.get("extra_info") or {},
    }


def _trl(samples: Sequence[Sampled]) -> dict[str, Any]:
    """Prompts and completions are messages where the prompt was messages."""
    names = dict.fromkeys(name for sample in samples for name in sample.columns)
    columns = {
        name: [sample.columns.get(name) for sample in samples]
        for name in names
        if name not in ("prompt", "prompts", "completion", "completions")
    }
    ids = [list(sample.ids) for sample in samples]
    return {
        **columns,
        "prompts": [list(s.messages) if s.messages else s.prompt for s in samples],
        "completions": [
            [{"role": "assistant", "content": s.response}] if s.messages else s.response
            for s in samples
        ],
        "completion_ids": ids,
        "completions_ids": ids,  # as TRL's documentation has it
        "trainer_state": TrainerState(
            global_step=samples[0].step,
            max_steps=samples[0].steps,
            epoch=samples[0].step / max(1, samples[0].steps),
        ),
    }


def folder_of(function: Callable[..., Any]) -> str:
    """The folder of a callable's source; "" if that is not known."""
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if code is None:  # an object with __call__
        code = getattr(vars(type(plain)).get("__call__"), "__code__", None)
    path = Path(code.co_filename).absolute() if code else None
    return str(path.parent) if path is not None and path.is_file() else ""


def imported(name: str) -> Callable[..., Any]:
    """The callable behind a name. Raises ValueError with the reason."""
    place, colon, attribute = name.rpartition(":")
    if name.endswith(".py"):
        place, colon, attribute = name, ":", _VERL_NAME
    if not colon or not place or not attribute:
        raise ValueError("expected package.module:callable, or file.py:callable")
    try:
        found: Any = _module(place)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever the module does when imported
        raise ValueError(f"{type(error).__name__}: {error}{_import_cure(place, error)}") from error
    if not callable(found):
        raise ValueError(f"found {type(found).__name__}, expected a callable")
    return found


def _import_cure(place: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        beside = " and beside the file" if place.endswith(".py") else ""
        where = f"all that is installed, then in the current directory{beside}"
        return f" (looked for among {where})"
    if "relative import" in str(error) and place.endswith(".py"):
        return ": name the function as package.module:callable"
    return ""


def _module(place: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: what is installed comes first
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _executed(path, path.stat().st_mtime_ns)


@functools.cache
def _executed(path: Path, changed_ns: int) -> ModuleType:
    """Executes a file once for all its functions: what it loads may be large."""
    del changed_ns
    spec = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look for it there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as for a script, but last
    spec.loader.exec_module(module)
    return module
