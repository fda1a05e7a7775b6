"""Plug-ins of a job's test: a selector of variants and forks, and a reward over whole groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.plugins import Every, Finalize, GroupView, Sample, Sampled, SelectorEvent, Wants

HINT = "answer:0.5"


class Explore:
    """A group with a long member gets a fork of it and one with a hint; all are trained on."""

    wants = Wants(every=8)
    variants = (HINT,)

    def __init__(self, options: Any = None) -> None:
        del options

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[Any]:
        if isinstance(event, Every) and group.budget == group.size:
            origin = next(m for m in group.members if m.id == event.trajectory)
            if origin.remaining is None:
                raise ValueError("the simulated engine has not said what is to come")
            yield Sample(1, fork=(origin.id, 5), why="a long one")
            yield Sample(1, variant=HINT, why="with a hint")
        elif not group.unended:
            marked = any(m.marked is not None for m in group.ended)
            yield Finalize(tuple(m.id for m in group.ended), kind="marked" if marked else "")


class AboveTheMean:
    """Right are responses longer than the group's mean: no response alone can be judged so."""

    def __init__(self, options: Any = None) -> None:
        del options

    def score(self, sample: Sampled) -> float:
        return 0.0

    def score_group(self, samples: Sequence[Sampled]) -> list[float]:
        mean = sum(sample.tokens for sample in samples) / len(samples)
        return [float(sample.tokens > mean) for sample in samples]
