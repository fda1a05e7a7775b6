"""Output of a run in a notebook: the panel of `darts top` in the cell, replaced as the run goes on.

Evaluations and warnings stay as lines below it. Imports no IPython: it is there if a notebook runs.
"""

from __future__ import annotations

import html
import io
import sys
import time
from typing import Any

import msgspec
from rich.console import Console

from launch.monitor.panel import History, clock, render_panel
from launch.monitor.terminal import TerminalView, evaluation_line
from pipeline.observability.live_status import RunStatus
from pipeline.system.terminal_text import printable

_COLUMNS = 100
_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:1.2;margin:0">{code}</pre>'


def ipython_module() -> Any:
    """Returns IPython if this is the kernel of a notebook, else None: in a terminal it is a shell
    as any other."""
    found: Any = sys.modules.get("IPython")
    shell = found.get_ipython() if found is not None else None
    return found if getattr(shell, "kernel", None) is not None else None


def view_here(steps: int, name: str) -> TerminalView | NotebookView:
    """Returns the view that fits where this process prints: a notebook, a terminal or a file."""
    ipython = ipython_module()
    return TerminalView(steps, name=name) if ipython is None else NotebookView(steps, name, ipython)


class NotebookView:
    """Shows a run in a notebook's cell.

    Args:
        ipython: the module.
    """

    def __init__(self, steps: int, name: str, ipython: Any) -> None:
        self._name, self._now = name, RunStatus(steps=steps)
        self._history, self._lines = History(), list[str]()
        self._started = time.monotonic()
        self._display = ipython.display
        self._shown = self._display.display(self._page(), display_id=True)

    def on_line(self, line: dict[str, Any]) -> None:
        for what in ("step", "eval"):
            if what in line:
                self._history.add_line(what, line[what])
        if "eval" in line:
            self._lines.append(evaluation_line(line["eval"]))
        elif "say" in line:
            self._lines.append(f"! {line['say']}")
        elif "live" in line:
            self._now = msgspec.convert(line["live"], RunStatus)
        self._shown.update(self._page())

    def close(self) -> None:
        """Leaves the last panel as it is."""

    def _page(self) -> Any:
        console = Console(record=True, file=io.StringIO(), width=_COLUMNS, force_jupyter=False)
        note = f"{clock(time.monotonic() - self._started)} since the start"
        console.print(render_panel(self._name, self._now, self._history, width=_COLUMNS, note=note))
        panel = console.export_html(inline_styles=True, code_format=_PRE)
        lines = "\n".join(html.escape(printable(line)) for line in self._lines)
        return self._display.HTML(panel + (_PRE.format(code=lines) if lines else ""))
