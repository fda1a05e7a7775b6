"""Every kind of fault: how it is done to a run, and what the run may do then.

`KINDS` is the table. A kind does its harm at once, or for some seconds; it neither waits for the
run nor judges it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import psutil

from pipeline.system.temp_dirs import SHARED_MEMORY
from pipeline.wire.client import StageClient
from pipeline.wire.messages import Join, TokenBatch
from scripts.faults.run import HEARTBEAT_S, DisturbedRun, Role

Phase = Literal["start", "training", "checkpoint"]
WHENEVER: tuple[Phase, ...] = ("start", "training", "training", "training", "checkpoint")
TRAINING: tuple[Phase, ...] = ("training", "training", "checkpoint")
FLOOD = 400
"""Half-sent requests at the port of the figures."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        harm: does it, and says what in particular.
        ends: statuses with which the run may end by it.
        goes_on: the run may go on; with `ends` empty it has to.
        target: a process of this role is awaited first.
        cuts: a run that trains leaves a checkpoint of the very step at which it ends.
    """

    harm: Callable[[DisturbedRun, random.Random], str]
    ends: frozenset[int] = frozenset()
    goes_on: bool = True
    target: Role = "launcher"
    phases: tuple[Phase, ...] = WHENEVER
    cuts: bool = False
    preloads: bool = False  # needs the library of failing writes


# --- signals ------------------------------------------------------------------------------------


def _signal_one(role: Role, number: signal.Signals, run: DisturbedRun, draw: random.Random) -> str:
    process = draw.choice(sorted(run.of_role(role), key=lambda p: p.pid))
    process.send_signal(number)
    return f"pid {process.pid}"


def _stop_one(
    role: Role, least_s: float, most_s: float, run: DisturbedRun, draw: random.Random
) -> str:
    process = draw.choice(sorted(run.of_role(role), key=lambda p: p.pid))
    seconds = draw.uniform(least_s, most_s)
    process.suspend()
    time.sleep(seconds)
    with contextlib.suppress(psutil.Error):  # the launcher may have killed it meanwhile
        process.resume()
    return f"pid {process.pid}, {seconds:.1f} s"


def _signal_all(number: signal.Signals, run: DisturbedRun, draw: random.Random) -> str:
    """To every process, as it comes: a service manager has no order either."""
    processes = run.running()
    draw.shuffle(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    return f"{len(processes)} processes"


def _kill_group(run: DisturbedRun, draw: random.Random) -> str:
    del draw
    assert run.job is not None
    os.killpg(run.job.process.pid, signal.SIGKILL)
    return f"group {run.job.process.pid}"


def _terminate_twice(run: DisturbedRun, draw: random.Random) -> str:
    seconds = draw.uniform(0.0, 1.0)
    for pause_s in (seconds, 0.0):
        for process in run.of_role("launcher"):
            process.terminate()
        time.sleep(pause_s)
    return f"{seconds:.2f} s apart"


# --- files --------------------------------------------------------------------------------------


def fail_writes(run: DisturbedRun, error: int, directory: Path) -> None:
    """Has writes below a directory fail from now on, until `run.plan` is removed."""
    draft = run.plan.with_suffix(".draft")
    draft.write_text(f"{error}\n{directory}\n")
    draft.rename(run.plan)


def _failing_writes(error: int, memory: bool, run: DisturbedRun, draw: random.Random) -> str:
    seconds = draw.uniform(0.3, 4.0)
    fail_writes(run, error, SHARED_MEMORY if memory else run.path)
    time.sleep(seconds)
    run.plan.unlink()
    return f"{seconds:.1f} s"


def _remove_weights(run: DisturbedRun, draw: random.Random) -> str:
    del draw
    found = [path for path in run.leftovers() if path.parent == SHARED_MEMORY and path.is_dir()]
    for path in found:
        shutil.rmtree(path, ignore_errors=True)  # a new version may appear in it meanwhile
    return ", ".join(path.name for path in found) or "there was none"


def _damage_checkpoint(run: DisturbedRun, draw: random.Random) -> str:
    """kill -9 of everything, and the newest checkpoint is not what was written."""
    _signal_all(signal.SIGKILL, run, draw)
    _await_end(run)
    checkpoints = run.checkpoints
    if len(checkpoints) < 2:
        return "killed; there was no checkpoint before the newest to go back to"
    victim = draw.choice(sorted(path for path in checkpoints[0].rglob("*") if path.is_file()))
    how = draw.choice(("a bit flipped", "cut in half", "removed", "emptied"))
    content = bytearray(victim.read_bytes())
    if how == "removed":
        victim.unlink()
    elif how == "a bit flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[: len(content) // 2] if how == "cut in half" else b"")
    run.expected = f"skipped a damaged checkpoint: {checkpoints[0]}"
    return f"killed, {victim.relative_to(run.path)} {how}"


def _tear_records(run: DisturbedRun, draw: random.Random) -> str:
    """kill -9 of everything in the middle of a line."""
    _signal_all(signal.SIGKILL, run, draw)
    _await_end(run)
    for name in ("metrics.jsonl", "decisions.jsonl"):
        path = run.path / name
        content = path.read_bytes()
        *_, last = content.splitlines() or [b'{"what":"step"']
        with path.open("ab") as file:
            file.write(last[: draw.randrange(1, len(last))])
    return "killed, each record with half a line behind it"


def _await_end(run: DisturbedRun) -> None:
    while run.ended() is None or run.running():
        time.sleep(0.02)


# --- strangers, and whoever reads what it shows ---------------------------------------------------


def send_noise(sockets: Path, draw: random.Random) -> None:
    """Joins with another protocol, and sends noise as tokens."""
    now = time.monotonic()
    nobody = Join(protocol=0, role="engine", name="nobody", clock_s=now)
    link = StageClient(sockets, nobody, lambda message: None)
    link.start()
    header = TokenBatch(
        engine="nobody", incarnation=0, epoch=0, sequence=0, sampled=0, sent_at_s=now
    )
    link.send_tokens(header, draw.randbytes(50), draw.randbytes(50))
    link.close()


def _noise(run: DisturbedRun, draw: random.Random) -> str:
    send_noise(run.sockets, draw)
    return "a peer of another protocol, and frames of noise"


def _flood(run: DisturbedRun, draw: random.Random) -> str:
    seconds, held = draw.uniform(1.0, 3.0), 0
    with contextlib.ExitStack() as stack:
        visitors = [stack.enter_context(socket.socket()) for _ in range(FLOOD)]
        for visitor in visitors:
            visitor.setblocking(False)
            try:
                visitor.connect(("127.0.0.1", run.port))
            except BlockingIOError:
                held += 1
        time.sleep(seconds / 2)
        for visitor in visitors:
            with contextlib.suppress(OSError):
                visitor.send(b"GET /met")
        time.sleep(seconds / 2)
    return f"{held} connections for {seconds:.1f} s"


def _reader(number: signal.Signals, run: DisturbedRun, draw: random.Random) -> str:
    del draw
    assert run.reader is not None
    run.reader.send_signal(number)
    return f"{number.name} to the reader of the pipe"


# --- the table ----------------------------------------------------------------------------------


def _on_one(role: Role) -> Iterable[tuple[str, Kind]]:
    """The kinds that are signals to one process of a role."""
    launcher = role == "launcher"
    dead = frozenset({-int(signal.SIGKILL) if launcher else 1})
    asked = frozenset({130 if launcher else 1})
    none = frozenset[int]()
    if role in ("engine", "reward worker"):  # others take their place
        dead = asked = none
    interrupted = asked if launcher else none
    for name, ends in (("SIGKILL", dead), ("SIGTERM", asked), ("SIGINT", interrupted)):
        yield (
            f"{name} to the {role}",
            Kind(
                partial(_signal_one, role, signal.Signals[name]),
                ends,
                goes_on=not ends,
                target=role,
                # Until it has said that it ignores Ctrl-C, it ends by it as any program.
                phases=TRAINING if name == "SIGINT" and not launcher else WHENEVER,
                cuts=name != "SIGKILL" and bool(ends),
            ),
        )
    brief = partial(_stop_one, role, 0.3, HEARTBEAT_S / 4)
    yield f"SIGSTOP and SIGCONT to the {role}", Kind(brief, target=role)
    lost = partial(_stop_one, role, HEARTBEAT_S * 1.3, HEARTBEAT_S * 1.6)
    may_end = frozenset({1}) if role == "learner" else none
    yield f"SIGSTOP of the {role}, too long", Kind(lost, may_end, target=role, phases=TRAINING)


KILLED = frozenset({-int(signal.SIGKILL)})
_ALL: dict[str, Kind] = {
    "SIGTERM to all": Kind(
        partial(_signal_all, signal.SIGTERM), frozenset({130}), False, cuts=True
    ),
    "SIGINT to all": Kind(partial(_signal_all, signal.SIGINT), frozenset({130}), False, cuts=True),
    "SIGKILL to all": Kind(partial(_signal_all, signal.SIGKILL), KILLED, False),
    "SIGKILL to the launcher's group": Kind(_kill_group, KILLED, False),
    "SIGTERM twice": Kind(_terminate_twice, frozenset({130}), False),
}
_FILES: dict[str, Kind] = {
    f"{name} in {where}": Kind(
        partial(_failing_writes, number, where == "memory"), frozenset({1}), preloads=True
    )
    for name, number in (("ENOSPC", errno.ENOSPC), ("EIO", errno.EIO))
    for where in ("the run's folder", "memory")
} | {
    "weights in memory removed": Kind(_remove_weights, frozenset({1}), phases=TRAINING),
    "newest checkpoint damaged": Kind(_damage_checkpoint, KILLED, False, phases=TRAINING),
    "records torn": Kind(_tear_records, KILLED, False, phases=TRAINING),
}
_OUTSIDE: dict[str, Kind] = {
    "flood of connections": Kind(_flood, phases=TRAINING),
    "noise on the wire": Kind(_noise, phases=TRAINING, target="stage"),
    "output pipe closed": Kind(partial(_reader, signal.SIGKILL)),
    "output pipe unread": Kind(partial(_reader, signal.SIGSTOP)),
}
KINDS: dict[str, Kind] = {
    **{name: kind for role in get_args(Role) for name, kind in _on_one(role)},
    **_ALL,
    **_FILES,
    **_OUTSIDE,
}
"""Name -> kind, in the order of the table at the end."""
