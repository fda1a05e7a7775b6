"""The built-in environments, in this process: what each makes of a turn."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plugins.environments.python import Python, PythonOptions
from pipeline.plugins.testing import option_problems
from pipeline.plugins.views import Turn

HERE = f"{__name__}:"


def shout(turn: Turn) -> str:
    return turn.text.upper()


async def later(turn: Turn) -> str:
    return f"{turn.number + 1}"


def nothing() -> None:
    return None


def turn_of(text: str, number: int = 0) -> Turn:
    return Turn(
        prompt="p", response=text, text=text, number=number, finish="stop", left=9,
        answer="", columns={},
    )  # fmt: skip


async def test_the_named_function_is_called_with_the_turn_sync_or_async():
    assert Python(PythonOptions(function=HERE + "shout")).turn(turn_of("ab")) == "AB"
    answer: Any = Python(PythonOptions(function=HERE + "later")).turn(turn_of("ab", 4))
    assert await answer == "5"


@pytest.mark.parametrize(
    "function, says",
    [
        (HERE + "shouts", "function is"),
        (HERE + "nothing", "which does not take one argument, the turn"),
    ],
)
def test_a_function_that_is_none_or_takes_no_turn_is_named(function: str, says: str):
    [found] = option_problems(PythonOptions, function=function)
    assert says in found
    assert repr(function) in found
