"""Ended trajectories become text, and text a reward, in the reward workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pipeline.coordinator.events import Halt, RequestReward, RewardMissing, RewardReady
from pipeline.data.dataset import Dataset
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.views import Sampled
from pipeline.stage.environment_calls import pieces_of, prompt_text
from pipeline.wire.messages import ints
from pipeline.workers.pool import NoOpinion, RewardFailed, RewardPool

log = logging.getLogger("stage")


class RewardRequests:
    """Scores what the coordinator wants scored; `answer` hears the reward, or that it failed.

    Args:
        data: the data set of each kind of group.
        show: called with prompt, response and reward of every evaluation sample.
    """

    def __init__(
        self,
        pool: RewardPool,
        tokenizer: Tokenizer,
        data: dict[str, Dataset],
        answer: Callable[[RewardReady | RewardMissing | Halt], None],
        show: Callable[[str, str, float], None],
    ) -> None:
        self._pool, self._tokenizer, self._data = pool, tokenizer, data
        self._answer, self._show = answer, show
        self._wanted: set[int] = set()  # being scored, and not cancelled

    def cancel(self, trajectory: int) -> None:
        """Its reward is not wanted any more."""
        self._wanted.discard(trajectory)
        self._pool.cancel_call(trajectory)

    async def request(self, command: RequestReward) -> None:
        """One trajectory. A reward that fails leaves the member missing, never a zero."""
        trajectory = command.trajectory
        self._wanted.add(trajectory)
        try:
            sample = self._sample(command)
            scored = await self._pool.score_sample(sample, trajectory)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if trajectory not in self._wanted or (task is not None and task.cancelling()):
                raise
            self._answer(RewardMissing(trajectory=trajectory, why="the reward workers have ended"))
        except NoOpinion as silence:
            self._answer(RewardMissing(trajectory=trajectory, why=str(silence)))
        except RewardFailed as failure:
            log.warning("trajectory %d: %s\n%s", trajectory, failure.why, failure.traceback)
            self._answer(RewardMissing(trajectory=trajectory, why=failure.why))
            if self._pool.stop_reason is not None:
                self._answer(Halt(error=self._pool.stop_reason))
        except Exception as error:  # not of the reward function: still no zero, and no silence
            log.exception("trajectory %d", trajectory)
            self._answer(RewardMissing(trajectory=trajectory, why=repr(error)))
        else:
            if command.kind == "eval":
                self._show(sample.prompt, sample.response, scored.value)
            self._answer(
                RewardReady(
                    trajectory=trajectory,
                    value=scored.value,
                    parts=scored.parts,
                    times=scored.times,
                )
            )
        finally:
            self._wanted.discard(trajectory)

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
