"""Sets a rank's process up: its arguments, its cores, and the pipe that SIGTERM writes to."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.system.cpu_cores import CoresError, engine_cores


def parse_arguments(about: str | None) -> argparse.Namespace:
    """Parse the command line of a rank."""
    parser = argparse.ArgumentParser(prog="learner.learner_rank", description=about)
    parser.add_argument(
        "--stage", type=Path, required=True, help="directory of the stage's sockets, or a key file"
    )
    parser.add_argument("--config", type=Path, required=True, help="the run's config.yaml")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="a checkpoint directory")
    parser.add_argument(
        "--micro-batch-tokens",
        type=int,
        default=0,
        metavar="N",
        help="the most, if less than learner.tokens_per_micro_batch: memory ran out before",
    )
    parser.add_argument(
        "--no-shared-fs",
        type=Path,
        metavar="DIRECTORY",
        help="this machine lacks the run's folder: keep parts of checkpoints here meanwhile",
    )
    return parser.parse_args()


def leave_engine_cores(config: Config) -> None:
    """Keep off the engine's cores, if others are left: on one machine without a GPU."""
    usable = os.sched_getaffinity(0)
    with contextlib.suppress(CoresError):  # the engine reports it
        if others := usable - set(engine_cores(config.engine.cpu_cores, usable)):
            os.sched_setaffinity(0, others)


def sigterm_pipe() -> int:
    """Make a pipe that becomes readable when SIGTERM arrives; returns its reading end.

    A Python handler waits for the main thread, which may be in a collective; a byte in
    the pipe arrives at once, whichever thread the signal reaches.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return reader
