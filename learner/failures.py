"""Ends a learner rank's process after a failure, so that nobody waits for it.

An exception ends the process at once; a lack of memory that a restart with smaller
micro-batches may cure is reported to the stage before.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.wire.client import StageClient
from pipeline.wire.messages import MOST_WORDS, OutOfMemory, Shutdown, ToPeer

if TYPE_CHECKING:  # it would import torch
    from learner.forward.memory import MemoryShortage

ANSWER_S = 10.0
"""Seconds that the stage has to answer, before this rank ends without its word."""


def report_shortage(
    client: StageClient, inbox: queue.SimpleQueue[ToPeer], shortage: MemoryShortage
) -> None:
    """Tell the stage that memory ran out, and wait until it has heard.

    It must hear of the reason before it hears of the end of this process, and then sends a
    shutdown to all ranks.
    """
    why = " ".join(str(shortage).split())[:MOST_WORDS]
    client.send(OutOfMemory(tokens=shortage.tokens, why=why))
    deadline = time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0:
        try:
            if isinstance(inbox.get(timeout=left), Shutdown):
                return
        except queue.Empty:
            return


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
