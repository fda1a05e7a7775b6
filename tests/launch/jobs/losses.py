"""Losses that go wrong on purpose, in the learner's processes."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from learner.losses import LossBatch
from learner.losses.dapo import Dapo, DapoOptions

STANDS_S = 4.0
"""How long a rank may stand still in runs with `Hanging`."""


SMALL_SINCE = "TEST_MEMORY_IS_SMALL_SINCE"
"""Environment variable: a path, for `Exhausting`."""
FITS = 150
"""Response tokens of a pass that fit into the memory of `Exhausting`'s rank 1."""


def argument(name: str) -> str:
    """An argument of this rank's process."""
    return sys.argv[sys.argv.index(name) + 1]


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
        if argument("--rank") == "1":
            time.sleep(600)
        return super().loss(batch)


class Exhausting(Dapo):
    """Once the file SMALL_SINCE exists, little memory is left on rank 1: a larger pass runs out
    of it in the middle of its backward, in every process that tries."""

    def loss(self, batch: LossBatch) -> Any:
        loss, metrics = super().loss(batch)
        small = argument("--rank") == "1" and Path(os.environ[SMALL_SINCE]).exists()
        if small and batch.mask_BT.sum() > FITS:
            batch.logprobs_BT.register_hook(exhaust)
        return loss, metrics


def exhaust(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("the test's")
