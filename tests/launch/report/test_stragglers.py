"""The bars of a step, its critical path, and who held it up."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from launch.report.captions import step_caption
from launch.report.read_run import read_run
from launch.report.spans import EVALUATION, OTHER, Traced, traced
from launch.report.straggler_path import straggler_path
from launch.report.stragglers import path_spans, step_trajectories
from launch.run_files.records import Segment
from launch.simulate import CONFIG
from launch.simulate.command import simulate_one
from launch.simulate.scenario import Scenario
from pipeline.config.load import load
from tests.launch.report.folders import Made


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A trace as the pipeline writes it."""
    path = tmp_path_factory.mktemp("simulated") / "trace.json"
    small = ["step.count=3", "engine.count=2", "engine.slots=32", "step.prompts=6"]
    assert simulate_one(load(CONFIG, small), Scenario(), None, path) == 0
    return traced(json.loads(path.read_text()))


def test_a_trace_of_the_pipeline_becomes_steps_lanes_and_bars(simulated: Traced) -> None:
    assert [step.number for step in simulated.steps] == [1, 2, 3]
    names = [lane.name for lane in simulated.lanes]
    assert names == ["stage", "learner rank 0", "rewards", "engine e0", "engine e1"]
    for step in simulated.steps:
        slots = [bar for bar in step.bars if bar.slot]
        assert {bar.kind for bar in slots} == {"trained", "redundant", "aborted"}
        assert {bar.kind for bar in step.bars if not bar.slot} == {OTHER}
        assert all(bar.start < step.seconds and bar.end > 0 for bar in step.bars)
        assert {bar.name for bar in step.moments} >= {"Finalize", "taken"}


def test_rows_of_the_picture_do_not_overlap(simulated: Traced) -> None:
    rows = sorted(
        (row for lane in simulated.lanes for row in lane.rows.values()), key=lambda r: r.y
    )
    rows.insert(0, simulated.path)
    for above, below in itertools.pairwise(rows):
        assert above.y + above.height / 2 <= below.y - below.height / 2 + 1e-9
    assert rows[-1].y + rows[-1].height / 2 <= simulated.depth


def test_without_a_critical_path_the_last_that_was_trained_on_is_named(simulated: Traced) -> None:
    for step in simulated.steps:
        told = step_caption(step, step_trajectories(step), None)
        trained = [bar for bar in step.bars if bar.kind == "trained" and bar.end > 0]
        assert told.straggler is not None
        assert told.straggler.end == max(bar.end for bar in trained)
        assert "The last trained trajectory was" in told.html
        assert "on the path" not in told.html


def test_the_straggler_ends_where_its_part_of_the_path_ends(tmp_path: Path) -> None:
    run = read_run(Made(path=tmp_path / "a", steps=3).write(), print)
    whole = traced(run.trace)
    for step, line in zip(whole.steps, run.timing, strict=True):
        late = step_caption(
            step, step_trajectories(step), straggler_path(line.critical_path)
        ).straggler
        assert late is not None
        assert f"trajectory {late.trajectory}," in line.critical_path[1].detail
        assert abs(late.end - sum(s.seconds for s in line.critical_path[:2])) < 1e-4


def test_a_path_runs_along_the_rows_of_what_was_done(simulated: Traced) -> None:
    step = simulated.steps[2]
    late = step_trajectories(step)[0]
    path = (
        Segment(f"engine {late.engine}", "decoding", late.end, f"trajectory {late.trajectory}"),
        Segment("nowhere", "lost", 1.0),
        Segment("learner rank 0", "optimizer", 0.5),
    )
    places = path_spans(step, path, simulated.lanes)
    assert [(p.what, p.start, p.end) for p in places] == [
        ("decoding", 0.0, late.end),
        ("optimizer", late.end + 1.0, late.end + 1.5),
    ]
    [learner] = [lane for lane in simulated.lanes if lane.name == "learner rank 0"]
    assert places[0].row == late.row
    assert places[1].row in learner.rows.values()


def test_what_a_trace_does_not_name_as_a_fate_is_kept_in_grey() -> None:
    def span(pid: int, name: str, **args: object) -> dict[str, object]:
        return {"ph": "X", "pid": pid, "tid": 1, "name": name, "ts": 10, "dur": 5, "args": args}

    names = {1: "stage", 1000: "engine e0", 7: "something new"}
    events = [
        *(
            {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
            for pid, name in names.items()
        ),
        {**span(1, "step 4"), "ts": 0, "dur": 100},
        span(1000, "deferred", finish="stop", trajectory=1, group=2, tokens=3),
        span(1000, "eval", finish="stop", trajectory=2, group=9, tokens=3),
        span(7, "trained"),
    ]  # fmt: skip
    [step] = traced({"traceEvents": events}).steps
    assert [bar.kind for bar in step.bars] == [OTHER, EVALUATION, OTHER]
    assert step.number == 4
