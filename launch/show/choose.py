"""Chooses responses to be shown, and puts two of each group side by side. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pipeline.observability.rollout_files import RolloutLine
from pipeline.system.terminal_text import counted


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be shown."""

    worst: int = 0  # so many with the lowest rewards
    best: int = 0  # so many with the highest rewards
    search: str = ""  # a text in the prompt, the response or the reason
    prompt: int | None = None
    group: int | None = None

    def matches(self, line: RolloutLine) -> bool:
        """Returns True if a response may be shown."""
        if self.prompt not in (None, line.prompt) or self.group not in (None, line.group):
            return False
        sought = self.search.casefold()
        texts = (line.prompt_text, line.response, line.why, line.group_why)
        return not sought or any(sought in text.casefold() for text in texts)

    @property
    def everywhere(self) -> bool:
        """True if it is asked about more than one step."""
        return bool(self.search) or self.prompt is not None or self.group is not None


Pair = tuple[RolloutLine, RolloutLine | None]


def _reward(line: RolloutLine) -> float:
    return math.nan if line.reward is None else line.reward


def pairs(lines: Iterable[RolloutLine], asked: Asked) -> Iterator[Pair]:
    """Yields what is to be shown, two beside each other.

    One of the worst beside the best of its group, and the other way round; with both, the worst
    beside the best of all. Of the others every one that matches, in the order of the files.
    """
    known = list(lines)
    found = [line for line in known if asked.matches(line)]
    scored = sorted((f for f in found if f.reward is not None), key=_reward)
    if asked.worst and asked.best:
        worst, best = scored[: asked.worst], scored[::-1][: asked.best]
        for number in range(max(len(worst), len(best))):
            both = [some[number] for some in (worst, best) if number < len(some)]
            yield both[0], both[1] if len(both) > 1 else None
    elif asked.worst or asked.best:
        chosen = scored[: asked.worst] if asked.worst else scored[::-1][: asked.best]
        shown: set[frozenset[int]] = set()
        for line in chosen:
            other = _opposite(known, line, best=bool(asked.worst))
            both = frozenset((line.id, line.id if other is None else other.id))
            if both not in shown:  # two of one group may be each other's opposite
                yield line, other
            shown.add(both)
    else:
        for group in _by_group(found):
            for first in range(0, len(group), 2):
                yield group[first], group[first + 1] if first + 1 < len(group) else None


def _opposite(lines: Sequence[RolloutLine], line: RolloutLine, *, best: bool) -> RolloutLine | None:
    """The best or the worst of the same group, if its reward is another."""
    same = [
        other
        for other in lines
        if other.group == line.group and other.reward not in (None, line.reward)
    ]
    return (max if best else min)(same, key=_reward, default=None)


def _by_group(lines: Sequence[RolloutLine]) -> list[list[RolloutLine]]:
    groups: dict[int, list[RolloutLine]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    return list(groups.values())


def summary(step: int, lines: Sequence[RolloutLine]) -> str:
    """One sentence about a step's responses."""
    rewards = [line.reward for line in lines if line.reward is not None]
    groups = _by_group(lines)
    said = f"step {step + 1}: {counted(len(lines), 'response')} in {counted(len(groups), 'group')}"
    if rewards:
        mean = sum(rewards) / len(rewards)
        said += f", mean reward {mean:.3g} ({min(rewards):.3g} to {max(rewards):.3g})"
    equal = sum(len({line.reward for line in group} - {None}) == 1 for group in groups)
    return said + (f"; all rewards are equal in {equal} of the groups" if equal else "")
