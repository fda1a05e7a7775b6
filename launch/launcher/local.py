"""Runs a job on one machine: stage, engines and learner ranks as children of this process.

Restarts engines that die, turns Ctrl-C into a halt, and leaves no process, socket or weight file
behind. The stage reports progress over a pipe; a view shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import READY
from launch.launcher import gpus
from launch.launcher.environment import clean_environment
from launch.launcher.guarded_view import GuardedView, View
from launch.launcher.oom import MemoryWatch, own_groups
from launch.launcher.ports import LOOPBACK, free_port, hold_port
from launch.launcher.processes import (
    Child,
    end_all,
    engine_environment,
    learner_arguments,
    learner_environment,
)
from launch.launcher.starting import StartingParts
from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks
from pipeline.coordinator.run_state import RunPhase
from pipeline.system import temp_dirs
from pipeline.system.descriptors import raise_limit
from pipeline.system.durable_files import write_file
from pipeline.system.micro_batch_limit import keep_limit, read_limit
from pipeline.system.private_dirs import umask_of
from pipeline.system.run_folder import RunFolder

RANKS_STORE = "ranks"
"""Name of that file, beside the sockets."""
_POLL_S = 0.1
_IN_ORDER = "exit 0"
_LAST_WORDS_S = 1.0
_AGAIN_S = 10.0
_FRESH_S = 3.0  # the stage says something every second
_SLOWER = 1.5  # the last checkpoint may take so much longer than the one before it
_LOOK_S = 1.0


class Roles:
    """The parts of the run that this process starts."""

    def __init__(self, engines: int, ranks: list[int], stage: bool = True) -> None:
        self.engines, self.ranks, self.stage = engines, ranks, stage


@dataclass(frozen=True, slots=True)
class Site:
    """Sockets, address and keys of a run, as torchrun's ranks have agreed."""

    sockets: Path  # a 0700 directory
    host: str  # rendezvous of the learner ranks
    port: int
    one_machine: bool = True  # the ranks find each other by a file, and no port is listened at
    listen_keys: Path | None = None  # key file of the stage; None: one machine, no keys
    peer_keys: Path | None = None  # key file of this process's own learner rank

    @property
    def ranks_store(self) -> str:
        """The file by which the learner ranks of one machine find each other."""
        return str(self.sockets / RANKS_STORE) if self.one_machine else ""


def weights_directory(run: RunFolder, need_bytes: int) -> Path:
    """Makes a 0700 directory for two versions of the weights: in memory, or below the run where
    there is none, or no room in it, or nobody may write there."""
    base = temp_dirs.SHARED_MEMORY
    with contextlib.suppress(OSError):
        if shutil.disk_usage(base).free >= 3 * need_bytes:
            return temp_dirs.own_directory(run.path.name, base)
    return temp_dirs.own_directory(run.path.name, run.path)


class Launcher:
    """Runs one job. `run_job()` returns the exit status: 0, 1 (error) or 130 (Ctrl-C), or raises
    what the view has raised, once the run has ended."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        view: View,
        resume: Path | None = None,
        roles: Roles | None = None,
        site: Site | None = None,
    ) -> None:
        self._config, self._run, self._resume = config, run, resume
        self._view = GuardedView(view, self._stop)
        self._roles = roles or Roles(config.engine.count, list(range(learner_ranks(config))))
        size = sum(p.stat().st_size for p in Path(config.model).glob("*.safetensors"))
        # Of a killed run: weights too, where it had too little shared memory.
        temp_dirs.remove_orphans(run.path)
        self.weights = weights_directory(run, 2 * size)  # fp32 of a bf16 file
        # Of the same name form, so that a later start removes what a kill has left.
        self.spare_weights = run.path / temp_dirs.name_of(os.getpid(), "spare")
        self._site = site or Site(
            sockets=temp_dirs.socket_directory(), host=LOOPBACK, port=free_port()
        )
        self.sockets = self._site.sockets

        self.error: str | None = None  # from the stage at its end
        self.limit_lowered = False  # memory ran out: smaller micro-batches may fit
        self._buffer = b""
        self._interrupts = 0
        self._memory = MemoryWatch(own_groups())
        self._began = False  # an engine has loaded its model
        self._ending = False  # the stage sends its peers away
        self._phase = RunPhase.STARTING.value
        self._starting = StartingParts(config.timeouts.log_wait_s)
        self._checkpoint_s = 0.0  # that the last one took
        self._writing = self._told_writing = False  # one is being written; it was told
        self._looked_at = 0.0  # when the children's memory was sampled
        self._deadline = 0.0
        self._heard_at = self._missed_at = 0.0  # last line of the stage; last silence warning
        self._ours, theirs = socket.socketpair()
        self._theirs = theirs
        self._ours.setblocking(False)
        self.children = self._children()

    def _children(self) -> dict[str, Child]:
        config, run = self._config, self._run
        base = clean_environment()
        children: dict[str, Child] = {}

        def add(name: str, command: list[str], environment: dict[str, str]) -> None:
            # Of all parts only the stage writes what others may read.
            umask = umask_of(config.metrics.group if name == "stage" else "")
            children[name] = Child(name, command, run.logs / f"{name}.log", environment, umask)

        site = self._site
        common = ["--stage", str(site.peer_keys or site.sockets), "--config", str(run.config)]
        if self._roles.stage:
            command = ["pipeline.stage", "--run", str(run.path), "--sockets", str(self.sockets)]
            command += ["--weights", str(self.weights), "--control", str(self._theirs.fileno())]
            command += ["--spare-weights", str(self.spare_weights)]
            command += ["--resume", str(self._resume)] if self._resume else []
            command += ["--listen-keys", str(site.listen_keys)] if site.listen_keys else []
            add("stage", command, base)
        ranks, resume = learner_ranks(config), str(self._resume or "")
        tokens = read_limit(run, config.learner.tokens_per_micro_batch)
        for rank in self._roles.ranks:
            command = ["learner.learner_rank", *common]
            command += learner_arguments(rank, ranks, resume, tokens)
            environment = learner_environment(rank, ranks, site.port, site.host, site.ranks_store)
            add(f"l{rank}", command, base | environment)
        machine, each = gpus.machine_gpus(base), config.engine.tensor_parallel
        for number in range(self._roles.engines):
            command = ["engines.worker", *common, "--name", f"e{number}"]
            cards = gpus.engine_gpus(machine, ranks, number, each)
            add(f"e{number}", command, base | engine_environment(self.sockets) | cards)
        return children

    # --- the run ------------------------------------------------------------------------

    def run_job(self) -> int:
        """Starts everything, serves until the stage ends, and cleans up."""
        before = self._take_signals()
        raise_limit()
        site, group = self._site, self._config.metrics.group
        held = hold_port(site.host, site.port) if site.one_machine else None
        try:
            write_file(self._run.address, f"{self.sockets}\n")
            for child in self.children.values():
                child.start((self._theirs.fileno(),) if child.name == "stage" else ())
            self._theirs.close()
            if news := self._run.share_with(group):
                self._view.on_line({"say": news})
            self._serve()
            self._run.share_with(group)  # with what was written privately since
        finally:
            grace = 0.0 if self._interrupts > 1 else 5.0
            if self._deadline:
                grace = max(0.0, min(grace, self._deadline - time.monotonic()))
            end_all(list(self.children.values()), grace)
            for directory in (self.weights, self.spare_weights, self.sockets):
                shutil.rmtree(directory, ignore_errors=True)
            temp_dirs.remove_orphans()  # those of a stage that was killed
            self._run.address.unlink(missing_ok=True)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._ours.close()
            if held is not None:
                held.close()
        if self._view.error is not None:
            raise self._view.error
        if self._interrupts:
            return 130
        if self.error == "" and not self._run.result.exists():
            self.error = "the run was ended before it was done"
        return 1 if self.error is None or self.error else 0

    def _take_signals(self) -> dict[signal.Signals, Any]:
        """Handles the signals that stop a run; returns the handlers before. Python gives signals to
        the main thread only: a run in another thread does not see them."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
            numbers.append(signal.SIGHUP)
        return {number: signal.signal(number, self._interrupt) for number in numbers}

    def _serve(self) -> None:
        stage = self.children["stage"]
        said = False
        while self._interrupts < 2:
            if self._interrupts and not said:
                said = True
                self._send({"halt": ""})
                self._view.on_line({"say": self._stopping()})
            self._receive()
            if self.error is not None:
                self._report_dead_child()
                return
            if (how := stage.exit_text()) is not None:
                self._receive()
                if self.error is None:
                    how = f"({how}){stage.memory_note(how, self._memory)}"
                    self.error = f"the stage ended {how}; end of its log:\n{stage.tail()}"
                return
            self._watch_children()
            self._warn_if_silent()
            if self._deadline and time.monotonic() > self._deadline and not self._waits_on():
                return
        self.error = "stopped at once"

    def _stopping(self) -> str:
        why = f" for {self._view.why}" if self._view.why else ""
        text = f"stopping after a checkpoint{why} (Ctrl-C again: stop at once)"
        if self._checkpoint_s > self._config.timeouts.stop_s - 2.0:
            text += f"; the last one took {self._checkpoint_s:.0f} s, more than timeouts.stop_s"
        return text

    def _waits_on(self) -> bool:
        """Returns True past the deadline while a checkpoint is being written: whoever asked for the
        end can have it at once, by asking again. `timeouts.checkpoint_s` bounds it, in the stage.
        """
        now = time.monotonic()
        if not self._writing or now - self._heard_at > _FRESH_S:
            return False
        if not self._told_writing:
            self._told_writing = True
            text = "the checkpoint is still being written (Ctrl-C again: stop at once, without it)"
            self._view.on_line({"say": text})
        self._deadline = now + _FRESH_S  # for what the stage does after it
        return True

    def _warn_if_silent(self) -> None:
        """Warns when the stage, which reports every second, has been silent too long."""
        now, limit = time.monotonic(), self._config.timeouts.log_wait_s
        if self._heard_at and now - max(self._heard_at, self._missed_at) > limit:
            self._missed_at = now
            silent, log = now - self._heard_at, self._run.logs / "stage.log"
            text = f"the stage has been silent for {silent:.0f} s; see {log}"
            self._view.on_line({"say": text})

    def _report_dead_child(self) -> None:
        """Reports the child that died: the stage may see its broken connection before we do."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while self.error and not self._interrupts and time.monotonic() < deadline:
            for child in self.children.values():
                how = None if child.name == "stage" else child.take_exit()
                if how == _IN_ORDER or f"stopping: {self.error}" in child.tail():
                    continue  # it ended on request, and with the run's own reason
                if how is not None:
                    text = f"{child.name} ended ({how}){child.memory_note(how, self._memory)}"
                    self._view.on_line({"say": f"{text}; end of its log:\n{child.tail()}"})
                    return
            time.sleep(_POLL_S)

    def _watch_children(self) -> None:
        now = time.monotonic()
        look = now - self._looked_at > _LOOK_S
        self._looked_at = now if look else self._looked_at
        if look and self._phase == RunPhase.STARTING:
            doing = {child.name: child.doing() for child in self.children.values()}
            for text in self._starting.look(now, doing):
                self._view.on_line({"say": text})
        for child in self.children.values():
            if look:
                child.sample_memory()
            if child.name == "stage" or self._ending:
                continue
            how = child.take_exit()
            if how is not None:
                why = child.memory_note(how, self._memory)
                self._send({"dead": child.name, "why": f"{how}{why}"})
                if not self._interrupts:
                    failed = how.startswith("exit ") and how != _IN_ORDER
                    self._restart_or_end(child, f"({how}){why}", now, failed)
            elif not self._interrupts and child.next_start and now >= child.next_start:
                child.next_start = 0.0
                self._start_again(child, now)

    def _start_again(self, child: Child, now: float) -> None:
        """Starts an engine anew; a machine that cannot have one more process now is asked again."""
        try:
            child.start()
        except OSError as error:
            child.next_start = now + _AGAIN_S
            text = f"{child.name} cannot be started: {error}; again in {_AGAIN_S:.0f} s"
            self._view.on_line({"say": text})

    def _some_engine_began(self) -> bool:
        """Returns True once any engine of this run has loaded its model."""
        engines = (child for child in self.children.values() if child.name.startswith("e"))
        self._began = self._began or any(engine.said(READY) for engine in engines)
        return self._began

    def _restart_or_end(self, child: Child, how: str, now: float, failed: bool) -> None:
        """Restarts an engine after a growing delay; the loss of a learner rank ends the run, as
        does an engine that ends by itself (`failed`) before any has begun."""
        text = f"{child.name} ended {how}"
        engine = child.name.startswith("e")
        began = engine and self._some_engine_began()
        if not engine:
            self._view.on_line({"say": f"{text}; end of its log:\n{child.tail()}"})
        elif failed and not began:
            # It would fail again, and nobody else shows that this machine can run one.
            self._view.on_line({"say": f"{text} before it could start; its log:\n{child.tail()}"})
            self._send({"halt": f"{text} before it could start: {child.reason()}"})
        elif child.starts > self._config.engine.restarts:
            self._view.on_line({"say": f"{text}; end of its log:\n{child.tail()}"})
            self._send({"halt": f"{text} for the {child.starts}th time (limit: engine.restarts)"})
        else:
            wait_s = min(60.0, 2.0 ** (child.starts - 1))
            child.next_start = now + wait_s
            self._view.on_line({"say": f"{text}; restarting it in {wait_s:.0f} s"})

    def _stop(self) -> None:
        """Has the run stop with a checkpoint, as the first Ctrl-C does."""
        self._interrupts = max(1, self._interrupts)

    def _interrupt(self, number: int, frame: object) -> None:
        """First signal: checkpoint, then end. Second: end now. Third: kill all processes."""
        del number, frame
        self._interrupts += 1
        if self._interrupts == 1:
            # A checkpoint that is known to take longer is worth more than the limit.
            needed_s = _SLOWER * self._checkpoint_s + _LAST_WORDS_S
            limit_s = max(self._config.timeouts.stop_s - 2.0, needed_s)
            self._deadline = time.monotonic() + limit_s
        elif self._interrupts > 2:
            for child in self.children.values():
                child.signal_all(signal.SIGKILL)

    # --- the pipe -----------------------------------------------------------------------

    def _send(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the stage is gone; `_serve` sees that
            self._ours.sendall(json.dumps(line).encode() + b"\n")

    def _receive(self) -> None:
        ready, _, _ = select.select([self._ours], [], [], _POLL_S)
        if not ready:
            return
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            received = self._ours.recv(1 << 20)
            if not received:
                time.sleep(_POLL_S)  # the stage has closed the pipe and is about to end
            else:
                self._heard_at = time.monotonic()
            self._buffer += received
        *lines, self._buffer = self._buffer.split(b"\n")
        for raw in lines:
            line = json.loads(raw)
            if "ending" in line:
                self._ending = True
            elif "over" in line:
                self.error = line["over"]
            elif "live" in line:
                self._checkpoint_s = float(line["live"].get("checkpoint_s", 0.0))
                self._writing = bool(line["live"].get("checkpoint_writing", False))
                self._phase = line["live"].get("phase", "")
            elif "restart" in line:
                child = self.children.get(line["restart"])
                if child is not None:
                    child.signal_all(signal.SIGKILL)
            elif (tokens := line.get("micro_batch_tokens")) is not None:
                setting = self._config.learner.tokens_per_micro_batch
                self.limit_lowered = keep_limit(self._run, setting, tokens)
            self._view.on_line(line)
