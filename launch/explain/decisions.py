"""A run's `decisions.jsonl`, read line by line: what became of a group, and which cost most.

Pure but for reading the file. Holds at most the lines of one group, and of every
prompt the newest budget; a run of any length can be asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from launch.run_files.jsonl import lines


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A member of a group, as it was when the group ended."""

    id: int
    state: str  # finished | truncated | aborted
    tokens: int
    confidence: float  # mean logprob, nats per token
    reward: float | None
    chosen: bool
    versions: tuple[int, ...]
    turns: int = 0  # of which its environment was told
    appended: int = 0  # tokens that the environment appended, beside those sampled


class Ended(msgspec.Struct, frozen=True, tag_field="what", tag="group"):
    """Line `group`: it has ended."""

    step: int
    group: int
    kind: str
    prompt: int
    attempt: int
    fate: str
    why: str
    version: int
    members: tuple[Candidate, ...]
    time: float = 0.0  # clock on the wall, seconds since 1970; 0: of an older darts, not known

    @property
    def sampled(self) -> int:
        """Response tokens of the members that were in it at its end."""
        return sum(member.tokens for member in self.members)

    @property
    def trained(self) -> int:
        """Those trained on."""
        if self.fate != "trained":
            return 0
        return sum(member.tokens for member in self.members if member.chosen)

    @property
    def wasted(self) -> int:
        return self.sampled - self.trained

    @property
    def longest(self) -> int:
        return max((member.tokens for member in self.members), default=0)


class Decided(msgspec.Struct, frozen=True, tag_field="what", tag="decision"):
    """Line `decision`: a verb of the selector, or candidates of a budget's top-up."""

    step: int
    group: int
    prompt: int
    action: str
    ids: tuple[int, ...]
    why: str
    time: float = 0.0


class Budgeted(msgspec.Struct, frozen=True, tag_field="what", tag="budget"):
    """Line `budget`: how many candidates prompts got when they were opened."""

    step: int
    prompts: tuple[tuple[int, int, str], ...] = ()  # prompt, candidates, note
    time: float = 0.0


Line = Ended | Decided | Budgeted
_TYPES = {"group": Ended, "decision": Decided, "budget": Budgeted}


def decisions(path: Path, complain: Callable[[str], None]) -> Iterator[Line]:
    """Every line in its order; see `jsonl.lines`."""
    return lines(path, _TYPES, complain)


class Opened(msgspec.Struct, frozen=True):
    """What a budget gave a prompt when it was opened."""

    step: int
    candidates: int
    note: str
    time: float


class Story(msgspec.Struct, kw_only=True):
    """All that is on file of one group."""

    group: int
    prompt: int
    decisions: list[Decided] = []
    ended: Ended | None = None  # None: it was open when the file ended
    budget: Opened | None = None
    again: int | None = None  # group that the same prompt came in later

    @property
    def lines(self) -> Iterator[Opened | Decided | Ended]:
        """In their order."""
        if self.budget is not None:
            yield self.budget
        yield from self.decisions
        if self.ended is not None:
            yield self.ended


class NoSuchGroup(Exception):
    """Nothing is on file of it; the message says which groups there are."""


class NoSuchTrajectory(Exception):
    """No group on file names it; the message says which trajectories there are."""


def story(found: Iterable[Line], number: int) -> Story:
    """Raises NoSuchGroup."""
    budgets: dict[int, Opened] = {}
    told: Story | None = None
    first, last = -1, -1
    home: int | None = None  # group of the trajectory with this number
    for line in found:
        if isinstance(line, Budgeted):
            for prompt, candidates, note in line.prompts:
                budgets[prompt] = Opened(line.step, candidates, note, line.time)
            continue
        if home is None and number in _trajectories(line):
            home = line.group
        first = line.group if first < 0 else min(first, line.group)
        last = max(last, line.group)
        if line.group == number:
            if told is None:
                # an evaluation counts its prompts by themselves
                trains = isinstance(line, Decided) or line.kind == "train"
                known = budgets.get(line.prompt) if trains else None
                told = Story(group=number, prompt=line.prompt, budget=known)
            if isinstance(line, Ended):
                told.ended = line
            else:
                told.decisions.append(line)
        elif told is not None and told.again is None and line.group > number:
            if line.prompt == told.prompt and _trains(line) and _gave_back(told):
                told.again = line.group
    if told is None:
        there = f"those on file are {first} to {last}" if last >= 0 else "there is none on file"
        hint = "" if home is None else (
            f"; it is a trajectory of group {home}: ask with --trajectory {number}"
        )  # fmt: skip
        raise NoSuchGroup(f"no group {number}: {there}{hint}")
    return told


def group_with(found: Iterable[Line], trajectory: int) -> int:
    """The group that a trajectory is a candidate of. Raises NoSuchTrajectory."""
    first, last = -1, -1
    for line in found:
        if isinstance(line, Budgeted):
            continue
        for known in _trajectories(line):
            if known == trajectory:
                return line.group
            first = known if first < 0 else min(first, known)
            last = max(last, known)
    there = f"those on file are {first} to {last}" if last >= 0 else "there is none on file"
    raise NoSuchTrajectory(f"no trajectory {trajectory}: {there}")


def _trajectories(line: Ended | Decided) -> tuple[int, ...]:
    return line.ids if isinstance(line, Decided) else tuple(m.id for m in line.members)


def _trains(line: Ended | Decided) -> bool:
    return isinstance(line, Decided) or line.kind == "train"


def _gave_back(told: Story) -> bool:
    return told.ended is not None and told.ended.fate == "deferred"


class NoSuchStep(Exception):
    """No group has ended in it; the message says which steps there are."""


def costliest(found: Iterable[Line], most: int | None, step: int | None = None) -> list[Ended]:
    """Training groups by response tokens sampled and not trained on, the most first.

    Args:
        most: so many of them; None: all.
        step: only groups that ended in this step, counted from 0. Raises NoSuchStep.
    """
    groups = (line for line in found if isinstance(line, Ended) and line.kind == "train")
    steps: set[int] = set()

    def wanted() -> Iterator[Ended]:
        for group in groups:
            steps.add(group.step)
            if step is None or group.step == step:
                yield group

    def cost(group: Ended) -> tuple[int, int]:
        return group.wasted, -group.group

    chosen = wanted()
    worst = sorted(chosen, key=cost, reverse=True) if most is None else (
        heapq.nlargest(most, chosen, key=cost)
    )  # fmt: skip
    if step is not None and step not in steps:
        there = f"steps {min(steps) + 1} to {max(steps) + 1}" if steps else "no step"
        raise NoSuchStep(f"no group ended in step {step + 1}: {there} are on file")
    return worst
