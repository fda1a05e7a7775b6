"""Shows a run through a view that may raise: that ends the run in good order, not at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class View(Protocol):
    """Shows a run to a person."""

    def on_line(self, line: dict[str, Any]) -> None: ...


class GuardedView:
    """Passes lines on; keeps the first exception, and has the run stop with a checkpoint.

    Args:
        stop: has the run stop.
    """

    def __init__(self, view: View, stop: Callable[[], None]) -> None:
        self._view, self._stop = view, stop
        self.error: BaseException | None = None

    def on_line(self, line: dict[str, Any]) -> None:
        try:
            self._view.on_line(line)
        except BaseException as error:  # SystemExit of a callback, too
            if self.error is None:
                self.error = error
                self._stop()

    @property
    def why(self) -> str:
        """What was raised, in a few words; '' for nothing."""
        return "" if self.error is None else f"{type(self.error).__name__}: {self.error}"
