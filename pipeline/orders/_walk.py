"""The cursor that the orders share: one epoch after another, nothing lost or repeated.

Invariant: within an epoch every prompt is planned once. A prompt that is
outstanding when its turn comes waits; the next epoch begins only when none waits.
Deferred prompts come first and belong to the epoch that planned them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline import plugins
from pipeline.verbs import Plan
from pipeline.views import PlanView


class OrderOptions(plugins.Options, frozen=True, kw_only=True):
    """Options of every order."""

    epochs: int = 0
    """How often the data set is gone through; then the run ends. 0: as often as needed."""

    def problems(self, group_size: int) -> Iterator[str]:
        if self.epochs < 0:
            yield f"epochs is {self.epochs}, expected at least 0"


class Walk:
    """Plans prompts in the order that `permutation(epoch, dataset)` gives."""

    def __init__(
        self, options: OrderOptions, permutation: Callable[[int, int], Sequence[int]]
    ) -> None:
        self._epochs = options.epochs
        self._permutation = permutation
        self._epoch = 0
        self._position = 0
        self._waiting: deque[int] = deque()  # skipped in this epoch, oldest first
        self._known: tuple[tuple[int, int], Sequence[int]] | None = None

    def plan(self, view: PlanView) -> Plan:
        """Up to `view.want` prompts, none of them outstanding, none twice."""
        planned: dict[int, None] = {}

        def free(prompt: int) -> bool:
            known = prompt < view.dataset  # it may have shrunk before a resume
            return known and prompt not in view.outstanding and prompt not in planned

        def wanted() -> bool:
            return len(planned) < view.want

        for prompt in view.deferred:
            if wanted() and free(prompt):
                planned[prompt] = None
        for prompt in list(self._waiting):
            if wanted() and free(prompt):
                planned[prompt] = None
                self._waiting.remove(prompt)
        while wanted() and self._more(view.dataset):
            prompt = self._order(view.dataset)[self._position]
            self._position += 1
            if free(prompt):
                planned[prompt] = None
            else:
                self._waiting.append(prompt)
        return Plan(prompts=tuple(planned))

    def _more(self, dataset: int) -> bool:
        """Whether there is a position to look at; begins the next epoch when one has ended."""
        if self._position < dataset:
            return not self._epochs or self._epoch < self._epochs
        if self._waiting or not dataset:
            return False
        if self._epochs and self._epoch + 1 >= self._epochs:
            return False
        self._epoch, self._position = self._epoch + 1, 0
        return True

    def _order(self, dataset: int) -> Sequence[int]:
        key = (self._epoch, dataset)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._permutation(*key))
        return self._known[1]

    def ended(self, prompt: int, how: str, rewards: Sequence[float]) -> None:
        """These orders learn nothing from results."""

    def state(self) -> dict[str, Any]:
        """Where the walk stands; the order itself follows from the seed."""
        return {
            "version": 1,
            "epoch": self._epoch,
            "position": self._position,
            "waiting": list(self._waiting),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of a prompt order: version {state.get('version')}, not 1")
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._waiting = deque(int(prompt) for prompt in state["waiting"])
