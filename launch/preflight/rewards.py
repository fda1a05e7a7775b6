"""Checks a run's reward against its data, before anything starts.

Starts workers as a run would: a reward that cannot be built, a server that does not answer and
reference answers that cannot be graded are found in seconds, not in hours. A dry run also calls
the reward, with rows of the data and the gold answer as the response.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from pipeline.config.load import plugin_class
from pipeline.config.schema import Config, Plugin
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins import registry
from pipeline.plugins.interfaces import Options
from pipeline.plugins.views import Sampled
from pipeline.system.terminal_text import counted
from pipeline.workers.pool import NoOpinion, RewardFailed, RewardPool

LOOKED_AT = 200
"""Largest number of answers checked in each data set, evenly spread over it."""
_SHOWN = 20  # complaints listed
_ROWS = 2  # of each data set, that a dry run has scored
_TRIES_S = 60.0
"""Seconds after which a dry run tries no further form of an answer: a judge may be slow."""
FORMS = (
    "{}",
    r"\boxed{{{}}}",
    "#### {}",
    "#{}",
    "<answer>{}</answer>",
    "<think>\nSo.\n</think>\n<answer>{}</answer>",
    "<think>\nSo.\n</think>\n\n\\boxed{{{}}}",
    "The answer is {}",
)
"""Ways to write an answer that rewards look for, as responses."""


class RewardProblems(Exception):
    """The reward does not fit the data; the text has a line for each reason."""


class Tried(msgspec.Struct, frozen=True):
    """What a dry run has seen of the reward."""

    line: str
    warnings: tuple[str, ...] = ()


def has_checks(plugin: Plugin) -> bool:
    """Returns True if the plug-in can check answers before a run. Raises PluginError."""
    return hasattr(registry.find_plugin("reward", plugin.name), "complaint")


async def reward_problems(config: Config, data: list[Dataset]) -> list[str]:
    """Returns a line for each answer that the reward cannot use, or why it cannot start."""
    try:
        async with RewardPool(config.reward, config.workers, most=1) as pool:
            return await _complaints(pool, config, data)
    except RewardFailed as error:
        return [_failure(config, error)]


async def _complaints(pool: RewardPool, config: Config, data: Sequence[Dataset]) -> list[str]:
    """Raises RewardFailed."""
    items = [item for found in data for item in _spread(found, LOOKED_AT)]
    found = await pool.check_answers([_sample(item, "") for item in items])
    key = f"reward.{config.reward.name}"
    lines = [f"{i.where}: answer: {t} ({key})" for i, t in zip(items, found, strict=False) if t]
    if not lines:
        return []
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    cure = (
        f"{len(lines)} of {len(items)} checked answers: correct them, leave them out, or choose "
        "another reward"
    )
    return [*lines[:_SHOWN], *more, cure]


def _failure(config: Config, error: RewardFailed) -> str:
    own = config.reward.name not in registry.builtin_names("reward")  # the user's: show where
    own = own or config.reward.name in ("python", "sum")
    return f"{error.why}\n{error.traceback}".rstrip() if own else error.why


# --- calls ------------------------------------------------------------------------------------


async def try_reward(config: Config, tokenizer: Tokenizer, data: Sequence[Dataset]) -> Tried:
    """Calls the reward with rows of each data set, once their answers are checked.

    Raises: RewardProblems if they cannot be used, or every call fails.
    """
    items = [item for found in data for item in _spread(found, _ROWS)]
    name = config.reward.name
    try:
        async with RewardPool(config.reward, config.workers, most=1) as pool:
            if has_checks(config.reward) and (bad := await _complaints(pool, config, data)):
                raise RewardProblems("\n".join(bad))
            calls = _Calls(pool, tokenizer)
            for item in items:
                await calls.score_forms(item, _forms(config, item), config.eval.correct)
    except RewardFailed as error:
        raise RewardProblems(_failure(config, error)) from error
    if calls.failed and not calls.answered:
        where, last = calls.failed[-1]
        raise RewardProblems(
            f"reward.{name}: failed in all of {len(calls.failed)} calls with rows of the data, "
            f"last with {where}: {_failure(config, last)}"
        )
    return _told(config, items, calls)


def _told(config: Config, items: Sequence[Item], calls: _Calls) -> Tried:
    name, called = config.reward.name, calls.answered + len(calls.failed)
    line = f"{name}, called {counted(called, 'time')} with {counted(len(items), 'row')} of the data"
    warnings: list[str] = []
    if calls.failed:
        where, last = calls.failed[-1]
        warnings.append(
            f"reward.{name}: failed in {len(calls.failed)} of {called} calls, last with {where}: "
            f"{last.why}"
        )
    if not any(item.answer for item in items):
        return Tried(f"{line}, which have no answers", tuple(warnings))
    if calls.best is None:
        return Tried(f"{line}: no opinion on any", tuple(warnings))
    value, text = calls.best
    if value < config.eval.correct:
        warnings.append(
            f"reward.{name}: the gold answer itself earned {value:g} at most, written in "
            f"{len(FORMS)} ways, and eval.correct is {config.eval.correct:g}; all is well if yours "
            "wants it in another"
        )
    return Tried(f"{line}: the gold answer, written as {text!r:.60}, earned {value:g}",
                 tuple(warnings))  # fmt: skip


class _Calls:
    """Calls of one pool, and what came of them."""

    def __init__(self, pool: RewardPool, tokenizer: Tokenizer) -> None:
        self._pool, self._tokenizer = pool, tokenizer
        self._until = time.monotonic() + _TRIES_S
        self.answered = 0
        self.failed: list[tuple[str, RewardFailed]] = []
        self.best: tuple[float, str] | None = None

    async def score_forms(self, item: Item, forms: Sequence[str], enough: float) -> None:
        """Scores a row's answer in one form after another, until one earns enough."""
        for number, text in enumerate(forms):
            if number and time.monotonic() > self._until:
                return
            try:
                ids = self._tokenizer.encode(text)
            except ValueError:  # the model could not write it
                ids = []
            try:
                found = await self._pool.score_sample(_sample(item, text, ids))
            except NoOpinion:
                self.answered += 1
                continue
            except RewardFailed as error:
                self.failed.append((item.where, error))
                continue
            self.answered += 1
            if self.best is None or found.value > self.best[0]:
                self.best = found.value, text
            if found.value >= enough:
                return


def _forms(config: Config, item: Item) -> list[str]:
    """Responses that say a row's answer; those that the reward's marker asks for come first."""
    if not item.answer:
        return [item.prompt[-20:]]
    gold = item.answer
    for after in _options(config, "gold_after"):
        gold = gold.rpartition(after)[2].strip()
    marked = [f"{marker}{gold}" for marker in _options(config, "marker")]
    return list(dict.fromkeys([*marked, *(form.format(gold) for form in FORMS)]))


def _options(config: Config, name: str) -> Iterator[str]:
    """Values of a text option of the reward, or of the parts of a sum."""
    _, options = plugin_class("reward", config.reward)
    parts: Sequence[Options] = [options, *getattr(options, "parts", ())]
    given = (getattr(part, name, "") for part in parts)
    yield from (value for value in given if isinstance(value, str) and value)


def _spread(data: Dataset, most: int) -> list[Item]:
    return list(data.items[:: max(1, -(-len(data) // most))])


def _sample(item: Item, response: str, ids: Sequence[int] = ()) -> Sampled:
    return Sampled(
        prompt=item.prompt,
        response=response,
        finish="stop",
        tokens=len(ids),
        answer=item.answer,
        columns=item.columns,
        messages=item.messages,
        ids=ids,
        steps=1,
    )
