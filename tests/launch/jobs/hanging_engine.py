"""An engine worker whose loop hangs for ever in its tenth request.

`python -m tests.launch.jobs.hanging_engine ...` is `engines.worker` with such a simulated engine,
once in a run and in the engine e0 alone; the thread of its connection, and with it its heartbeats,
goes on. `python -m tests.launch.jobs.hanging_engine train ...` is `darts train ...` with such
engines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import engines.backends.simulated
import launch.launcher.processes
from engines import worker
from engines.base import Delta, Sampling

MARK = "hung"
"""File in the run's folder: the id of the process that hangs."""
_REQUESTS = 10


class HangingEngine(engines.backends.simulated.SimulatedEngine):
    _begun = 0

    async def generate(self, sampling: Sampling) -> AsyncIterator[Delta]:
        self._begun += 1
        mark = Path(sys.argv[sys.argv.index("--config") + 1]).parent / MARK
        if self._begun == _REQUESTS and sys.argv[-1] == "e0" and not mark.exists():
            mark.write_text(str(os.getpid()))
            time.sleep(3600)  # noqa: ASYNC251  a loop that hangs is what is wanted
        async for delta in super().generate(sampling):
            yield delta


class _Child(launch.launcher.processes.Child):
    def __init__(self, name: str, command: list[str], *others: Any) -> None:
        if command[0] == "engines.worker":
            command = ["tests.launch.jobs.hanging_engine", *command[1:]]
        super().__init__(name, command, *others)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        import launch.launcher.local
        from launch.cli import app

        launch.launcher.local.Child = _Child
        app()
    else:
        engines.backends.simulated.SimulatedEngine = HangingEngine
        worker.main()
