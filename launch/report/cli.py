"""The options of `darts report`; its implementation is imported only when it runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from launch.options import exit_with_error

_MEGABYTE = 1e6


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    out: Annotated[
        Path | None,
        typer.Option(help="file of the page; default: RUN/report.html, report.html for several"),
    ] = None,
) -> None:
    """Write one HTML page about a run, or comparing several runs. The page works offline.

    darts report runs/quickstart

    darts report runs/compare/*/ --out comparison.html
    """
    import importlib.util

    from pipeline.system.terminal_text import printable

    begun = time.monotonic()
    if importlib.util.find_spec("bokeh") is None:
        exit_with_error("the plots need bokeh: pip install 'darts-rl[report]'", 2)
    from launch.report.build import build_page
    from pipeline.system.run_folder import RunError
    from pipeline.system.untrusted_files import UnreadableFile

    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if not path.absolute().parent.is_dir() and path.parent not in runs:
        exit_with_error(f"--out {path}: no such folder: {path.absolute().parent}", 2)
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
        exit_with_error(f"{path}: this folder cannot be written: name another file with --out", 2)
    try:
        page = build_page(runs, lambda line: typer.echo(f"warning: {printable(line)}", err=True))
        path.write_text(page, encoding="utf-8")
    except (RunError, UnreadableFile, OSError) as error:
        exit_with_error(error, 2)
    size = path.stat().st_size / _MEGABYTE
    typer.echo(f"{path}: {size:.1f} MB, in {time.monotonic() - begun:.1f} s")
