"""Losses that go wrong on purpose, in the learner's processes."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from learner.losses import LossBatch
from learner.losses.dapo import Dapo, DapoOptions

STANDS_S = 4.0
"""How long a rank may stand still in runs with `Hanging`."""


class Raising(Dapo):
    """Raises in the first backward pass; an exit in good order would wait for its thread."""

    def __init__(self, options: DapoOptions | None = None) -> None:
        super().__init__(options)
        threading.Thread(target=time.sleep, args=(600,)).start()

    def loss(self, batch: LossBatch) -> Any:
        raise ValueError("this loss is broken")


class Hanging(Dapo):
    """Rank 1 never comes out of its first pass, and so never into the collective after it."""

    def __init__(self, options: DapoOptions | None = None) -> None:
        super().__init__(options)
        actor: Any = sys.modules["__main__"]
        actor.STEP_LIMIT_S = STANDS_S

    def loss(self, batch: LossBatch) -> Any:
        if sys.argv[sys.argv.index("--rank") + 1] == "1":
            time.sleep(600)
        return super().loss(batch)
