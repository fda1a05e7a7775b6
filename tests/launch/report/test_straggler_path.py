"""The trajectories on a critical path, and the sentence that is made of it."""

from __future__ import annotations

import pytest

from launch.report.captions import step_caption
from launch.report.spans import Row, Traced, TracedStep
from launch.report.straggler_path import straggler_path
from launch.report.stragglers import Life
from launch.report.trace_columns import Picture
from launch.run_files.records import Segment

ROW = Row(y=1.0, height=1.0)
STEP = TracedStep(number=3, seconds=2.0, bars=[], moments=[])
PATH = (
    Segment("engine e0", "loading weights", 0.2),
    Segment("stage", "deciding", 0.01),
    Segment("engine e0", "decoding", 0.5, "trajectory 7, 90 tokens"),
    Segment("stage", "tokens on their way", 0.05, "trajectory 7, 90 tokens"),
    Segment("stage", "deciding", 0.01),
    Segment("engine e1", "to the first token", 0.1, "trajectory 9, 20 tokens"),
    Segment("engine e1", "decoding", 0.3, "trajectory 9, 20 tokens"),
    Segment("stage", "tokens on their way", 0.03, "trajectory 9, 20 tokens"),
    Segment("rewards", "scoring", 0.1, "trajectory 9"),
    Segment("learner rank 0", "forward and backward", 0.3, "group 4"),
    Segment("learner rank 0", "between passes", 0.001),
    Segment("learner rank 0", "forward and backward", 0.4, "2 groups"),
)


def life(trajectory: int, group: int, tokens: int, end: float, engine: str = "e1") -> Life:
    return Life(
        trajectory=trajectory, group=group, prompt=1, engine=engine, row=ROW, fate="trained",
        tokens=tokens, running_s=end, end=end,
    )  # fmt: skip


LIVES = [life(8, 4, 128, 1.9), life(7, 3, 90, 0.71, "e0"), life(9, 4, 20, 1.17)]


def test_the_straggler_is_the_last_on_the_path_not_the_longest() -> None:
    told = step_caption(STEP, LIVES, straggler_path(PATH))
    assert told.straggler is LIVES[2]


def test_the_parts_of_a_path_add_up_to_the_step() -> None:
    found = straggler_path(PATH)
    assert [link.trajectory for link in found.links] == [7, 9]
    assert found.links[0].end == found.links[1].start
    parts = [spent for _, spent in (*found.before, *found.after)]
    parts += [link.end - link.start for link in found.links]
    assert sum(parts) == pytest.approx(sum(s.seconds for s in PATH))
    assert found.after[0] == ("forward and backward", 0.7)


def test_the_sentence_follows_the_path() -> None:
    said = str(step_caption(STEP, LIVES, straggler_path(PATH)).html)
    assert said.startswith(
        '<p class="caption">Step 3 took 2 s. Each had to wait for the one before it: '
        "trajectory 7 (0.56 s) → 9 of group 4 (0.4 s, 20 tokens on engine e1), "
        "which ended 1.17 s after the step&#39;s start. "
        "Before the first: loading weights 0.2 s, other 10 ms. "
        "After it: forward and backward 0.7 s, scoring 0.1 s, tokens on their way 30 ms, "
        "other 1 ms.</p>"
    )


def test_every_trajectory_on_the_path_is_marked_in_the_table_in_its_order() -> None:
    rows = str(step_caption(STEP, LIVES, straggler_path(PATH)).html).split("<tr>")[2:]
    assert [row[: row.index("</td>")] for row in rows] == [
        '<td class="">7', '<td class="">9', '<td class="">8',
    ]  # fmt: skip
    assert "0.56 s</td></tr>" in rows[0]
    assert "0.4 s (straggler)</td></tr>" in rows[1]
    assert "–</td></tr>" in rows[2]


def test_a_path_without_a_trajectory_names_what_was_done() -> None:
    told = step_caption(STEP, LIVES, straggler_path(PATH[-3:]))
    assert told.straggler is None
    assert "No trajectory is on its critical path, but forward and backward 0.7 s" in told.html


def test_a_trajectory_that_the_trace_does_not_know_is_named_all_the_same() -> None:
    told = step_caption(STEP, [], straggler_path(PATH))
    assert told.straggler is None
    assert "→ 9 (0.4 s on engine e1), which ended 1.17 s" in told.html


def test_the_tooltip_of_a_pass_tells_its_groups_and_that_of_an_optimizer_step_its_step() -> None:
    def bar(name: str, **args: object) -> dict[str, object]:
        return {"ph": "X", "pid": 100, "tid": 1, "name": name, "ts": 10, "dur": 5, "args": args}

    from launch.report.spans import traced

    names = {1: "stage", 100: "learner rank 0", 2: "rewards"}
    whole: Traced = traced(
        {
            "traceEvents": [
                *(
                    {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
                    for pid, name in names.items()
                ),
                {**bar("step 1"), "pid": 1, "ts": 0, "dur": 100},
                bar("forward and backward", of=[258, 259]),
                bar("optimizer step", of=[0]),
                {**bar("reward", trajectory=4, reward=1.0), "pid": 2},
            ]
        }
    )
    picture = Picture()
    picture.add_step("step 1", whole, whole.steps[0], ())
    assert picture.bars["why"] == ["groups 258, 259", "step 1", "trajectory 4; reward 1.0"]
