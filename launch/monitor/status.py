"""`darts status`: what a run waits for, which process can end the wait, and its time limit.

Reads `live.json` in the run's folder, as `darts top` does; changes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.monitor.top import Watched
from launch.options import RUN_HELP, run_folder

if TYPE_CHECKING:
    from pipeline.observability.live_status import PeerStatus, RunStatus, WaitStatus

NOT_WELL = 1
"""Exit status of a run that is neither making progress nor done."""


def status_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show what a run waits for, and since when.

    It also says what happens at each time limit.

    The exit status is 0 while the run starts or works and when it is done, else 1.

    darts status runs/quickstart
    """
    import json

    from pipeline.system.terminal_text import printable

    folder = run_folder(run)
    now, note, word = _look(Watched(folder, run), started=folder.live.exists())
    found = status_document(run, now, note, word)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo(printable("\n".join(status_lines(run, now, note, word))))
    raise typer.Exit(0 if word in ("starting", "running", "done") else NOT_WELL)


def _look(watched: Watched, started: bool) -> tuple[RunStatus, str, str]:
    """Returns the status, a note in words, and one word: running, starting, silent, done, stopped,
    ended, or never started."""
    now, note, ending = watched.read_state()
    if ending is not None:
        return (now, note, ending.word) if started else (now, "", "never started")
    if not now.time:
        return now, "", "starting"
    return now, note, "silent" if note.startswith("SILENT") else "running"


def status_document(run: Path, now: RunStatus, note: str, word: str) -> dict[str, Any]:
    """Returns everything as one document, for programs."""
    import msgspec

    return {
        "run": str(run),
        "state": word,
        "note": note,
        "phase": now.phase,
        "step": now.step,
        "steps": now.steps,
        "paced": now.paced,
        "waits": msgspec.to_builtins(now.waits),
        "peers": msgspec.to_builtins(now.peers),
        "missing": now.missing,
        "acted": now.acted,
    }


def status_lines(run: Path, now: RunStatus, note: str, word: str) -> Iterator[str]:
    """Yields the lines that are printed."""
    from launch.monitor.panel import SHORTEST_WAIT_S
    from pipeline.system.terminal_text import counted

    if word == "never started":
        config = shlex.quote(str(run / "config.yaml"))
        yield f"{run}: never started; start it with: darts train {config}"
        return
    yield f"{run}: {word}, {now.step} of {counted(now.steps, 'step')} done" + (
        f"; {note}" if note else ""
    )
    if now.paced:
        yield f"paced: {now.paced}: times are emulated"
    if word in ("done", "stopped", "ended"):
        if word == "ended" and now.waits:
            yield "in its last report it waited for:"
            yield from (line for wait in now.waits for line in _of_a_wait(wait))
        return
    if word == "starting":
        yield "no report from its stage yet; see logs/"
        return
    if word == "silent":
        yield "the stage is silent: it hangs, is stopped, or is dead. It last waited for:"
    long = [wait for wait in now.waits if wait.seconds >= SHORTEST_WAIT_S]
    for wait in long:
        yield from _of_a_wait(wait)
    if not long:
        yield f"nothing has been waited for longer than {SHORTEST_WAIT_S:g} s"
    yield from (_of_a_peer(peer) for peer in now.peers)
    for name, seconds in now.missing.items():
        yield f"{name:>10}  engine, missing for {seconds:.0f} s; see logs/{name}.log"
    if now.acted:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(now.acted.items()))
        yield f"time limits acted on so far: {counts}"


def _of_a_wait(wait: WaitStatus) -> Iterator[str]:
    yield f"{wait.seconds:8.1f} s  {wait.what}"
    if wait.limit_s:
        until = f"no progress for {wait.still_s:.1f} of {wait.limit_s:g} s"
        yield f"{'':12}{wait.by} can end it; {until}; then {wait.then}"
    else:
        yield f"{'':12}{wait.by} can end it; no limit: {wait.then}"


def _of_a_peer(peer: PeerStatus) -> str:
    return (
        f"{peer.name:>10}  {peer.role}, {peer.activity!r}, last report {peer.heard_s:.1f} s ago, "
        f"last progress {peer.still_s:.1f} s ago"
    )
