"""`darts status`: who waits for whom in a run, who can end it, and what the run does at its limit.

Reads what the run leaves in its folder (`live.json`), as `darts top` does; touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.monitor.top import Watched
from launch.options import RUN_HELP, run_folder

if TYPE_CHECKING:
    from pipeline.observability.live_status import PeerStatus, RunStatus, WaitStatus

NOT_WELL = 1
"""Exit status where the run neither goes on nor is done."""


def status_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="the same as one JSON object")] = False,
) -> None:
    """Who waits for whom, since when, until which limit, and what happens then.

    Exit status 0 while the run starts or goes on and when it is done, 1 otherwise.

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
    """What the run does now, in words, and in one: running, starting, silent, done, stopped,
    ended, or never started."""
    now, note, ending = watched.read_state()
    if ending is not None:
        return (now, note, ending.word) if started else (now, "", "never started")
    if not now.time:
        return now, "", "starting"
    return now, note, "silent" if note.startswith("NO NEWS") else "running"


def status_document(run: Path, now: RunStatus, note: str, word: str) -> dict[str, Any]:
    """All of it, for programs."""
    import msgspec

    return {
        "run": str(run),
        "state": word,
        "note": note,
        "phase": now.phase,
        "step": now.step,
        "steps": now.steps,
        "waits": msgspec.to_builtins(now.waits),
        "peers": msgspec.to_builtins(now.peers),
        "acted": now.acted,
    }


def status_lines(run: Path, now: RunStatus, note: str, word: str) -> Iterator[str]:
    """For people."""
    if word == "never started":
        yield f"{run}: never started; start it with: darts train {run}/config.yaml"
        return
    yield f"{run}: {word}, {now.step} of {now.steps} steps done" + (f"; {note}" if note else "")
    if word in ("done", "stopped", "ended"):
        if word == "ended" and now.waits:
            yield "when it was last heard of it waited for:"
            yield from (line for wait in now.waits for line in _of_a_wait(wait))
        return
    if word == "starting":
        yield "nothing heard of its stage yet; logs/ says how far it is"
        return
    if word == "silent":
        yield "the stage says nothing: it hangs, is stopped, or is dead. It last waited for:"
    for wait in now.waits:
        yield from _of_a_wait(wait)
    if not now.waits:
        yield "nobody waits for anything"
    yield from (_of_a_peer(peer) for peer in now.peers)
    if now.acted:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(now.acted.items()))
        yield f"acted on so far: {counts}"


def _of_a_wait(wait: WaitStatus) -> Iterator[str]:
    yield f"{wait.seconds:8.1f} s  {wait.what}"
    if wait.limit_s:
        until = f"nothing has moved for {wait.still_s:.1f} of {wait.limit_s:g} s"
        yield f"{'':12}{wait.by} can end it; {until}; then {wait.then}"
    else:
        yield f"{'':12}{wait.by} can end it; no limit: {wait.then}"


def _of_a_peer(peer: PeerStatus) -> str:
    return (
        f"{peer.name:>10}  {peer.role}, {peer.activity!r}, heard of {peer.heard_s:.1f} s ago, "
        f"moved {peer.still_s:.1f} s ago"
    )
