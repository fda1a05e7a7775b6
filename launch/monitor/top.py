"""`darts top`: what a run does now, from another terminal, by what it leaves in its folder.

Reads `live.json` and the new lines of `metrics.jsonl`; touches nothing of the run.
"""

from __future__ import annotations

import functools
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
"""A run writes every second: what is older is said to be old."""
_EVERY_S = 1.0
_NARROW = (100, 24)  # columns and lines of a frame that no terminal shows, without COLUMNS


def top_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    once: Annotated[
        bool, typer.Option("--once", help="print one frame and end (as without a terminal)")
    ] = False,
) -> None:
    """Watch a run: learning, engines, queues, tokens, and who waits for whom. Ctrl-C ends it.

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
    """A run's folder, read again and again.

    Args:
        said: the folder as the user names it.
    """

    def __init__(self, run: RunFolder, said: Path) -> None:
        from launch.monitor.panel import History

        self._run, self._said = run, said
        self._history: History = History()
        self._read = 0  # bytes of metrics.jsonl
        self.over = False  # the newest frame is the last one that there will be

    def next_panel(self, width: int) -> Any:
        from launch.monitor.panel import render_panel

        now, note, ending = self.read_state()
        return render_panel(
            self._run.path.name, now, self._history, width=width, note=note, ending=ending
        )

    def read_state(self) -> tuple[RunStatus, str, Ending | None]:
        """What it does now, in words, and how it ended if it did."""
        self._read_metrics()
        now = self._live()
        note, ending = self._state(now)
        self.over = ending is not None
        return now, note, ending

    def _live(self) -> RunStatus:
        """Of `live.json`; of a run that has none (yet), what its other files tell."""
        import msgspec

        from pipeline.observability.live_status import RunStatus

        try:
            return msgspec.json.decode(self._run.live.read_bytes(), type=RunStatus)
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as error:
            exit_with_error(f"{self._run.live}: {error}")
        steps = self._history.steps
        done = steps[-1]["step"] + 1 if steps else 0
        ledger = dict(steps[-1]["ledger"]) if steps else {}
        sampled = ledger.pop("sampled", 0)
        return RunStatus(step=done, steps=self._planned or done, sampled=sampled, ledger=ledger)

    @functools.cached_property
    def _planned(self) -> int:
        """Steps that the configuration asks for; 0 if it cannot be read (any more)."""
        from pipeline.config.load import ConfigError, load

        try:
            return load(self._run.config).step.count
        except ConfigError:
            return 0

    def _state(self, now: RunStatus) -> tuple[str, Ending | None]:
        """In words, and how it ended if it did. The lock is asked for only when the news is old."""
        from launch.monitor.panel import Ending

        age = time.time() - now.time
        told = f"{age:.0f} s old" if age < 120 else time.strftime(
            "from %Y-%m-%d %H:%M:%S", time.localtime(now.time)
        )  # fmt: skip
        if age <= OLD_S and now.phase != "over":
            return f"data {told}", None
        if self._run.in_use:
            if not now.time:
                return "starting: nothing heard yet", None
            return f"NO NEWS: the newest is {told}; see logs/stage.log", None
        if self._run.result.exists():
            return "ENDED: the run is done", Ending("done")
        word, how = ("stopped", ": stopped") if now.phase == "over" else (
            ("ended", " without a result")
        )  # fmt: skip
        what = f"; news {told}" if now.time else ""
        step = self._checkpoint()
        if step is None:
            return f"ENDED{how}{what}", Ending(word, "no checkpoint; logs/stage.log says more")
        advice = f"go on with: darts train --resume {self._said}"
        return f"ENDED{how}, checkpoint at step {step}{what}", Ending(word, advice)

    def _checkpoint(self) -> int | None:
        """Steps that the newest one has done. It is not read: a resume does that, and mends."""
        found = sorted(self._run.checkpoints.glob("step-*"))
        return int(found[-1].name.removeprefix("step-")) if found else None

    def _read_metrics(self) -> None:
        """What is new since the last time; a resume cuts the file, then it is read anew."""
        import msgspec

        from launch.monitor.panel import History

        path = self._run.metrics
        size = path.stat().st_size if path.exists() else 0
        if size < self._read:
            self._history, self._read = History(), 0
        if size == self._read:
            return
        with path.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")  # the last line may still be being written
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            try:
                fields = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue  # a curve without this point; `darts explain` and the report name it
            self._history.add_line(fields.get("what", ""), fields)
