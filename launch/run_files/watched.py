"""Reads what a running job shows of itself: `live.json`, lines of metrics.jsonl, planned steps.

For `darts top` and `darts status`, which show runs of others, live and damaged ones: a value is
of its type, within bounds that can be formatted, and no text in it moves a terminal's cursor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

from pipeline.config.yaml_tree import parse, plain
from pipeline.observability.live_status import RunStatus
from pipeline.system import untrusted_files
from pipeline.system.terminal_text import printable_values
from pipeline.system.untrusted_files import BROKEN, UnreadableFile

MOST = 1e12
"""Largest number that is shown: of tokens, of seconds (the year 33658), of steps."""
_LEAST = -1e9
Number = Annotated[float, msgspec.Meta(ge=_LEAST, le=MOST)]


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """What the panel computes with of a line `step`."""

    step: Annotated[int, msgspec.Meta(ge=0, le=int(MOST))]
    seconds: Number
    ledger: dict[str, Number] = {}
    reward: Number | None = None
    tokens_mean: Number | None = None
    tokens_p95: Number | None = None
    sampled_per_trained: Number | None = None
    bubble_engine: Number | None = None
    bubble_learner: Number | None = None


class _Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What the panel computes with of a line `eval`."""

    step: Annotated[int, msgspec.Meta(ge=0, le=int(MOST))]
    accuracy: Number | None = None
    reward: Number | None = None
    seconds: Number = 0.0


_KINDS: dict[str, Any] = {"step": _Step, "eval": _Evaluation}


def read_live(path: Path) -> RunStatus:
    """Reads `live.json`. Raises UnreadableFile."""
    found = printable_values(untrusted_files.read_json(path))
    _check_numbers(found, path)
    try:
        return msgspec.convert(found, RunStatus)
    except BROKEN as error:
        raise UnreadableFile(path, f"not the state of a run: {error}") from error


def _check_numbers(value: object, where: Path) -> None:
    if isinstance(value, dict):
        for inner in cast(dict[object, object], value).values():
            _check_numbers(inner, where)
    elif isinstance(value, list):
        for inner in cast(list[object], value):
            _check_numbers(inner, where)
    elif isinstance(value, float | int) and not (math.isfinite(value) and _LEAST <= value <= MOST):
        raise UnreadableFile(where, f"found a number that is not from {_LEAST:g} to {MOST:g}")


def shown_line(line: bytes) -> dict[str, Any] | None:
    """Returns the fields of a line `step` or `eval`; None for others, and for one that cannot be
    read."""
    try:
        fields = untrusted_files.decode_json(line, "metrics.jsonl", dict[str, Any])
        kind = fields.get("what")
        if not isinstance(kind, str) or kind not in _KINDS:
            return None
        msgspec.convert(fields, _KINDS[kind])
    except (UnreadableFile, *BROKEN):
        return None
    return printable_values(fields)


def planned_steps(config: Path) -> int:
    """Returns `step.count` of a configuration; 0 if that cannot be read."""
    try:
        text = untrusted_files.read_text(config)
    except UnreadableFile:
        return 0
    tree = parse(text, str, [])
    values = plain(tree) if tree is not None else None
    section = cast(Mapping[str, Any], values).get("step") if isinstance(values, dict) else None
    count = cast(Mapping[str, Any], section).get("count") if isinstance(section, dict) else 0
    return count if type(count) is int and 0 <= count <= MOST else 0
