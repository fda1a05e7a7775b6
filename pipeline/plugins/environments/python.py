"""Environment `python`: any importable function of one `Turn`, sync or async.

It returns what follows: text, an `Append` (tokens, or a text with something to
remember), or None when the response is complete.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pipeline.plugins.interfaces import EnvironmentOptions
from pipeline.plugins.registry import register
from pipeline.plugins.rewards._functions import folder_of, imported
from pipeline.plugins.views import Turn


class PythonOptions(EnvironmentOptions, frozen=True, kw_only=True):
    """Options of the `python` environment."""

    function: str
    """`package.module:callable` or `file.py:callable`; called with one `Turn`."""

    def problems(self, group_size: int) -> Iterator[str]:
        try:
            function = imported(self.function)
        except ValueError as error:
            yield f"function is {self.function!r}: {error}"
            return
        try:
            inspect.signature(function).bind(None)
        except (TypeError, ValueError):
            yield f"function is {self.function!r}, which does not take one argument, the turn"


@register("environment", "python")
class Python:
    Options = PythonOptions

    def __init__(self, options: PythonOptions) -> None:
        self._function = imported(options.function)
        self.folders = tuple(filter(None, [folder_of(self._function)]))
        """Where the function's source lies."""

    def turn(self, turn: Turn) -> Any:
        """Returns the function's result; the worker awaits and checks it."""
        return self._function(turn)
