"""Measures the bias of selection: how what is trained on differs from what was sampled.

In an audited step every candidate is sampled to its end and scored, although
the selector has chosen; its choice is trained on all the same. The difference
between the chosen and all of them is selection's own doing. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeline.coordinator.groups import ENDED, Group, Trajectory


def due(step: int, every: int) -> bool:
    """Returns True if the step after `step` others is audited: the last of each `every`."""
    return every > 0 and (step + 1) % every == 0


def settled(group: Group) -> bool:
    """Every candidate has ended and is scored, or has left the group."""
    return all(m.scored for m in group.members if m.state in ENDED) and not group.unended


def whole(group: Group) -> list[Trajectory]:
    """The candidates that can be compared: ended, with a reward."""
    return [m for m in group.members if m.state in ENDED and m.reward is not None]


def shifts(group: Group, advantages: Sequence[float]) -> dict[str, float]:
    """Mean over the chosen minus mean over all, in reward, tokens and advantage.

    Args:
        advantages: of `whole(group)`, had all of them been trained on; empty where
            they carry no signal.
    """
    members = whole(group)
    chosen = [m.id in set(group.chosen) for m in members]
    found = {
        "reward": _shift([m.reward or 0.0 for m in members], chosen),
        "tokens": _shift([float(m.sampled) for m in members], chosen),
    }
    return found | ({"advantage": _shift(advantages, chosen)} if len(advantages) else {})


def _shift(values: Sequence[float], chosen: Sequence[bool]) -> float:
    kept = [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]
    if not kept:
        return 0.0
    return sum(kept) / len(kept) - sum(values) / len(values)


class SelectionBias(msgspec.Struct):
    """Shifts of the audited groups of one step."""

    sums: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    counts: dict[str, int] = msgspec.field(default_factory=dict[str, int])

    def add(self, found: dict[str, float]) -> None:
        """Count the shifts of a group."""
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Means over groups, as `reward_shift` and so on; empty without an audit."""
        return {f"{name}_shift": self.sums[name] / self.counts[name] for name in self.sums}
