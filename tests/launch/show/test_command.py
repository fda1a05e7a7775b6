"""`darts show`: which responses, side by side, at any width, with nothing of theirs carried out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from pipeline.observability.rollout_files import RolloutFiles, RolloutLine
from tests.launch.report.folders import Made

ESCAPES = "\x1b[2J\x07\u202e[red]"


def show(*arguments: object, width: int = 80) -> Result:
    environment = {"COLUMNS": str(width), "TERM": "dumb"}
    return CliRunner().invoke(app, ["show", *map(str, arguments)], env=environment)


def line(number: int, group: int, reward: float | None, text: str, **more: Any) -> RolloutLine:
    given: dict[str, Any] = dict(
        step=0, prompt=group + 100, fate="trained", finish="stop", tokens=len(text),
        prompt_text=f"{group}+1=", answer=str(group + 1), group_fate="trained",
    )  # fmt: skip
    given |= dict(id=number, group=group, reward=reward, pieces=((text, True),))
    return RolloutLine(**given | more)


LINES = [
    line(1, 0, 1.0, "right, of course", advantage=0.5, weight=1.0),
    line(2, 0, 0.0, "wrong and long", advantage=-0.5, weight=1.0),
    line(3, 0, None, "never scored", fate="failed", why="the reward raised ValueError"),
    line(4, 1, 0.25, "half a loaf", parts={"form": 0.25}),
    line(5, 1, 0.25, "half as well"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = Made(path=tmp_path / "run", steps=1).write()
    for file in (path / "rollouts").iterdir():
        file.unlink()
    files = RolloutFiles(path / "rollouts", 1 << 30)
    later = msgspec.structs.replace(LINES[0], step=3, id=9, pieces=(("later", True),))
    for step, some in ((0, LINES), (3, [later])):
        files.append(step, b"".join(msgspec.json.encode(one) + b"\n" for one in some))
    return path


def test_the_command_that_explains_more_can_be_pasted(run: Path) -> None:
    there = run.parent / "my runs, in a folder whose name is wider than the terminal" / "run"
    there.parent.mkdir()
    run.rename(there)
    last = show(there, 1, width=40).output.splitlines()[-1]
    assert shlex.split(last.partition(": ")[2]) == ["darts", "explain", str(there), "0"]


def chosen(result: Result) -> list[int]:
    assert result.exit_code == 0, result.output
    return [found["id"] for found in json.loads(result.output)]


@pytest.mark.parametrize(
    "asked, ids",
    [
        (["1", "--worst", "1"], [2, 1]),
        (["1", "--best", "1"], [1, 2]),
        (["1", "--worst", "2"], [2, 1, 4]),  # all of group 1 are equal: nothing beside it
        (["1", "--worst", "1", "--best", "1"], [2, 1]),
        (["1", "--search", "LOAF"], [4]),
        (["1", "--search", "valueerror"], [3]),
        (["--search", "later"], [9]),  # in all steps
        (["--prompt", "100"], [1, 2, 3, 9]),
        (["--group", "1"], [4, 5]),
        ([], [9]),  # the newest step
    ],
)
def test_what_is_asked_for_is_shown_beside_its_opposite(
    run: Path, asked: list[str], ids: list[int]
) -> None:
    assert chosen(show(run, *asked, "--json")) == ids


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_broken(run: Path, width: int) -> None:
    shown = show(run, 1, "--worst", 3, width=width).output
    *lines, _ = shown.splitlines()  # the last one is a command, to be copied whole
    assert max(map(len, lines)) <= width
    for text in ("prompt  0+1=", "answer  1", "reward 0 ", "reward 0.25", "14 tokens"):
        assert text in shown
    beside = any("reward 0 " in row and "reward 1 " in row for row in shown.splitlines())
    assert beside == (width >= 80)


def test_fate_reason_and_parts_are_shown(run: Path) -> None:
    shown = show(run, 1, "--group", 0, width=200).output
    assert "trained, advantage +0.5" in shown
    assert "failed: the reward raised ValueError" in shown
    assert "form 0.25" in show(run, 1, "--group", 1).output


def test_a_step_says_how_many_groups_have_equal_rewards(run: Path) -> None:
    said = show(run, 1, width=200).output.splitlines()[0]
    assert said.startswith("step 1: 5 responses in 2 groups, mean reward 0.375 (0 to 1)")
    assert said.endswith("all rewards are equal in 1 of the groups")


def test_texts_of_strangers_stay_text(run: Path) -> None:
    hostile = line(7, 7, 0.0, f"one{ESCAPES}two", prompt_text=ESCAPES, why=ESCAPES, answer=ESCAPES)
    files = RolloutFiles(run / "rollouts", 1 << 30)
    files.append(5, msgspec.json.encode(hostile) + b"\n")
    shown = show(run, 6, width=200).output
    assert "one\\x1b[2J\\x07\\u202e[red]two" in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert show(run, 6, "--json").output.isascii()


def test_turns_of_an_environment_are_marked_and_long_texts_are_shortened(run: Path) -> None:
    turns = line(7, 7, 0.0, "", pieces=(("ask(1)", True), ("two", False), ("x" * 9000, True)))
    RolloutFiles(run / "rollouts", 1 << 30).append(5, msgspec.json.encode(turns) + b"\n")
    shown = show(run, 6, width=200).output
    words = shown.split()
    assert words.index("ask(1)") < words.index("[environment]") < words.index("two")
    assert words.index("two") < words.index("[model]")
    assert "7200 characters; --full shows them" in shown
    assert show(run, 6, "--full", width=200).output.count("x") > 9000


@pytest.mark.parametrize(
    "asked, said",
    [
        (["2"], "no responses of step 2 are kept: there are 1 to 4"),
        (["1", "--search", "nowhere"], "no response in step 1 matches"),
        (["--search", "nowhere"], "no response in 2 steps matches"),
        (["--eval", "--worst", "3"], "--eval takes a STEP and --search"),
        (["--eval", "7"], "no evaluation at step 7: there are 0, 1"),
    ],
)
def test_what_is_not_there_is_said(run: Path, asked: list[str], said: str) -> None:
    result = show(run, *asked)
    assert result.exit_code == 2
    assert said in result.output


def test_without_responses_the_setting_is_named(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=1, settings=("rollouts.every=0",)).write()
    for file in (path / "rollouts").iterdir():
        file.unlink()
    assert "rollouts.every is 0" in show(path).output


def test_evaluations_are_shown_the_first_beside_the_last(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=6).write()
    shown = show(path, "--eval", "--search", "2+6+8").output
    assert "at step 0  reward" in shown
    assert "at step 6  reward" in shown
    assert shown.count("prompt  ") == 1
    found = json.loads(show(path, "--eval", 4, "--json").output)
    assert {step: len(lines) for step, lines in found.items()} == {"0": 4, "4": 4}
