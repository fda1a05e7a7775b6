"""A run in a notebook's cell: one panel that is replaced, and lines that stay."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from launch.monitor.notebook import NotebookView, ipython_module, view_here
from launch.monitor.terminal import TerminalView
from pipeline.observability.live_status import RunStatus


class Shown:
    """What a display shows: its pages, one after another."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def update(self, page: str) -> None:
        self.pages.append(page)


def ipython_of(kernel: object) -> tuple[Any, Shown]:
    shown = Shown()

    def display(page: str, display_id: bool) -> Shown:
        assert display_id
        shown.update(page)
        return shown

    module = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=kernel),
        display=SimpleNamespace(display=display, HTML=str),
    )
    return module, shown


def test_the_panel_is_replaced_and_evaluations_and_warnings_stay():
    module, shown = ipython_of(kernel=object())
    view = NotebookView(3, "mine", module)
    view.on_line({"live": msgspec.to_builtins(RunStatus(steps=3, phase="training"))})
    found = dict(step=0, accuracy=0.5, tokens_mean=9.0, tokens_p95=9, tokens_max=9, samples=4)
    view.on_line({"eval": {**found, "seconds": 1.0}})
    view.on_line({"say": "engine e0 lost <soon>"})
    view.on_line({"step": {"step": 0, "reward": 0.25, "seconds": 1.0}})
    page = shown.pages[-1]
    assert "training" in page
    assert "0.250" in page
    assert "evaluation at step 0: accuracy 0.500" in page
    assert "! engine e0 lost &lt;soon&gt;" in page
    assert all(page.count("mine") == 1 for page in shown.pages), "one panel a page"


@pytest.mark.parametrize("kernel, kind", [(object(), NotebookView), (None, TerminalView)])
def test_a_kernel_gets_the_panel_and_ipython_in_a_terminal_lines(
    monkeypatch: pytest.MonkeyPatch, kernel: object, kind: type
):
    monkeypatch.setitem(sys.modules, "IPython", ipython_of(kernel)[0])
    assert isinstance(view_here(3, "mine"), kind)


def test_without_ipython_there_is_no_notebook(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert ipython_module() is None
