"""Sets a rank's process up: its cores, what ends it, and the pipe that SIGTERM writes to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from types import TracebackType

from pipeline.config.schema import Config
from pipeline.system.cpu_cores import CoresError, engine_cores


def leave_engine_cores(config: Config) -> None:
    """Keep off the engine's cores, if others are left: on one machine without a GPU."""
    usable = os.sched_getaffinity(0)
    with contextlib.suppress(CoresError):  # the engine reports it
        if others := usable - set(engine_cores(config.engine.cpu_cores, usable)):
            os.sched_setaffinity(0, others)


def exit_on_any_exception() -> None:
    """End the process at any exception: a normal exit may wait for communication for ever."""

    def report(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not `sys.stderr`: torch's own hook, around this one, collects what is written there.
        traceback.print_exception(kind, error, trace, file=sys.__stderr__)
        for stream in (sys.stdout, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(1)

    sys.excepthook = report
    threading.excepthook = lambda args: report(args.exc_type, args.exc_value, args.exc_traceback)


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
