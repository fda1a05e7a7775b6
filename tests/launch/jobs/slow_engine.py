"""`python -m tests.launch.jobs.slow_engine ...`: `engines.worker` with a simulated engine that
takes ten times as long for each token."""

from __future__ import annotations

from typing import Any

import engines.backends.simulated
from engines import worker

STEP_S = 0.08


class SlowEngine(engines.backends.simulated.SimulatedEngine):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, step_s=STEP_S)


if __name__ == "__main__":
    engines.backends.simulated.SimulatedEngine = SlowEngine
    worker.main()
