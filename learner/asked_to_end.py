"""What a rank does at SIGTERM: it tells the stage, and stays for the run's last checkpoint.

`systemctl stop`, Slurm and torchrun send SIGTERM to every process of a run at once. A rank that
left then would take the weights with it before the checkpoint is written. So it goes on serving
until the stage sends it away, the time that `timeouts.checkpoint_s` gives is over, or the stage is
silent. A second SIGTERM has it leave at once. Watches in a thread: the main one may be in a
collective.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from learner.process_setup import sigterm_pipe
from pipeline.wire.client import StageClient
from pipeline.wire.messages import Shutdown

SILENT_S = 3.0
"""Seconds after which a stage that has said nothing will not write a checkpoint either; it says
something every second."""
_LOOK_S = 0.2


class SigtermWatch:
    """Make it early, in the main thread; `serve` once the rank is built."""

    def __init__(self) -> None:
        self._reader = sigterm_pipe()
        self._asked = 0
        self._client: StageClient | None = None
        self._receive: Callable[[Shutdown], None] | None = None
        self._limit_s = 0.0
        threading.Thread(target=self._count, name="sigterm", daemon=True).start()

    def serve(
        self, client: StageClient, receive: Callable[[Shutdown], None], limit_s: float
    ) -> None:
        """Have SIGTERM told to the stage; before, it ends the process: there is nothing to save.

        Args:
            receive: gets the shutdown with which the rank leaves by itself.
        """
        self._client, self._receive, self._limit_s = client, receive, limit_s

    def _count(self) -> None:
        while True:
            if os.read(self._reader, 1)[0] != signal.SIGTERM:
                continue
            self._asked += 1
            if self._client is None:
                os._exit(0)
            if self._asked == 1:
                threading.Thread(target=self._stay, name="sigterm-wait", daemon=True).start()

    def _stay(self) -> None:
        assert self._client is not None
        assert self._receive is not None
        self._client.send(Shutdown(why="SIGTERM"))
        deadline = time.monotonic() + self._limit_s
        while (
            self._asked < 2
            and time.monotonic() < deadline
            and self._client.stage_silent_s < SILENT_S
        ):
            time.sleep(_LOOK_S)
        self._receive(Shutdown(why="SIGTERM"))
