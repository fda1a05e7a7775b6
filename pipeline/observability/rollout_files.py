"""The files of a run's `rollouts/`: one for each step, a line of JSON for each response.

Lines are appended in zstd frames, so a file is whole up to its last whole frame whenever the
process ends. The oldest steps are removed when all files together are larger than asked for. A
resume takes out what was written after its checkpoint, so that no response is there twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from pipeline.system.untrusted_files import BROKEN, UnreadableFile
from pipeline.system.zstd_frames import DamagedFrame, compressed, frames, unpacked

_NAME = re.compile(r"step-(\d{6,9})\.jsonl\.zst")


class RolloutLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One response. Its step, group, prompt and id are those of decisions.jsonl."""

    step: int  # from 0
    group: int
    prompt: int
    id: int
    fate: str
    why: str = ""
    attempt: int = 0
    group_fate: str = ""
    group_why: str = ""
    version: int = 0  # of the learner when it was written
    state: str = ""
    finish: str = ""
    reward: float | None = None
    parts: dict[str, float] = {}
    advantage: float | None = None
    weight: float = 0.0
    confidence: float | None = None
    versions: tuple[int, ...] = ()
    turns: int = 0
    tokens: int = 0  # sampled ones
    variant: str = ""
    foreign: str = ""  # source of a response that was not sampled for its group
    prompt_text: str = ""
    answer: str = ""
    pieces: tuple[tuple[str, bool], ...] = ()  # text, whether the model sampled it
    token_ids: tuple[int, ...] = ()
    appended: tuple[tuple[int, int], ...] = ()  # (first, count) of ids that were not sampled
    logprobs: tuple[float, ...] = ()  # of all ids, 0 where appended; with rollouts.logprobs

    @property
    def response(self) -> str:
        return "".join(text for text, _ in self.pieces)


def file_of(folder: Path, step: int) -> Path:
    """The file of a step, by its number in the terminal: from 1.

    >>> file_of(Path("rollouts"), 0).name
    'step-000001.jsonl.zst'
    """
    return folder / f"step-{step + 1:06}.jsonl.zst"


def files_in(folder: Path) -> dict[int, Path]:
    """Step, from 0, -> its file; the oldest step first."""
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("step-*.jsonl.zst")]
    return dict(sorted((int(name[1]) - 1, path) for path, name in found if name))


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines, each with its end, up to the last whole frame. Raises UnreadableFile."""
    try:
        with path.open("rb") as file:
            for frame in frames(file):
                yield from unpacked(frame).splitlines(keepends=True)
    except FileNotFoundError as error:
        raise UnreadableFile(path, "no such file", missing=True) from error
    except (OSError, DamagedFrame) as error:
        raise UnreadableFile(path, f"cannot be read: {error}") from error


def read_rollouts(path: Path) -> Iterator[RolloutLine]:
    """Yields the responses of a file. Raises UnreadableFile."""
    decoder = msgspec.json.Decoder(RolloutLine)
    for number, line in enumerate(read_lines(path), start=1):
        try:
            yield decoder.decode(line)
        except BROKEN as error:
            raise UnreadableFile(f"{path}, line {number}", f"not a rollout: {error}") from error


class RolloutFiles:
    """Appends to the files of one run. Raises OSError.

    Args:
        most_bytes: of all files together.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes
        self._sizes = {step: path.stat().st_size for step, path in files_in(folder).items()}
        self._opened: set[int] = set()  # files whose end is known to be whole

    def append(self, step: int, lines: bytes) -> bool:
        """Appends whole lines to a step's file; what is half written is taken back.

        Returns: False if they found no room within `most_bytes`; nothing was written then.
        """
        frame, path = compressed(lines), file_of(self._folder, step)
        if not self._make_room(step, len(frame)):
            return False
        if step not in self._opened:
            self._cut_to_whole_frames(step, path)
        before = self._sizes.get(step, 0)
        with path.open("ab", buffering=0) as file:
            try:
                rest = memoryview(frame)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)
                raise
        self._sizes[step] = before + len(frame)
        return True

    def _make_room(self, step: int, size: int) -> bool:
        while sum(self._sizes.values()) + size > self._most:
            oldest = min(self._sizes, default=step)
            if oldest >= step:
                return False
            file_of(self._folder, oldest).unlink(missing_ok=True)
            del self._sizes[oldest]
        return True

    def _cut_to_whole_frames(self, step: int, path: Path) -> None:
        """The run that began the file may have been killed."""
        if path.exists():
            with path.open("r+b") as file:
                try:
                    for _ in frames(file):
                        pass
                    end = file.tell()
                except DamagedFrame:
                    end = 0
                file.truncate(end)
            self._sizes[step] = end
        self._opened.add(step)


def forget_after(folder: Path, step: int, next_id: int, live: Collection[int]) -> None:
    """Removes the responses that ended after a checkpoint. Raises OSError.

    Args:
        step: steps done at the checkpoint.
        next_id: the first trajectory that did not exist yet.
        live: trajectories that had not left their groups.
    """
    for number, path in files_in(folder).items():
        if number > step:
            path.unlink()
        elif number == step:
            kept = [line for line in _lines_of(path) if _is_older(line, next_id, live)]
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(compressed(b"".join(kept)) if kept else b"")
            temporary.rename(path)


def _lines_of(path: Path) -> list[bytes]:
    found: list[bytes] = []
    try:
        found.extend(read_lines(path))
    except UnreadableFile:
        pass  # what stands before the damage is kept
    return found


class _Id(msgspec.Struct):
    id: int


def _is_older(line: bytes, next_id: int, live: Collection[int]) -> bool:
    found = msgspec.json.decode(line, type=_Id).id
    return found < next_id and found not in live
