"""Decodes a finished turn, calls the environment in a worker process and tokenizes its reply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from pipeline.config.load import environment_options
from pipeline.config.schema import Config
from pipeline.coordinator.events import CallEnvironment, Halt, TurnAnswered, TurnFailed
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.interfaces import EnvironmentOptions
from pipeline.plugins.views import Turn
from pipeline.wire.messages import ints
from pipeline.workers.pool import Followed, RewardFailed, WorkerPool
from pipeline.workers.protocol import Follows

log = logging.getLogger("stage")


class EnvironmentPool(WorkerPool):
    """Asks one environment, in processes of its own."""

    kind: ClassVar[str] = "environment"

    async def turn(self, turn: Turn, trajectory: int) -> Followed:
        """Returns what follows. Raises RewardFailed; CancelledError after `cancel`."""
        found = await self.ask_plugin(turn, trajectory)
        if not isinstance(found, Followed):
            raise RewardFailed("its worker answered what follows no turn")
        return found


def pool(config: Config) -> EnvironmentPool | None:
    """The workers that the configuration asks for; None: a response is one turn.

    Raises PluginError if the plug-in is not found.
    """
    if environment_options(config) is None:
        return None
    return EnvironmentPool(config.environment, config.workers)


class EnvironmentCalls:
    """Asks what the coordinator wants to know; `answer` hears what follows, or why not.

    Args:
        workers: None: nothing is ever asked.
        data: the data set of each kind of group.
    """

    def __init__(
        self,
        workers: EnvironmentPool | None,
        tokenizer: Tokenizer,
        data: dict[str, Dataset],
        answer: Callable[[TurnAnswered | TurnFailed | Halt], None],
        options: EnvironmentOptions | None,
    ) -> None:
        self._workers, self._tokenizer, self._data = workers, tokenizer, data
        self._answer = answer
        self._failure = tokenizer.encode(options.failure_text) if options else []
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def ask(self, command: CallEnvironment) -> None:
        """One question, in a task of its own."""
        task = asyncio.ensure_future(self._ask(command))
        self._tasks[command.trajectory] = task
        task.add_done_callback(lambda _: self._forget(command.trajectory, task))

    def cancel(self, trajectory: int) -> None:
        """Its answer is not wanted any more: a call that runs is killed."""
        task = self._tasks.pop(trajectory, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """End every call."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, trajectory: int, task: asyncio.Task[None]) -> None:
        if self._tasks.get(trajectory) is task:
            del self._tasks[trajectory]

    async def _ask(self, command: CallEnvironment) -> None:
        assert self._workers is not None, "a question without an environment"
        trajectory, turn = command.trajectory, command.turn
        try:
            found = await self._workers.turn(self._turn(command), trajectory)
            tokens = self._tokens(found.follows)
        except RewardFailed as failure:
            log.warning(
                "environment, trajectory %d: %s\n%s", trajectory, failure.why, failure.traceback
            )
            self._failed(command, failure.why)
            if self._workers.stop_reason is not None:
                self._answer(Halt(error=self._workers.stop_reason))
        except Exception as error:  # not of the user's code: still no silence
            log.exception("environment, trajectory %d", trajectory)
            self._failed(command, repr(error))
        else:
            self._answer(
                TurnAnswered(
                    trajectory=trajectory,
                    turn=turn,
                    over=found.follows.over,
                    tokens=tokens,
                    memory=found.follows.memory,
                    times=found.times,
                )
            )

    def _failed(self, command: CallEnvironment, why: str) -> None:
        trajectory, turn = command.trajectory, command.turn
        if not self._failure:
            self._answer(TurnFailed(trajectory=trajectory, turn=turn, why=why))
            return
        tokens = np.asarray(self._failure, "<i4").tobytes()
        self._answer(
            TurnAnswered(
                trajectory=trajectory, turn=turn, over=False, tokens=tokens, memory=command.memory
            )
        )

    def _tokens(self, found: Follows) -> bytes:
        """int32. Raises RewardFailed if they are none of the model's."""
        try:
            tokens = list(found.tokens) or self._tokenizer.encode(found.text)
        except ValueError as error:
            raise RewardFailed(f"its text {found.text!r:.80} {error}") from error
        wrong = [token for token in tokens if not 0 <= token < self._tokenizer.vocabulary]
        if wrong:
            raise RewardFailed(
                f"token {wrong[0]} is none of the model's {self._tokenizer.vocabulary}"
            )
        return np.asarray(tokens, "<i4").tobytes()

    def _turn(self, command: CallEnvironment) -> Turn:
        item = self._data[command.kind][command.prompt]
        ids = ints(command.tokens).tolist()
        pieces = pieces_of(ids, command.appended, self._tokenizer)
        text, sampled = pieces[-1] if pieces else ("", True)
        return Turn(
            prompt=prompt_text(item, command.variant, self._tokenizer),
            response=self._tokenizer.decode(ids),
            text=text if sampled else "",
            number=command.turn,
            finish=command.finish,
            left=command.left,
            answer=item.answer,
            columns=item.columns,
            pieces=pieces,
            ids=ids,
            memory=command.memory,
        )


def pieces_of(
    ids: Sequence[int], appended: tuple[tuple[int, int], ...], tokenizer: Tokenizer
) -> tuple[tuple[str, bool], ...]:
    """A response as (text, whether it was sampled), one after another."""
    pieces: list[tuple[str, bool]] = []
    end = 0
    for first, count in (*appended, (len(ids), 0)):
        for begin, stop, sampled in ((end, first, True), (first, first + count, False)):
            if begin < stop:
                pieces.append((tokenizer.decode(ids[begin:stop]), sampled))
        end = first + count
    return tuple(pieces)


def prompt_text(item: Item, variant: str, tokenizer: Tokenizer) -> str:
    """A prompt as the model read it, with what its variant put behind it."""
    if not variant:
        return item.prompt
    return item.prompt + tokenizer.decode(ints(item.tokens_behind(variant)).tolist())
