"""Reads a run's `decisions.jsonl` line by line: the story of one group, and the costliest groups.

Pure except for reading the file. Keeps at most the lines of one group and the newest budget of
each prompt, so a run can be of any length.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from launch.run_files.jsonl import read_lines


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A member of a group, as it was when the group ended."""

    id: int
    state: str  # finished | truncated | aborted
    tokens: int
    confidence: float  # mean logprob, nats per token
    reward: float | None
    chosen: bool
    versions: tuple[int, ...]
    turns: int = 0  # calls of the environment
    appended: int = 0  # tokens that the environment appended


class Ended(msgspec.Struct, frozen=True, tag_field="what", tag="group"):
    """Line `group`: a group has ended."""

    step: int
    group: int
    kind: str
    prompt: int
    attempt: int
    fate: str
    why: str
    version: int
    members: tuple[Candidate, ...]
    time: float = 0.0  # wall clock, seconds since 1970; 0: written by an older darts, not known
    advantages: tuple[tuple[int, float, float], ...] = ()  # id, advantage, weight: of those chosen
    advantage_why: str = ""  # what the advantage rule said of them
    replay_of: int = -1  # the group whose members were trained on once more
    variants: dict[int, str] = {}  # id -> what stood behind its prompt
    forks: dict[int, tuple[int, int]] = {}  # id -> the member whose first tokens it had, how many

    foreign: dict[int, str] = {}  # id -> source of what was not sampled for this group

    def own(self, member: Candidate) -> int:
        """Its tokens, less those that it began with: they are counted where they were sampled."""
        if member.id in self.foreign:
            return 0
        return member.tokens - self.forks.get(member.id, (0, 0))[1]

    @property
    def sampled(self) -> int:
        """Response tokens of its members at its end."""
        return sum(self.own(member) for member in self.members)

    @property
    def trained(self) -> int:
        """Response tokens trained on."""
        if self.fate != "trained":
            return 0
        return sum(self.own(member) for member in self.members if member.chosen)

    @property
    def wasted(self) -> int:
        return self.sampled - self.trained

    @property
    def longest(self) -> int:
        return max((member.tokens for member in self.members), default=0)


class Decided(msgspec.Struct, frozen=True, tag_field="what", tag="decision"):
    """Line `decision`: an action of the selector, or candidates of a budget's top-up."""

    step: int
    group: int
    prompt: int
    action: str
    ids: tuple[int, ...]
    why: str
    time: float = 0.0


class Budgeted(msgspec.Struct, frozen=True, tag_field="what", tag="budget"):
    """Line `budget`: the candidates that prompts got when they were opened."""

    step: int
    prompts: tuple[tuple[int, int, str], ...] = ()  # prompt, candidates, note
    time: float = 0.0


Line = Ended | Decided | Budgeted
_TYPES = {"group": Ended, "decision": Decided, "budget": Budgeted}


def read_decisions(path: Path, complain: Callable[[str], None]) -> Iterator[Line]:
    """Yields every line in order; see `jsonl.read_lines`."""
    return read_lines(path, _TYPES, complain)


class Opened(msgspec.Struct, frozen=True):
    """The candidates that a budget gave a prompt when it was opened."""

    step: int
    candidates: int
    note: str
    time: float


class Story(msgspec.Struct, kw_only=True):
    """All lines on file about one group."""

    group: int
    prompt: int
    decisions: list[Decided] = []
    ended: Ended | None = None  # None: it was still open
    budget: Opened | None = None
    again: int | None = None  # a later group of the same prompt

    @property
    def lines(self) -> Iterator[Opened | Decided | Ended]:
        """All lines in order."""
        if self.budget is not None:
            yield self.budget
        yield from self.decisions
        if self.ended is not None:
            yield self.ended


class NoSuchGroup(Exception):
    """The group is not on file; the message says which groups are."""


class NoSuchTrajectory(Exception):
    """No group on file has the trajectory; the message says which ones are on file."""


def read_story(found: Iterable[Line], number: int) -> Story:
    """Collects the lines of one group. Raises NoSuchGroup."""
    budgets: dict[int, Opened] = {}
    story: Story | None = None
    first, last = -1, -1
    owner: int | None = None  # group of the trajectory with this number
    for line in found:
        if isinstance(line, Budgeted):
            for prompt, candidates, note in line.prompts:
                budgets[prompt] = Opened(line.step, candidates, note, line.time)
            continue
        if owner is None and number in _trajectories(line):
            owner = line.group
        first = line.group if first < 0 else min(first, line.group)
        last = max(last, line.group)
        if line.group == number:
            if story is None:
                # an evaluation numbers its prompts separately
                trains = isinstance(line, Decided) or line.kind == "train"
                known = budgets.get(line.prompt) if trains else None
                story = Story(group=number, prompt=line.prompt, budget=known)
            if isinstance(line, Ended):
                story.ended = line
            else:
                story.decisions.append(line)
        elif story is not None and story.again is None and line.group > number:
            if line.prompt == story.prompt and _trains(line) and _gave_back(story):
                story.again = line.group
    if story is None:
        there = f"those on file are {first} to {last}" if last >= 0 else "there is none on file"
        hint = "" if owner is None else (
            f"; it is a trajectory of group {owner}: use --trajectory {number}"
        )  # fmt: skip
        raise NoSuchGroup(f"no group {number}: {there}{hint}")
    return story


def group_with(found: Iterable[Line], trajectory: int) -> int:
    """Returns the group of a trajectory. Raises NoSuchTrajectory."""
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


def _gave_back(story: Story) -> bool:
    return story.ended is not None and story.ended.fate == "deferred"


class NoSuchStep(Exception):
    """No group ended in the step; the message says which steps are on file."""


def costliest(found: Iterable[Line], most: int | None, step: int | None = None) -> list[Ended]:
    """Returns training groups by response tokens sampled but not trained on, most first.

    Args:
        most: number of groups; None: all.
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
        raise NoSuchStep(f"no group ended in step {step + 1}: {there} on file")
    return worst
