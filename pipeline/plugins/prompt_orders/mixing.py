"""Prompt order `mixing`: kinds of prompts by weight, corrected for what has been completed.

Kinds (tags) differ in how long their responses are and how many groups are given up, so prompts
planned by weight give completions by other shares. The kind of each prompt is drawn with weight
base * clip(target / actual, 1 / most, most): target its share of the weights, actual its share of
the completed candidates so far; a kind without any has the factor `most`, and before `after`
completions in all the factor is 1. Within a kind prompts come in a shuffled order, epoch after
epoch of its own. Weights of several sources in `data.train` have no effect.
Source: Apriel-Reasoner, arXiv 2604.02007, and ServiceNow's PipelineRL, which published math .35,
code .25, logic .15, instructions .15, function calls .10. A completed candidate is one with a
reward (ours), however its group ended.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.plugins.actions import Plan
from pipeline.plugins.ranges import AtLeastOne, NonNegativeInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import EndedView, PlanView
from pipeline.plugins.walk import OrderOptions, Walk, deferred_and_free


class MixingOptions(OrderOptions, frozen=True, kw_only=True):
    """Options of the `mixing` order."""

    mix: dict[str, float] = {}  # noqa: RUF012  copied by msgspec
    """Weight of each kind of prompt; every tag of the data has one. Empty: by number of prompts."""
    after: NonNegativeInt = 50
    """Completed candidates before weights are corrected."""
    most: AtLeastOne = 10.0
    """Largest factor of a correction, up and down."""

    def problems(self, group_size: int) -> Iterator[str]:
        weights = self.mix.values()
        if weights and (min(weights) < 0 or not any(weights)):  # of a dictionary no range is read
            yield f"mix is {self.mix}, but weights are at least 0, and one is above"


def corrected(
    base: Mapping[str, float], completed: Mapping[str, int], after: int, most: float
) -> dict[str, float]:
    """Weights with which the kind of the next prompt is drawn.

    >>> corrected({"a": 0.5, "b": 0.5}, {"a": 300, "b": 100}, 50, 10.0)
    {'a': 0.3333333333333333, 'b': 1.0}
    """
    done, total = sum(completed.values()), sum(base.values())
    if done < max(1, after):
        return dict(base)

    def factor(tag: str) -> float:
        actual = completed.get(tag, 0) / done
        return min(most, max(1 / most, base[tag] / total / actual)) if actual else most

    return {tag: weight * factor(tag) for tag, weight in base.items()}


@register("prompt_order", "mixing")
class Mixing:
    Options = MixingOptions

    def __init__(self, options: MixingOptions | None = None, *, seed: int = 0) -> None:
        self._options = options or MixingOptions()
        self._seed = seed
        self._draws = 0
        self._completed: dict[str, int] = {}
        self._walks: dict[str, Walk] = {}
        self._tags: Sequence[str] | None = None  # of the data set that `_prompts` is of
        self._prompts: dict[str, list[int]] = {}
        self._place: list[int] = []  # of each prompt within its kind

    @property
    def epochs(self) -> dict[str, float]:
        """Passes through each kind."""
        return {tag: passes for tag in self._walks for passes in self._walks[tag].epochs.values()}

    def plan(self, view: PlanView) -> Plan:
        """Raises ValueError if the weights and the data do not name the same kinds."""
        tags = view.tags or [""] * view.dataset
        if self._options.mix and not any(tags):
            return Plan(prompts=(), why="prompt_order.mixing.mix names kinds, the data none")
        self._divide(tags)
        base = self._base()
        weights = corrected(base, self._completed, self._options.after, self._options.most)
        again = deferred_and_free(view)[: view.want]
        busy: dict[str, set[int]] = {tag: set() for tag in self._prompts}
        for prompt in {*view.outstanding, *view.deferred}:
            if prompt < view.dataset:
                busy[tags[prompt]].add(self._place[prompt])
        planned = list(again)
        giving = {tag: weight for tag, weight in weights.items() if weight > 0}
        while giving and len(planned) < view.want:
            rng = random.Random(f"{self._seed}/mixing/{self._draws}")
            self._draws += 1
            [tag] = rng.choices(list(giving), list(giving.values()))
            found = self._next(tag, view, busy[tag])
            if found is None:
                del giving[tag]
            else:
                busy[tag].add(found)
                planned.append(self._prompts[tag][found])
        return Plan(prompts=tuple(planned))

    def _divide(self, tags: Sequence[str]) -> None:
        """Sort the prompts by kind, once for a data set."""
        if tags is self._tags or tags == self._tags:
            return
        self._tags, self._prompts, self._place = tags, {}, []
        for prompt, tag in enumerate(tags):
            of_kind = self._prompts.setdefault(tag, [])
            self._place.append(len(of_kind))
            of_kind.append(prompt)
        mix = self._options.mix
        if mix and set(mix) != set(self._prompts):
            named, there = ", ".join(sorted(mix)), ", ".join(sorted(self._prompts))
            raise ValueError(
                f"prompt_order.mixing.mix names {named}, but the data has the tags {there}; "
                "expected a weight for each of these, 0 leaves one out"
            )

    def _base(self) -> dict[str, float]:
        if self._options.mix:
            return dict(self._options.mix)
        return {tag: len(prompts) for tag, prompts in self._prompts.items()}

    def _next(self, tag: str, view: PlanView, busy: set[int]) -> int | None:
        """The place within its kind of the next prompt; None: none is free now."""
        if tag not in self._walks:
            self._walks[tag] = self._walk(tag)
        of_kind = msgspec.structs.replace(
            view,
            want=1,
            dataset=len(self._prompts[tag]),
            sources=(),
            outstanding=busy,
            deferred=(),
            tags=(),
        )
        return next(iter(self._walks[tag].plan(of_kind).prompts), None)

    def _walk(self, tag: str) -> Walk:
        def permutation(source: int, epoch: int, count: int) -> Sequence[int]:
            order = list(range(count))
            random.Random(f"{self._seed}/mixing/{tag}/{epoch}").shuffle(order)
            return order

        return Walk(self._options, permutation)

    def ended(self, group: EndedView) -> None:
        """Count the completed candidates of a kind."""
        self._completed[group.tag] = self._completed.get(group.tag, 0) + len(group.rewards)

    def state(self) -> dict[str, Any]:
        """Returns the walk's position in each kind, and what has been completed."""
        return {
            "version": 1,
            "draws": self._draws,
            "completed": dict(self._completed),
            "walks": {tag: walk.state() for tag, walk in self._walks.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version or order wrote it."""
        if state.get("version") != 1 or "walks" not in state:
            raise ValueError(f"state of mixing expected, version 1, found {list(state)}")
        self._draws = int(state["draws"])
        self._completed = {str(tag): int(count) for tag, count in state["completed"].items()}
        self._walks = {str(tag): self._walk(str(tag)) for tag in state["walks"]}
        for tag, walk in self._walks.items():
            walk.restore(state["walks"][tag])
