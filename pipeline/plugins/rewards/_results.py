"""Turns what a reward returned into a checked score, no opinion, or the exception.

Used in reward workers, by whatever calls user code: the worker itself, and rewards made of
others. A batch that fails as a whole is asked again one by one, so that a bad response fails alone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pipeline.plugins.actions import Score
from pipeline.plugins.views import Sampled

Outcome = Score | Exception | None
"""None: the reward has no opinion on this response."""


def outcomes(reward: Any, samples: Sequence[Sampled]) -> list[Outcome]:
    """One for each sample, from a reward's `score_all` if it has one, else from its `score`."""
    if not hasattr(reward, "score_all"):
        return [_outcome(lambda s=sample: reward.score(s)) for sample in samples]
    found = _of_all(reward.score_all, samples)
    if not isinstance(found, Exception):
        return found
    if len(samples) == 1:
        return [found]
    return [one for sample in samples for one in outcomes(reward, [sample])]


def group_outcomes(reward: Any, samples: Sequence[Sampled]) -> list[Outcome]:
    """One for each sample of a group, from the reward's `score_group`; it fails for all or none."""
    found = _of_all(reward.score_group, samples)
    return [found for _ in samples] if isinstance(found, Exception) else found


def _of_all(
    ask: Callable[[Sequence[Sampled]], Any], samples: Sequence[Sampled]
) -> list[Outcome] | Exception:
    try:
        results = list(awaited(ask(samples)))
        if len(results) != len(samples):
            raise ValueError(f"returned {len(results)} rewards for {len(samples)} responses")
    except Exception as error:
        return error
    except SystemExit as error:
        return exited(error)
    return [
        found if found is None or isinstance(found, Exception) else _outcome(lambda r=found: r)
        for found in results
    ]


def _outcome(ask: Callable[[], Any]) -> Outcome:
    try:
        return Score(*checked_score(awaited(ask())))
    except Exception as error:
        return error
    except SystemExit as error:
        return exited(error)


def exited(error: SystemExit) -> Exception:
    """The failure of a response whose reward called `sys.exit`: the worker is not to end."""
    return RuntimeError(f"called sys.exit({error.code!r})").with_traceback(error.__traceback__)


@functools.cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def awaited(result: Any) -> Any:
    """The result itself, or what it comes to where it is a coroutine.

    One event loop for all calls: what user code keeps open, a client for instance, stays usable.
    """
    return _runner().run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def checked_score(result: object) -> tuple[float, dict[str, float]]:
    """A reward's answer as a finite number with parts. Raises ValueError or TypeError.

    A dict is verl's: "score" is the reward, its other finite numbers are parts.
    """
    parts: Mapping[Any, Any] = {}
    if isinstance(result, Score):
        result, parts = result.value, result.parts
    elif isinstance(result, dict):
        given = cast(dict[Any, Any], result)
        if "score" not in given:
            raise ValueError(f"returned a dict without 'score': {', '.join(map(str, given))}")
        result, parts = given["score"], {k: v for k, v in given.items() if k != "score"}
    value = as_number(result)
    if value is None:
        raise TypeError(f"returned {type(result).__name__} {result!r:.80}, expected a number")
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, expected a finite number")
    numbers = {writable(str(key)): as_number(part) for key, part in parts.items()}
    return value, {k: n for k, n in numbers.items() if n is not None and math.isfinite(n)}


def as_number(value: object) -> float | None:
    """Numbers, booleans and what offers __float__ (numpy, one-element tensors); text does not."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return None
    return float(cast(float, value))


def writable(text: str) -> str:
    """Escapes halves of surrogate pairs, which JSON cannot hold."""
    return text.encode(errors="backslashreplace").decode()


def weighted_sum(
    given: Mapping[str, Outcome], weights: Mapping[str, float], *, without: bool
) -> Outcome:
    """The weighted sum of several rewards of one response; each is a part of it, by name.

    Args:
        given: what each reward came to.
        weights: of each.
        without: leave out those without an opinion, as TRL does; else the sum has none either.

    Returns: the first exception, where there is one.
    """
    parts: dict[str, float] = {}
    total, opinions = 0.0, 0
    for name, outcome in given.items():
        if isinstance(outcome, Exception):
            outcome.add_note(f"in the part {name!r}")
            return outcome
        if outcome is None:
            continue
        opinions += 1
        total += weights[name] * outcome.value
        parts[name] = outcome.value
        parts |= {f"{name}/{part}": value for part, value in outcome.parts.items()}
    if not opinions or (opinions < len(given) and not without):
        return None
    return Score(total, parts)
