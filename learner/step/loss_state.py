"""Keeps the state of a loss as it was after the last optimizer step, for checkpoints.

A loss is run more than once over a group: when a gradient is built anew, when memory ran
out, and over groups that are given back. So its state goes back to the one kept here
before that, and a checkpoint holds no more than the groups whose gradient was applied.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from learner.losses import Loss

log = logging.getLogger("learner")


class LossStateError(Exception):
    """The state of a loss cannot be saved, or is another loss's."""


class LossState:
    """The state of one loss, if it has any."""

    def __init__(self, loss: Loss) -> None:
        """Raises LossStateError for a state that msgpack cannot hold."""
        self._loss: Any = loss
        self._name = f"{type(loss).__module__}.{type(loss).__qualname__}"
        self._kept = b""
        self.keep()

    @property
    def has_any(self) -> bool:
        """True if the loss offers a state."""
        return hasattr(self._loss, "state")

    def keep(self) -> None:
        """Remember the present state: an optimizer step was applied."""
        if not self.has_any:
            return
        try:
            self._kept = msgspec.msgpack.encode(self._loss.state())
        except (TypeError, ValueError, OverflowError) as error:
            raise LossStateError(
                f"loss {self._name}: what state() returns cannot be saved: {error}; take numbers, "
                "texts, lists and dicts"
            ) from error

    def rewind(self) -> None:
        """Give the loss back the state that was kept."""
        if self.has_any:
            self._loss.restore(msgspec.msgpack.decode(self._kept))

    def saved(self) -> bytes:
        """Return what a checkpoint holds; empty for a loss without a state."""
        return msgspec.msgpack.encode((self._name, self._kept)) if self.has_any else b""

    def restore(self, saved: bytes) -> None:
        """Take over the state of a checkpoint; empty: it has none.

        Raises: LossStateError if another loss left it.
        """
        if not self.has_any:
            return
        if not saved:
            log.warning("the checkpoint holds no state of the loss: it begins anew")
            return
        name, self._kept = msgspec.msgpack.decode(saved, type=tuple[str, bytes])
        if name != self._name:
            raise LossStateError(f"the checkpoint holds the state of {name}, not of {self._name}")
        self.rewind()
