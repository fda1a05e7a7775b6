"""Says why a section has no data, and which setting would bring it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from launch.report.read_run import Run


def missing_timing(runs: Sequence[Run]) -> str:
    """Says why no run has a line `timing`."""
    return _each(runs, _timing)


def missing_trace(runs: Sequence[Run]) -> str:
    """Says why no run has a trace with a complete step."""
    return _each(runs, _trace)


def _timing(run: Run) -> str:
    if _metrics(run).get("timing") is False:
        return "The run was not timed: set metrics.timing=true."
    if not run.steps:
        return "No step has ended yet."
    return "metrics.jsonl has no lines “timing”: an older version of darts wrote it."


def _trace(run: Run) -> str:
    settings = _metrics(run)
    if settings.get("trace_steps") == 0:
        return "No step was traced: set metrics.trace_steps=5, and the first five are."
    if settings.get("timing") is False:
        return "A trace needs timing, which was off: set metrics.timing=true."
    if not run.steps:
        return "No step has ended yet."
    if not run.trace:
        return "There is no trace.json: it was removed, or an older version of darts wrote none."
    return "trace.json holds no complete step."


def _metrics(run: Run) -> dict[str, Any]:
    found = run.settings.get("metrics")
    return found if isinstance(found, dict) else {}


def _each(runs: Sequence[Run], reason: Callable[[Run], str]) -> str:
    """Returns the common reason, or the reason of each run by name."""
    reasons = {run.name: reason(run) for run in runs}
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return " ".join(f"{name}: {why}" for name, why in reasons.items())
