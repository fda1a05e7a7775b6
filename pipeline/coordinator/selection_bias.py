"""Measures the bias of selection: how what is trained on differs from what was sampled.

In an audited step every candidate is sampled to its end and scored, although
the selector has chosen; its choice is trained on all the same. The difference
between the chosen and all of them is selection's own doing: in reward, in length,
and in the advantages, whose baseline is the mean of the chosen and not of all. Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.coordinator.groups import ENDED, Group, Trajectory
from pipeline.plugins.actions import Advantages, NoSignal

KINDS = ("right_short", "right_long", "wrong_short", "wrong_long")
"""Kinds of members trained on. Right: with a reward of at least `eval.correct`. Long: above the
median length of all candidates of the group that ended."""


def due(step: int, every: int) -> bool:
    """Returns True if the step after `step` others is audited: the last of each `every`."""
    return every > 0 and (step + 1) % every == 0


def settled(group: Group) -> bool:
    """Every candidate has ended and is scored, or has left the group."""
    return all(m.scored for m in group.members if m.state in ENDED) and not group.unended


def whole(group: Group) -> list[Trajectory]:
    """The candidates that can be compared: ended, with a reward."""
    return [m for m in group.candidates if m.state in ENDED and m.reward is not None]


def kinds(members: Sequence[Trajectory], correct: float) -> list[str]:
    """The kind of each of `whole(group)`, one of `KINDS`.

    Args:
        correct: reward from which on a response counts as right.
    """
    if not members:
        return []
    median = statistics.median(m.sampled for m in members)
    return [
        ("right" if (m.reward or 0.0) >= correct else "wrong")
        + ("_long" if m.sampled > median else "_short")
        for m in members
    ]


class SelectionBias(msgspec.Struct):
    """Compares what was chosen with all that was sampled, over the audited groups of one step."""

    groups: int = 0  # trained on
    signal_lost: int = 0  # groups dropped since the chosen teach nothing; all of them would have
    reward: float = 0.0  # sum of shifts over groups
    tokens: float = 0.0  # likewise
    moved: float = 0.0  # sum of absolute differences of advantages over members
    advantages: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Sum of those differences over members, by kind."""
    members: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Members whose advantages were compared, by kind."""

    def add(
        self,
        group: Group,
        sampled: Advantages | NoSignal,
        trained: Advantages | NoSignal,
        correct: float,
    ) -> None:
        """Count a group. It is trained on, unless `trained` carries no signal.

        Args:
            sampled: of `whole(group)`, had all of them been trained on.
            trained: of `group.chosen`, all of which are in `whole(group)`, or foreign.
            correct: reward from which on a response counts as right.
        """
        if isinstance(trained, NoSignal):
            self.signal_lost += not isinstance(sampled, NoSignal)
            return
        members = whole(group)
        place = {m.id: n for n, m in enumerate(members)}
        chosen = [place[i] for i in group.chosen if i in place]
        self.groups += 1
        self.reward += _shift([m.reward or 0.0 for m in members], chosen)
        self.tokens += _shift([float(m.sampled) for m in members], chosen)
        if isinstance(sampled, NoSignal):
            return
        of = kinds(members, correct)
        advantages = zip(group.chosen, trained.values, strict=True)
        own = [advantage for i, advantage in advantages if i in place]
        for n, advantage in zip(chosen, own, strict=True):
            difference = float(advantage - sampled.values[n])
            self.moved += abs(difference)
            self.advantages[of[n]] = self.advantages.get(of[n], 0.0) + difference
            self.members[of[n]] = self.members.get(of[n], 0) + 1

    def means(self) -> dict[str, Any]:
        """The record of the step; empty if no group was audited.

        `reward_shift`, `tokens_shift`: mean over the chosen minus mean over all, mean over groups.
        `advantage_shift_by_kind`: the advantage that a member is trained with minus the one that it
        would have with all candidates as its group, mean over the `members_by_kind`.
        `advantage_moved`: mean of its absolute value over all of them.
        """
        if not self.groups and not self.signal_lost:
            return {}
        found: dict[str, Any] = {"groups": self.groups, "signal_lost": self.signal_lost}
        if self.groups:
            found["reward_shift"] = self.reward / self.groups
            found["tokens_shift"] = self.tokens / self.groups
        known = [kind for kind in KINDS if kind in self.members]
        if known:
            found["advantage_moved"] = self.moved / sum(self.members.values())
            found["advantage_shift_by_kind"] = {
                k: self.advantages[k] / self.members[k] for k in known
            }
            found["members_by_kind"] = {kind: self.members[kind] for kind in known}
        return found


def _shift(values: Sequence[float], chosen: Sequence[int]) -> float:
    return sum(values[n] for n in chosen) / max(1, len(chosen)) - sum(values) / len(values)
