"""`darts top`: watches a run from another terminal through the files in its folder.

Reads `live.json` and the new lines of `metrics.jsonl`; changes nothing and takes no lock. What it
reads may be damaged, or written by somebody else: `launch.run_files.watched` checks it.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import RUN_HELP, exit_with_error, run_folder

if TYPE_CHECKING:
    from launch.monitor.panel import Ending, History
    from pipeline.observability.live_status import RunStatus
    from pipeline.system.run_folder import RunFolder

OLD_S = 5.0
"""A run writes its status every second; one older than this is shown as old."""
_EVERY_S = 1.0
_NARROW = (100, 24)  # columns and lines without a terminal and without COLUMNS


def top_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    once: Annotated[
        bool, typer.Option("--once", help="print one frame and exit (default without a terminal)")
    ] = False,
) -> None:
    """Watch a run: learning, engines, queues, tokens and waits. Ctrl-C ends it.

    darts top runs/quickstart
    """
    from rich.console import Console
    from rich.live import Live as LivePanel

    folder = Watched(run_folder(run), run)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = shutil.get_terminal_size(_NARROW).columns
    if once or not console.is_terminal:
        console.print(folder.next_panel(console.width))
        return
    try:
        with LivePanel(console=console, screen=True, auto_refresh=False) as panel:
            while not folder.over:
                panel.update(folder.next_panel(console.width), refresh=True)
                time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return
    console.print(folder.next_panel(console.width))


class Watched:
    """A run's folder, read repeatedly.

    Args:
        said: the folder as the user named it.
    """

    def __init__(self, run: RunFolder, said: Path) -> None:
        from launch.monitor.panel import History

        self._run, self._said = run, said
        self._history: History = History()
        self._read = 0  # bytes of metrics.jsonl
        self.over = False  # no frame will be newer

    def next_panel(self, width: int) -> Any:
        from launch.monitor.panel import render_panel

        now, note, ending = self.read_state()
        return render_panel(
            self._run.path.name, now, self._history, width=width, note=note, ending=ending
        )

    def read_state(self) -> tuple[RunStatus, str, Ending | None]:
        """Returns the run's status, a note, and how it ended; None if it has not."""
        self._read_metrics()
        now = self._live()
        note, ending = self._state(now)
        self.over = ending is not None
        return now, note, ending

    def _live(self) -> RunStatus:
        """Reads `live.json`; without one, returns what the other files say."""
        from launch.run_files.watched import read_live
        from pipeline.observability.live_status import RunStatus
        from pipeline.system.untrusted_files import UnreadableFile

        try:
            return read_live(self._run.live)
        except UnreadableFile as error:
            if not error.missing:
                exit_with_error(f"{error}; a run that goes on replaces it every second")
        steps = self._history.steps
        done = steps[-1]["step"] + 1 if steps else 0
        ledger = dict(steps[-1].get("ledger", {})) if steps else {}
        sampled = ledger.pop("sampled", 0)
        return RunStatus(step=done, steps=self._planned or done, sampled=sampled, ledger=ledger)

    @functools.cached_property
    def _planned(self) -> int:
        """Steps in the configuration; 0 if it cannot be read. Loads none of its plug-ins: their
        code may be somebody else's."""
        from launch.run_files.watched import planned_steps

        return planned_steps(self._run.config)

    def _state(self, now: RunStatus) -> tuple[str, Ending | None]:
        """Returns a note and how the run ended. Looks at the lock only if the status is old."""
        from launch.monitor.panel import Ending

        age = time.time() - now.time
        dated = f"{age:.0f} s old" if age < 120 else time.strftime(
            "from %Y-%m-%d %H:%M:%S", time.localtime(now.time)
        )  # fmt: skip
        if age <= OLD_S and now.phase != "over":
            return f"data {dated}", None
        if self._run.in_use:
            if not now.time:
                return "starting: no report yet", None
            return f"SILENT: the last report is {dated}; see logs/stage.log", None
        if self._run.result.exists():
            return "ENDED: the run is done", Ending("done")
        word, how = ("stopped", ": stopped") if now.phase == "over" else (
            ("ended", " without a result")
        )  # fmt: skip
        what = f"; last report {dated}" if now.time else ""
        step = self._checkpoint()
        if step is None:
            return f"ENDED{how}{what}", Ending(word, "no checkpoint; logs/stage.log says more")
        advice = f"continue with: darts train --resume {shlex.quote(str(self._said))}"
        return f"ENDED{how}, checkpoint at step {step}{what}", Ending(word, advice)

    def _checkpoint(self) -> int | None:
        """Returns the step of the newest checkpoint, by its name: only a resume reads it."""
        from pipeline.checkpoint.store import committed

        found = committed(self._run.checkpoints)
        return int(found[0].name.removeprefix("step-")) if found else None

    def _read_metrics(self) -> None:
        """Reads new lines; a resume cuts the file, which is then read from the start."""
        from launch.monitor.panel import History
        from launch.run_files.watched import shown_line

        path = self._run.metrics
        try:
            size = path.stat().st_size if path.is_file() else 0
            if size < self._read:
                self._history, self._read = History(), 0
            if size == self._read:
                return
            with path.open("rb") as file:
                file.seek(self._read)
                whole, _, _ = file.read().rpartition(b"\n")  # the last line may be incomplete
        except OSError as error:
            exit_with_error(f"{path}: cannot be read: {error.strerror}")
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            # `darts explain` and the report name lines that cannot be read
            if (fields := shown_line(line)) is not None:
                self._history.add_line(fields["what"], fields)
