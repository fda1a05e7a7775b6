"""Ended trajectories become text, and text a reward, in the reward workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from pipeline.coordinator.events import Halt, RequestReward, RewardMissing, RewardReady
from pipeline.data.dataset import Dataset
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.views import Sampled
from pipeline.stage.environment_calls import pieces_of, prompt_text
from pipeline.wire.messages import ints
from pipeline.workers.jobs import NoOpinion, Result, RewardFailed, Scored
from pipeline.workers.pool import RewardPool

log = logging.getLogger("stage")


class RewardRequests:
    """Scores what the coordinator wants scored; `answer` hears the reward, or that it failed.

    Args:
        data: the data set of each kind of group.
        show: called with every evaluation sample, its reward and the reward's parts.
    """

    def __init__(
        self,
        pool: RewardPool,
        tokenizer: Tokenizer,
        data: dict[str, Dataset],
        answer: Callable[[RewardReady | RewardMissing | Halt], None],
        show: Callable[[Sampled, float, dict[str, float]], None],
    ) -> None:
        self._pool, self._tokenizer, self._data = pool, tokenizer, data
        self._answer, self._show = answer, show
        self._wanted: set[int] = set()  # being scored, and not cancelled
        self._together: dict[tuple[int, ...], list[RequestReward]] = {}  # until all have come

    def cancel(self, trajectory: int) -> None:
        """Its reward is not wanted any more."""
        self._wanted.discard(trajectory)
        self._pool.cancel_call(trajectory)

    async def request(self, command: RequestReward) -> None:
        """One trajectory, or with the last one of a group all of them. A reward that fails leaves
        the member missing, never a zero."""
        if not command.together:
            await self._judge([command])
            return
        found = self._together.setdefault(command.together, [])
        found.append(command)
        if len(found) == len(command.together):
            await self._judge(self._together.pop(command.together))

    async def _judge(self, commands: Sequence[RequestReward]) -> None:
        asked = [command.trajectory for command in commands]
        self._wanted.update(asked)
        samples: list[Sampled] = []
        try:
            samples += [self._sample(command) for command in commands]
            results: Sequence[Result] = (
                await self._pool.score_group(samples, asked)
                if commands[0].together
                else [await self._pool.score_sample(samples[0], asked[0])]
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._wanted & {*asked} or (task is not None and task.cancelling()):
                raise
            results = [NoOpinion("the reward workers have ended")] * len(asked)
        except (NoOpinion, RewardFailed) as found:
            results = [found] * len(asked)
        except Exception as error:  # not of the reward function: still no zero, and no silence
            log.exception("trajectories %s", asked)
            results = [NoOpinion(repr(error))] * len(asked)
        finally:
            self._wanted.difference_update(asked)
        failures = {id(r): r for r in results if isinstance(r, RewardFailed)}
        for failure in failures.values():
            log.warning("trajectories %s: %s\n%s", asked, failure.why, failure.traceback)
        for number, (command, result) in enumerate(zip(commands, results, strict=True)):
            if command.kind == "eval" and isinstance(result, Scored):
                self._show(samples[number], result.value, result.parts)
            self._answer(_reward(command.trajectory, result))
        if failures and self._pool.stop_reason is not None:
            self._answer(Halt(error=self._pool.stop_reason))

    def _sample(self, command: RequestReward) -> Sampled:
        item = self._data[command.kind][command.prompt]
        ids = ints(command.tokens).tolist()
        return Sampled(
            prompt=prompt_text(item, command.variant, self._tokenizer),
            response=self._tokenizer.decode(ids),
            finish=command.finish,
            tokens=len(ids) - sum(count for _, count in command.appended),
            answer=item.answer,
            columns=item.columns,
            messages=item.messages,
            ids=ids,
            step=command.step,
            steps=command.steps,
            pieces=pieces_of(ids, command.appended, self._tokenizer) if command.appended else (),
        )


def _reward(trajectory: int, found: Result) -> RewardReady | RewardMissing:
    if isinstance(found, Scored):
        value, parts, times = found.value, found.parts, found.times
        return RewardReady(trajectory=trajectory, value=value, parts=parts, times=times)
    return RewardMissing(trajectory=trajectory, why=str(found))
