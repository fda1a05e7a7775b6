"""`python -m pipeline.stage`: build the stage of a run and serve until its end.

Started by a launcher, which holds the run's lock and passes a control pipe:
JSON lines in (`halt`, `dead`), JSON lines out (`live`, `say`, `step`, `eval`,
`restart`, `micro_batch_tokens`, `ending`, `over`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from pipeline.checkpoint import store
from pipeline.config.load import ConfigError, load
from pipeline.coordinator import snapshot
from pipeline.data import eval_sets, findings
from pipeline.data.dataset import DataError, load_train
from pipeline.data.tokenizer import ModelError, Tokenizer, refuse_code
from pipeline.data.wanted import wanted_of
from pipeline.observability import trackers
from pipeline.observability.recorder import Records
from pipeline.plugins.registry import PluginError
from pipeline.stage import build
from pipeline.stage.environment_calls import pool as environment_pool
from pipeline.stage.stage import Parts, StageProcess
from pipeline.system import micro_batch_limit
from pipeline.system.progress import announce
from pipeline.system.python_path import user_folder_last
from pipeline.system.run_folder import RunFolder
from pipeline.system.terminal_text import printable
from pipeline.wire.keys import ListenKeys, TransportError, read_private
from pipeline.wire.server import StageServer
from pipeline.workers.pool import RewardFailed, RewardPool

log = logging.getLogger("stage")
_LAST_WORD_S = 5.0


class PlainFormatter(logging.Formatter):
    """Peers and user code have a say in the log: nothing of it moves a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class ControlPipe:
    """JSON lines to and from the launcher; without one, nothing is said or heard."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor) if descriptor >= 0 else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self._unsent = bytearray()

    def say(self, line: dict[str, Any]) -> None:
        """Never waits for a launcher that does not read (Ctrl-Z), except to say the last word."""
        if "live" in line and self._unsent:
            return
        self._unsent += json.dumps(line).encode() + b"\n"
        deadline = time.monotonic() + (_LAST_WORD_S if "over" in line else 0.0)
        while self._unsent and self._socket is not None:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.05)
            except OSError:
                self._socket = None  # the launcher is gone; `listen` sees the end of the pipe

    async def listen(self, stage: StageProcess) -> None:
        """Pass on what the launcher says; its end is a Ctrl-C."""
        if self._socket is None:
            return
        reader, writer = await asyncio.open_connection(sock=self._socket.dup())
        try:
            while line := await reader.readline():
                heard = json.loads(line)
                if "halt" in heard:
                    stage.halt(heard["halt"])
                elif "dead" in heard:
                    stage.dead(heard["dead"], heard["why"])
            stage.halt("the launcher is gone")
        finally:
            writer.close()


def assemble(args: argparse.Namespace, run: RunFolder) -> Parts:
    """Read everything that the stage needs. Raises the errors of the parts."""
    announce("reading the data")
    config = load(run.config)
    tokenizer = Tokenizer(Path(config.model))
    if folder := config.learner.reference_folder:
        refuse_code(Path(folder))
    train = load_train(config.data, tokenizer, config.sampling.max_tokens, wanted_of(config))
    held_out = eval_sets.load_eval_sets(config, tokenizer)
    for data in (train, held_out.data):
        log.info("%s", data.summary_line())
        for line in data.skipped:
            log.warning("skipped: %s", line)
    limit = micro_batch_limit.note(run, config.learner.tokens_per_micro_batch)
    told = [*findings.warnings_of(config, tokenizer, train, held_out.data)]
    told += findings.overlap_of(train, held_out.data)
    coordinator = build.coordinator(config, tokenizer, train, held_out)
    listen_keys = read_private(args.listen_keys, ListenKeys) if args.listen_keys else None
    return Parts(
        config=config,
        run=run,
        server=StageServer(
            args.sockets,
            listen_keys,
            (args.weights, args.spare_weights),
            exposed=config.nodes.expose,
        ),
        coordinator=coordinator,
        tokenizer=tokenizer,
        data={"train": train, "eval": held_out.data},
        incarnation=run.next_incarnation(),
        weights=args.weights,
        spare_weights=args.spare_weights,
        resumed_step=-1,
        notes=(*filter(None, [limit]), *told),
    )


async def serve(args: argparse.Namespace) -> str:
    run = RunFolder(args.run)
    pipe = ControlPipe(args.control)
    parts = assemble(args, run)
    announce("starting the workers of rewards")
    async with contextlib.AsyncExitStack() as workers:
        pool = await workers.enter_async_context(
            RewardPool(parts.config.reward, parts.config.workers)
        )
        environments = environment_pool(parts.config)
        if environments is not None:
            await workers.enter_async_context(environments)
        saved = None
        if args.resume:
            saved = (store.load_state(args.resume), store.verify(args.resume))
            parts.resumed_step = saved[0].step
            Records.truncate_files(run, saved[1].get("records", {}))
        parts.trackers = trackers.start_trackers(parts.config, run, parts.resumed_step)
        parts.server.open_sockets()
        stage = StageProcess(parts, pool, pipe.say, environments)
        if saved is not None:
            stage.resume(saved[0], float(saved[1].get("training_seconds", 0.0)))
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(
                number, stage.halt, f"the stage was asked to end: {number.name}"
            )
        listening = asyncio.create_task(pipe.listen(stage))
        announce("")
        error = await stage.run()
        listening.cancel()
        pipe.say({"over": error})
        parts.server.close()
        return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--sockets", type=Path, required=True, help="directory of the sockets")
    parser.add_argument("--weights", type=Path, required=True, help="directory for new weights")
    parser.add_argument(
        "--spare-weights",
        type=Path,
        required=True,
        help="directory on the disk, for a version that finds no room in --weights",
    )
    parser.add_argument("--listen-keys", type=Path, help="key file: where to listen on a network")
    parser.add_argument("--resume", type=Path, help="checkpoint to continue from")
    parser.add_argument("--control", type=int, default=-1, help="descriptor of the control pipe")
    args = parser.parse_args()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s stage %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides
    user_folder_last()
    try:
        error = uvloop.run(serve(args))
    except (
        ConfigError,
        DataError,
        ModelError,
        PluginError,
        RewardFailed,
        TransportError,
        OSError,  # of a disk, a socket or a process that cannot be started
        store.CheckpointError,
        snapshot.SnapshotError,
        trackers.TrackerError,
    ) as problem:
        error = str(problem)
        ControlPipe(args.control).say({"over": error})
        log.error("%s", error)
    os._exit(1 if error else 0)  # reward workers and sockets are closed; threads may linger


if __name__ == "__main__":
    main()
