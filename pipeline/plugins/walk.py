"""The walk that prompt orders share: one epoch after another, nothing lost or repeated.

An order of one's own may be a `Walk` with another permutation, or hold one and choose from what
it gives (`fresh`).

Invariant: within an epoch of a source every prompt of it is planned once. A prompt that
is outstanding when its turn comes waits; the next epoch begins only when none waits.
Deferred prompts come first and belong to the epoch that planned them.

Several sources each have epochs of their own. Which one gives the next prompt follows
from how many each has given, by weight (Sainte-Lague: the smallest (given + 1/2) / weight,
ties to the earlier): without randomness, and at any length as near to the weights as
whole prompts allow. A source that has none to give now catches up later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import msgspec

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Plan
from pipeline.plugins.ranges import NonNegativeInt
from pipeline.plugins.views import PlanView, SourceView


class OrderOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of every order."""

    epochs: NonNegativeInt = 0
    """How often the data set is gone through, each of several sources for itself; then the run
    ends. 0: as often as needed."""


Permutation = Callable[[int, int, int], Sequence[int]]
"""(source, epoch, prompts of the source) -> their order."""


class _Cursor:
    """The position of the walk in one source."""

    def __init__(self, number: int, epochs: int, permutation: Permutation) -> None:
        self._number, self._epochs, self._permutation = number, epochs, permutation
        self.epoch = 0
        self.position = 0
        self.given = 0
        self._count = 1  # prompts of the source, once it is known
        self.waiting: deque[int] = deque()  # skipped in this epoch, oldest first
        self._known: tuple[tuple[int, int], Sequence[int]] | None = None

    @property
    def passes(self) -> float:
        """Epochs, with the part of the one under way."""
        return self.epoch + self.position / self._count

    @property
    def left(self) -> int:
        """Prompts of the epoch under way that have not been given."""
        return self._count - self.position + len(self.waiting)

    def ready(self, source: SourceView, free: Callable[[int], bool]) -> Iterator[int]:
        """Prompts that can be planned now, one by one; each that is given out is used up."""
        self._count = max(1, source.count)
        for prompt in list(self.waiting):
            if free(prompt):
                self.waiting.remove(prompt)
                yield prompt
        while self._more(source.count):
            prompt = source.first + self._order(source.count)[self.position]
            self.position += 1
            if free(prompt):
                yield prompt
            else:
                self.waiting.append(prompt)

    def _more(self, count: int) -> bool:
        """Returns True if a prompt is left to look at; begins the next epoch when one has ended."""
        if self.position < count:
            return not self._epochs or self.epoch < self._epochs
        if self.waiting or not count:
            return False
        if self._epochs and self.epoch + 1 >= self._epochs:
            return False
        self.epoch, self.position = self.epoch + 1, 0
        return True

    def _order(self, count: int) -> Sequence[int]:
        key = (self.epoch, count)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._permutation(self._number, *key))
        return self._known[1]

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "position": self.position,
            "given": self.given,
            "count": self._count,
            "waiting": list(self.waiting),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.given, self._count = int(state["given"]), int(state.get("count", 1))
        self.waiting = deque(int(prompt) for prompt in state["waiting"])


class Walk:
    """Plans prompts in the order that `permutation` gives."""

    def __init__(self, options: OrderOptions, permutation: Permutation) -> None:
        self._epochs = options.epochs
        self._permutation = permutation
        self._cursors: list[_Cursor] = []

    @property
    def epochs(self) -> dict[str, float]:
        """Passes through each source so far, by its number."""
        return {str(n): round(cursor.passes, 4) for n, cursor in enumerate(self._cursors)}

    @property
    def left(self) -> int:
        """Prompts of the epochs under way that have not been given; 0 before the first plan."""
        return sum(cursor.left for cursor in self._cursors)

    def fresh(
        self, view: PlanView, want: int, passed_over: Set[int] = frozenset()
    ) -> tuple[int, ...]:
        """Returns the walk's next prompts, up to `want`: none deferred, none of `passed_over`.

        Those are passed over as if they were open: the walk comes back to them, so that a new
        epoch does not use up the old one's attempt.
        """
        waiting = view.outstanding | set(view.deferred) | passed_over
        passed = msgspec.structs.replace(view, want=want, outstanding=waiting, deferred=())
        return Walk.plan(self, passed).prompts

    def plan(self, view: PlanView) -> Plan:
        """Returns up to `view.want` prompts, none of them outstanding, none twice."""
        planned: dict[int, None] = {}

        def free(prompt: int) -> bool:
            known = prompt < view.dataset  # it may have shrunk before a resume
            return known and prompt not in view.outstanding and prompt not in planned

        for prompt in view.deferred:
            if len(planned) < view.want and free(prompt):
                planned[prompt] = None
        sources = view.sources or (SourceView(0, view.dataset, 1.0),)
        while len(self._cursors) < len(sources):
            self._cursors.append(_Cursor(len(self._cursors), self._epochs, self._permutation))
        giving = {
            number: cursor.ready(source, free)
            for number, (cursor, source) in enumerate(zip(self._cursors, sources, strict=True))
        }
        while giving and len(planned) < view.want:
            number = min(
                giving, key=lambda n: ((self._cursors[n].given + 0.5) / sources[n].weight, n)
            )
            prompt = next(giving[number], None)
            if prompt is None:
                del giving[number]
            else:
                planned[prompt] = None
                self._cursors[number].given += 1
        return Plan(prompts=tuple(planned))

    def state(self) -> dict[str, Any]:
        """Returns the position in each source; the order itself follows from the seed."""
        return {"version": 2, "sources": [cursor.state() for cursor in self._cursors]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 2:
            raise ValueError(f"state of a prompt order: version {state.get('version')}, not 2")
        self._cursors = [
            _Cursor(number, self._epochs, self._permutation)
            for number in range(len(state["sources"]))
        ]
        for cursor, saved in zip(self._cursors, state["sources"], strict=True):
            cursor.restore(saved)


def deferred_and_free(view: PlanView) -> list[int]:
    """Prompts that have been given back and can be planned now, oldest first."""
    return [
        prompt  # the data set may have shrunk before a resume
        for prompt in view.deferred
        if prompt < view.dataset and prompt not in view.outstanding
    ]
