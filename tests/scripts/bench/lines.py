"""Lines of metrics.jsonl, as the benchmarks read them."""

from typing import Any


def step_line(version: int, time: float, **learner: float) -> dict[str, Any]:
    return {
        "what": "step",
        "version": version,
        "time": time,
        "seconds": 4.0,
        "generation_s": 2.0,
        "groups": {"trained": 4},
        "learner": learner,
    }
