"""What must hold of every trace, of a real run and of a simulated one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from pipeline.observability.chrome_trace import STAGE

Rows = dict[tuple[int, int], list[dict[str, Any]]]


def checked_spans(document: dict[str, Any]) -> Rows:
    """Spans by (process, row), in order of time. Asserts that the file is a valid Chrome trace:
    every event has its fields, rows do not overlap, arrows begin and end within spans."""
    rows: Rows = defaultdict(list)
    names = set()
    for event in document["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= set(event)
        if event["ph"] == "X":
            assert event["dur"] >= 1 and event["ts"] >= 0, event
            rows[event["pid"], event["tid"]].append(event)
        elif event["ph"] == "M" and event["name"] == "process_name":
            names.add(event["pid"])
    assert {process for process, _ in rows} <= names, "a lane without a name"
    for (process, row), spans in rows.items():
        spans.sort(key=lambda span: span["ts"])
        if process != STAGE:  # decisions are moments
            for before, after in itertools.pairwise(spans):
                assert before["ts"] + before["dur"] <= after["ts"] + 1, (process, row)
    for points in arrows(document):
        assert [point["ph"] for point in points] == ["s", "t", "f"]
        for point in points:
            here = rows[point["pid"], point["tid"]]
            assert any(s["ts"] <= point["ts"] <= s["ts"] + s["dur"] for s in here), point
    return rows


def arrows(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Points of each arrow, in the order of the file."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] in "stf":
            found[event["id"]].append(event)
    return list(found.values())
