"""`darts explain`: a group's story in words, from the lines that a run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from tests.paths import MODEL


def darts(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def member(number: int, tokens: int, **changes: Any) -> list[Any]:
    known: dict[str, Any] = dict(
        state="finished", confidence=-0.25, reward=1.0, chosen=False, versions=[0]
    )
    values = {**known, **changes}
    return [number, values["state"], tokens, *(values[k] for k in list(known)[1:])]


def group(number: int, step: int, *members: list[Any], **changes: Any) -> dict[str, Any]:
    line = dict(kind="train", prompt=100 + number, attempt=0, fate="trained", why="", version=step)
    line = {"what": "group", "step": step, "group": number, **line, **changes}
    return {**line, "members": list(members)}


def decision(number: int, step: int, action: str, why: str, *ids: int) -> dict[str, Any]:
    line = {"what": "decision", "step": step, "group": number, "prompt": 100 + number}
    return {**line, "action": action, "ids": list(ids), "why": why}


LINES: list[dict[str, Any]] = [
    group(0, 0, member(1, 9), kind="eval", prompt=0, fate="evaluated"),
    {"what": "budget", "step": 0, "candidates": {"3": 3}, "prompts": [[101, 3, "hard"]]},
    decision(1, 0, "Enough", "2 have finished"),
    decision(1, 0, "Finalize", "the shortest", 10, 12),
    group(
        1,
        0,
        member(10, 40, chosen=True),
        member(11, 70, state="aborted", reward=None),
        member(12, 30, chosen=True, reward=0.0, versions=[0, 1]),
        why="the shortest",
    ),
    decision(2, 1, "Abort", "too long", 21),
    # a group that a verb ends is on file before the verb
    group(2, 1, member(20, 200, reward=0.0), fate="dropped", why="every reward is 0"),
    decision(2, 1, "Drop", "every reward is 0"),
    group(3, 1, member(30, 50), fate="deferred", why="surplus", prompt=7),
    group(4, 2, member(40, 60, chosen=True), prompt=7, attempt=1),
    decision(5, 2, "Sample", "top-up: 1 for idle slots"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"model: {MODEL}\n")
    write(folder, LINES)
    return folder


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "decisions.jsonl").write_text(text)


def test_a_group_is_told_in_the_order_in_which_it_happened(run: Path) -> None:
    result = darts("explain", str(run), "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "group 1: prompt 101"
    assert lines[1].strip().endswith("="), "the prompt's text, from the built-in task"
    assert [line for line in lines if line[:1].isdigit()][:4] == [
        "1. step 1: opened with 3 candidates: hard",
        "2. step 1: Enough, it could close now, but stays open: 2 have finished",
        "3. step 1: Finalize, choose 10, 12: the shortest",
        "4. step 1: trained",
    ]
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(" ")}
    assert rows["10"] == ["10", "40", "-0.250", "1", "0", "trained"]
    assert rows["11"][5:] == ["aborted", "(still", "ran", "when", "its", "group", "closed)"]
    assert rows["12"][4] == "0-1"
    assert "2 of 3 candidates chosen; 70 of 140 response tokens trained on" in lines[-1]


def test_a_drop_is_told_before_the_end_that_it_brought_and_who_left_is_named(run: Path) -> None:
    text = darts("explain", str(run), "2").stdout
    assert "1. step 2: Abort, stop and leave out 21: too long" in text
    assert "2. step 2: Drop, drop the group: every reward is 0" in text
    assert "3. step 2: dropped (its prompt is not used again in this epoch)" in text
    assert "(their lengths are not on file): 21" in text
    assert "dropped (its group was dropped: every reward is 0)" in text


def test_a_prompt_that_was_given_back_is_followed_to_its_next_group(run: Path) -> None:
    text = darts("explain", str(run), "3").stdout
    assert "deferred (its prompt was given back and will be used again): surplus" in text
    assert "its prompt came again in group 4" in text
    assert "attempt 2" in darts("explain", str(run), "4").stdout


def test_an_evaluation_group_has_no_choice_to_explain(run: Path) -> None:
    text = darts("explain", str(run), "0").stdout
    assert text.startswith("group 0: held-out prompt 0\n")
    assert "chosen" not in text


def test_a_group_that_has_not_ended_says_so(run: Path) -> None:
    text = darts("explain", str(run), "5").stdout
    assert "1. step 3: Sample, more candidates: top-up: 1 for idle slots" in text
    assert "2. it had not ended when the file was read" in text


def test_the_costliest_groups_come_first_with_tokens_trained_and_the_longest(run: Path) -> None:
    result = darts("explain", str(run), "--worst", "2")
    assert "tokens: not trained" in result.stdout.splitlines()[0]
    rows = [line.split()[:6] for line in result.stdout.splitlines()[1:]]
    assert rows == [
        ["2", "2", "102", "200", "0", "200"],
        ["1", "1", "101", "70", "70", "70"],
    ]
    assert "dropped: every reward is 0" in result.stdout


def test_step_narrows_and_is_counted_from_one(run: Path) -> None:
    result = darts("explain", str(run), "--step", "2", "--json")
    assert [line["group"] for line in json.loads(result.stdout)] == [2, 3]
    assert {line["step"] for line in json.loads(result.stdout)} == {1}
    one = darts("explain", str(run), "--step", "2", "--worst", "1", "--json")
    assert [line["group"] for line in json.loads(one.stdout)] == [2]


def test_json_has_everything_of_a_group(run: Path) -> None:
    found = json.loads(darts("explain", str(run), "1", "--json").stdout)
    assert found["budget"] == {"step": 0, "candidates": 3, "note": "hard", "time": None}
    assert [d["action"] for d in found["decisions"]] == ["Enough", "Finalize"]
    assert (found["fate"], found["tokens_trained"], found["tokens_untrained"]) == (
        "trained",
        70,
        70,
    )
    assert [c["fate"] for c in found["candidates"]] == ["trained", "aborted", "trained"]
    assert found["candidates"][2]["versions"] == [0, 1]


def test_damaged_lines_are_named_by_file_and_line_and_passed_over(run: Path) -> None:
    path = run / "decisions.jsonl"
    good = path.read_text().splitlines(keepends=True)
    bad = ['{"what": "group", "step": "x"}\n', "not json\n", '{"what": "later kind"}\n']
    path.write_text("".join([*good[:3], *bad, *good[3:]]) + '{"what": "gro')
    result = darts("explain", str(run), "1")
    assert result.exit_code == 0
    assert "trained" in result.stdout
    assert [f"decisions.jsonl:{n}:" in result.stderr for n in (4, 5, 6, 15)] == [
        True,
        True,
        False,  # of a newer darts
        False,  # still being written
    ]


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["99"], "no group 99: those on file are 0 to 5"),
        (["--step", "9"], "no group ended in step 9: steps 1 to 3 on file"),
        ([], "name a group or a --trajectory, or ask for --worst N or --step S"),
        (["1", "--worst", "3"], "leave out the group"),
        (["1", "--trajectory", "10"], "leave out the group"),
        (["abc"], "group is 'abc', but must be a number from 0"),
        (["21"], "no group 21: those on file are 0 to 5; it is a trajectory of group 2"),
        (["--trajectory", "99"], "no trajectory 99: those on file are 1 to 40"),
    ],
)
def test_what_cannot_be_answered_says_why_with_exit_2(
    run: Path, arguments: list[str], said: str
) -> None:
    result = darts("explain", str(run), *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_folder_that_is_no_run_and_a_run_without_decisions_say_so(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    for folder, said in (
        ("nowhere", "no such folder"),
        ("other", "not the folder of a run: it has no config.yaml"),
    ):
        result = darts("explain", str(tmp_path / folder), "1")
        assert (result.exit_code, said in result.stderr) == (2, True)
    (run / "decisions.jsonl").unlink()
    result = darts("explain", str(run), "1")
    assert (result.exit_code, "no group has ended yet" in result.stderr) == (2, True)
    (run / "result.json").write_text("{}")
    result = darts("explain", str(run), "1")
    assert (result.exit_code, "the file is lost" in result.stderr) == (2, True)


def test_a_prompt_whose_data_are_gone_is_told_by_its_number(run: Path) -> None:
    (run / "config.yaml").write_text("model: nowhere\n")
    result = darts("explain", str(run), "1")
    assert result.exit_code == 0
    assert "the prompt's text cannot be read" in result.stderr
    assert result.stdout.startswith("group 1: prompt 101\n\n1. ")


# --- when, and what it waited for -------------------------------------------------------

START = 1000.0  # of step 1, on the wall's clock
TIMED: list[dict[str, Any]] = [
    {**LINES[1], "time": START},
    {**LINES[2], "time": START + 0.25},
    {**decision(1, 0, "Finalize", "2 longest finished at the barrier", 10, 12), "time": 1000.75},
    {**LINES[4], "why": "2 longest finished at the barrier", "time": START + 1.0},
    {**decision(6, 0, "Finalize", "2 shortest of all", 60, 61), "time": START + 0.5},
    group(
        6,
        0,
        member(60, 40, chosen=True),
        member(61, 64, chosen=True, state="truncated"),
        member(62, 30, reward=None),
        why="2 shortest of all",
        time=START + 1.0,
    ),
]
STEP = {"what": "step", "step": 0, "time": 1001.0, "seconds": 1.5, "reward": 0.25}
TIMING = {
    "what": "timing",
    "step": 0,
    "seconds": 1.5,
    "critical_path": [
        ["engine e0", "decoding", 0.5, "trajectory 10, 40 tokens"],
        ["stage", "deciding", 0.25, ""],
        ["engine e0", "decoding", 0.5, "trajectory 12, 30 tokens"],
    ],
    "stragglers": [{"group": 1, "trajectory": 10, "engine": "e0", "tokens": 40, "waited_s": 0.125}],
}


def measured(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_it_says_when_each_thing_happened_since_the_steps_start(run: Path) -> None:
    write(run, TIMED)
    measured(run, {**STEP, "groups": {"trained": 2}}, TIMING)
    text = darts("explain", str(run), "1").stdout
    assert "1. step 1 at 0.50 s: opened with 3 candidates" in text
    assert "2. step 1 at 0.75 s: Enough" in text
    assert "3. step 1 at 1.25 s: Finalize" in text
    assert "4. step 1 at 1.50 s: trained\n" in text
    assert "times count from the start of step 1" in text


def test_in_an_open_step_times_count_from_the_groups_first_line(run: Path) -> None:
    write(run, TIMED)
    text = darts("explain", str(run), "1").stdout
    assert "2. step 1 at 0.25 s: Enough" in text
    assert "times count from its first line on file" in text


def test_a_start_after_the_first_line_is_not_believed(run: Path) -> None:
    """A resume may go on with a step whose first groups are on file from before."""
    write(run, TIMED)
    measured(run, {**STEP, "seconds": 0.25})
    assert "times count from its first line on file" in darts("explain", str(run), "1").stdout


def test_it_says_how_long_it_stayed_open_after_enough_and_for_whom(run: Path) -> None:
    write(run, TIMED)
    measured(run, STEP, TIMING)
    text = darts("explain", str(run), "1").stdout
    assert (
        "enough at 0.75 s, then open for 0.50 s more: "
        "11 (70 tokens) still ran when it closed and was aborted"
    ) in text
    assert "of its trained members 10 (40 tokens) ended last, 0.12 s after half of them" in text
    assert "closed at 1.25 s; trained 0.25 s later" in text
    assert "at the barrier: when the step had enough groups and closed" in text
    assert "aborted (still ran at the barrier)" in text


def test_a_group_that_waited_for_all_says_so_and_a_limit_is_nobodys_choice(run: Path) -> None:
    write(run, TIMED)
    text = darts("explain", str(run), "6").stdout
    assert "it closed when its last candidate had ended; the longest is 61 (64 tokens)" in text
    assert "of all: every candidate had ended" in text
    assert "trained (hit sampling.max_tokens)" in text
    assert "redundant (not chosen)" in text
    assert "1 hit sampling.max_tokens: that limit ended it, not the selector" in text


def test_what_the_selector_stopped_and_aborted_has_its_reason(run: Path) -> None:
    write(
        run,
        [
            decision(7, 0, "Stop", "long enough", 70),
            decision(7, 0, "Abort", "too long", 71),
            decision(7, 0, "Finalize", "both", 70, 72, 73),
            group(
                7,
                0,
                member(70, 50, state="truncated", chosen=True),
                member(71, 50, state="aborted", reward=None),
                member(72, 9, chosen=True),
                member(73, 9, reward=None),
                member(74, 0, state="aborted", reward=None),
            ),
        ],
    )
    text = darts("explain", str(run), "7").stdout
    assert "trained (stopped by the selector: long enough)" in text
    assert "aborted (too long)" in text
    assert "failed (it has no reward)" in text
    assert "aborted (had no token yet when its group closed)" in text
    assert "sampling.max_tokens" not in text


def test_a_trajectory_finds_its_group(run: Path) -> None:
    assert darts("explain", str(run), "--trajectory", "12").stdout.startswith("group 1: ")
    assert darts("explain", str(run), "--trajectory", "21").stdout.startswith("group 2: ")


def test_a_step_begins_with_its_seconds_its_reward_and_its_longest_waits(run: Path) -> None:
    measured(run, {**STEP, "groups": {"trained": 1}}, TIMING)
    lines = darts("explain", str(run), "--step", "1").stdout.splitlines()
    assert lines[0] == "step 1: 1.50 s, mean reward 0.25, groups: 1 trained"
    assert lines[1] == (
        "longest waits on its critical path: 1.00 s engine e0: decoding, 0.25 s stage: deciding"
    )
