"""Ends a learner rank's process after a failure, so that nobody waits for it.

An exception ends the process at once; a lack of memory that a restart with smaller
micro-batches may cure is reported to the stage before.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType

from pipeline.wire.client import StageClient
from pipeline.wire.fields import MOST_WORDS
from pipeline.wire.messages import OutOfMemory, Shutdown, ToPeer

ANSWER_S = 10.0
"""Seconds that the stage has to answer, before this rank ends without its word."""


@contextlib.contextmanager
def shortages_reported(client: StageClient, inbox: queue.SimpleQueue[ToPeer]) -> Iterator[None]:
    """Explain a lack of memory inside, and tell the stage if smaller micro-batches may help.

    Raises: MemoryShortage for it; other errors as they are.
    """
    from learner.forward.memory import (  # imports torch
        MemoryShortage,
        ran_out_of_memory,
        shortage_outside_of_passes,
    )

    try:
        yield
    except MemoryShortage as shortage:
        if shortage.tokens:
            _ask_for_restart(client, inbox, shortage.tokens, str(shortage))
        raise
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise shortage_outside_of_passes(error) from error


def _ask_for_restart(
    client: StageClient, inbox: queue.SimpleQueue[ToPeer], tokens: int, why: str
) -> None:
    """Return once the stage has heard: its answer is a shutdown for all ranks.

    The launcher tells the stage when this process has ended; the reason must be there first.
    """
    client.send(OutOfMemory(tokens=tokens, why=" ".join(why.split())[:MOST_WORDS]))
    deadline = time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0:
        try:
            if isinstance(inbox.get(timeout=left), Shutdown):
                return
        except queue.Empty:
            return


def exit_on_any_exception() -> None:
    """End the process at any exception: a normal exit may wait for communication for ever. An
    exception whose class has `says_all` needs no traceback: nothing of ours is broken."""

    def report(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not `sys.stderr`: torch's own hook, around this one, collects what is written there.
        if getattr(kind, "says_all", False):
            print(f"{kind.__name__}: {error}", file=sys.__stderr__)
        else:
            traceback.print_exception(kind, error, trace, file=sys.__stderr__)
        for stream in (sys.stdout, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(1)

    sys.excepthook = report
    threading.excepthook = lambda args: report(args.exc_type, args.exc_value, args.exc_traceback)
