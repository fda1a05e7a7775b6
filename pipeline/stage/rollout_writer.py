"""Writes responses into the run's `rollouts/`, on a thread of its own and with bounded memory.

The stage hands over what the coordinator wants kept; the thread decodes tokens, makes lines and
compresses them. What waits is bounded: with a disk that is too slow, groups are left out and
counted. A disk that is full costs the lines of its time, never the run.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from pipeline.config.rollouts import RolloutsConfig
from pipeline.coordinator.events import KeepRollouts
from pipeline.coordinator.rollouts import Rollout
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer
from pipeline.observability.rollout_files import RolloutFiles, RolloutLine
from pipeline.stage.environment_calls import pieces_of, prompt_text
from pipeline.system.run_folder import RunFolder
from pipeline.system.terminal_text import encodable
from pipeline.wire.messages import floats, ints

log = logging.getLogger("stage")
MOST_WAITING = 64 << 20
"""Bytes of tokens and logprobs that may wait for the thread."""
TABLE_ROWS = 8
"""Responses of a step with the lowest, and with the highest rewards, that trackers get."""
_FRAME_BYTES = 1 << 20  # of lines; a frame begins at least once a second
_IDLE_S = 1.0
_CLOSE_S = 10.0
_DIGITS = 5  # of logprobs

Table = tuple[int, list[RolloutLine]]  # step from 0, rows


class RolloutWriter:
    """`keep` what the coordinator says, `close` at the end; nothing is done if nothing is kept.

    Args:
        data: the training prompts.
        tables: whether a tracker wants some of each step's responses.
    """

    def __init__(
        self,
        run: RunFolder,
        config: RolloutsConfig,
        data: Dataset,
        tokenizer: Tokenizer,
        *,
        tables: bool = False,
    ) -> None:
        self._folder, self._config = run.rollouts, config
        self._make_lines = LineMaker(data, tokenizer, logprobs=config.logprobs).lines
        self._queue: queue.SimpleQueue[KeepRollouts | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = self._left_out = 0
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._tables: queue.SimpleQueue[Table] | None = queue.SimpleQueue() if tables else None
        self._thread: threading.Thread | None = None

    def keep(self, command: KeepRollouts) -> None:
        """Hands over; never waits."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
            self._thread.start()
        size = _bytes_of(command)
        with self._lock:
            if self._waiting_bytes + size > MOST_WAITING:
                self._left_out += 1
                return
            self._waiting_bytes += size
        self._queue.put(command)

    def news(self) -> list[str]:
        """What is to be told to people since the last call."""
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            self._news.put(f"{self._folder}: too slow: {left_out} groups were left out")
        return list(_taken(self._news))

    def tables(self) -> list[Table]:
        """Some responses of every step that has ended since the last call."""
        return list(_taken(self._tables)) if self._tables is not None else []

    def close(self) -> None:
        """All that was handed over is on the disk, within a limited time."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._news.put(f"{self._folder}: the last lines took more than {_CLOSE_S:g} s")

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._write_all()
        except Exception as error:  # a tokenizer's, a disk's: the run goes on
            log.exception("no more rollouts")
            self._news.put(f"{self._folder}: no more responses are kept: {error!s:.300}")
            with self._lock:
                self._waiting_bytes = MOST_WAITING  # nothing more is taken

    def _write_all(self) -> None:
        open_step = OpenStep(
            RolloutFiles(self._folder, int(self._config.max_gib * (1 << 30))), self._news.put
        )
        while True:
            try:
                command = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                open_step.flush()
                continue
            if command is None or command.step != open_step.step:
                rows = open_step.close()
                if rows and self._tables is not None:
                    self._tables.put((open_step.step, rows))
            if command is None:
                return
            for line in self._make_lines(command):
                open_step.add(command.step, line)
            with self._lock:
                self._waiting_bytes -= _bytes_of(command)


class OpenStep:
    """Lines of the step at hand: gathered into frames, and the rows that trackers get."""

    def __init__(self, files: RolloutFiles, say: Callable[[str], None]) -> None:
        self._files, self._say = files, say
        self.step = -1
        self._lines = bytearray()
        self._count = 0
        self._full = ""  # why lines of this step were left out
        self._best: list[tuple[float, int, RolloutLine]] = []
        self._worst: list[tuple[float, int, RolloutLine]] = []

    def add(self, step: int, line: RolloutLine) -> None:
        """Adds one line; writes them once a frame is full."""
        self.step = step
        self._lines += msgspec.json.encode(line) + b"\n"
        self._count += 1
        if line.reward is not None:
            _push(self._best, (line.reward, -line.id, line))
            _push(self._worst, (-line.reward, -line.id, line))
        if len(self._lines) >= _FRAME_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what has gathered, if there is room."""
        if not self._lines:
            return
        lines, count = bytes(self._lines), self._count
        self._lines, self._count = bytearray(), 0
        why = "they need more than rollouts.max_gib"
        try:
            if not self._full and self._files.append(self.step, lines):
                return
        except OSError as error:
            why = error.strerror or str(error)
        if not self._full:
            self._full = why
            self._say(
                f"rollouts of step {self.step + 1}: {why}: {count} or more responses are left out"
            )

    def close(self) -> list[RolloutLine]:
        """Writes the rest; returns the step's worst and best responses, the worst first."""
        self.flush()
        self._full = ""
        worst = [line for *_, line in sorted(self._worst, reverse=True)]
        best = [line for *_, line in sorted(self._best) if line not in worst]
        self._best, self._worst = [], []
        return worst + best


def _push(
    heap: list[tuple[float, int, RolloutLine]], entry: tuple[float, int, RolloutLine]
) -> None:
    (heapq.heappushpop if len(heap) >= TABLE_ROWS else heapq.heappush)(heap, entry)


class LineMaker:
    """Decodes responses into lines.

    Args:
        data: the training prompts.
        logprobs: write those of every token.
    """

    def __init__(self, data: Dataset, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._data, self._tokenizer, self._logprobs = data, tokenizer, logprobs

    def lines(self, command: KeepRollouts) -> Iterator[RolloutLine]:
        item = self._data[command.prompt]
        for rollout in command.rollouts:
            yield self._line(command, rollout, item)

    def _line(self, command: KeepRollouts, rollout: Rollout, item: Item) -> RolloutLine:
        ids = ints(rollout.tokens).tolist()
        logprobs: Sequence[float] = floats(rollout.logprobs).tolist() if self._logprobs else ()
        return RolloutLine(
            step=command.step,
            group=command.group,
            prompt=command.prompt,
            attempt=command.attempt,
            group_fate=command.fate,
            group_why=command.why,
            version=command.version,
            id=rollout.id,
            fate=rollout.fate,
            why=rollout.why,
            state=rollout.state,
            finish=rollout.finish,
            reward=rollout.reward,
            parts=rollout.parts,
            advantage=rollout.advantage,
            weight=rollout.weight,
            confidence=round(rollout.confidence, _DIGITS) if rollout.logprobs else None,
            versions=rollout.versions,
            turns=rollout.turns,
            tokens=len(ids) - sum(count for _, count in rollout.appended),
            variant=rollout.variant,
            foreign=rollout.foreign,
            prompt_text=prompt_text(item, rollout.variant, self._tokenizer),
            answer=encodable(item.answer),
            pieces=pieces_of(ids, rollout.appended, self._tokenizer),
            token_ids=tuple(ids),
            appended=rollout.appended,
            logprobs=tuple(round(value, _DIGITS) for value in logprobs),
        )


def _bytes_of(command: KeepRollouts) -> int:
    return sum(len(rollout.tokens) + len(rollout.logprobs) for rollout in command.rollouts)


def _taken(waiting: queue.SimpleQueue[Any]) -> Iterator[Any]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()
