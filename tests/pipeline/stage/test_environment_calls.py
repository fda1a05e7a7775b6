"""Environments in their workers: answers become tokens, failures are told, none is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.coordinator.events import CallEnvironment, Halt, TurnAnswered, TurnFailed
from pipeline.data.dataset import Dataset
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.actions import Append
from pipeline.plugins.environments.calculator import Calculator
from pipeline.plugins.interfaces import EnvironmentOptions
from pipeline.plugins.views import Turn
from pipeline.stage.environment_calls import EnvironmentCalls, EnvironmentPool, pieces_of
from pipeline.wire.messages import ints
from tests.paths import MODEL
from tests.pipeline.workers.test_pool import eventually, runs

pytestmark = pytest.mark.timeout(120)
PROMPT = "7+9+2="


async def by_text(turn: Turn) -> Any:
    """What a good or bad function does, as the turn's text says (digits are all the model has)."""
    match turn.text:
        case "1":
            return Append(text="16", memory={"pid": os.getpid(), "seen": turn.memory})
        case "2":
            raise ValueError("no such tool")
        case "3":
            return await asyncio.sleep(60)
        case "4":
            return "not in the alphabet"
        case "5":
            return Append(tokens=(5, 10_000))
        case "6":
            return 3.5
        case "7":
            return Append(memory=object())
        case "8":
            return Append(tokens=(5, np.int64(6)))  # type: ignore[arg-type]
        case _:
            return None


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


class Line:
    prompt, answer, columns = PROMPT, "18", {"terms": 3}


@asynccontextmanager
async def turning(
    tokenizer: Tokenizer, failure_text: str = "", limit_s: float = 20.0, **workers: Any
) -> AsyncIterator[tuple[EnvironmentCalls, EnvironmentPool, asyncio.Queue[Any]]]:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    function = f"{__name__}:by_text"
    known = EnvironmentOptions(failure_text=failure_text)
    data: dict[str, Dataset] = {"train": [Line()]}  # type: ignore[dict-item]
    plugin = Plugin(name="python", options={"function": function, "failure_text": failure_text})
    section = WorkersConfig(limit_s=limit_s, **workers)
    async with EnvironmentPool(plugin, section) as pool:
        found = EnvironmentCalls(pool, tokenizer, data, heard.put_nowait, known)
        yield found, pool, heard
        await found.close()


def question(tokenizer: Tokenizer, text: str, number: int = 0, **other: Any) -> CallEnvironment:
    fields: dict[str, Any] = dict(
        kind="train", prompt=0, group=0, trajectory=number, turn=0,
        tokens=np.asarray(tokenizer.encode(text), "<i4").tobytes(), appended=(), finish="stop",
        left=50,
    )  # fmt: skip
    return CallEnvironment(**{**fields, **other})


async def test_answers_become_tokens_and_bad_ones_leave_the_member_missing(tokenizer: Tokenizer):
    async with turning(tokenizer, fail_share=1.0) as (asks, _, heard):
        asks.ask(question(tokenizer, "1", memory="before"))
        found = await heard.get()
        assert isinstance(found, TurnAnswered)
        assert tokenizer.decode(ints(found.tokens).tolist()) == "16"
        assert found.memory["seen"] == "before"
        assert found.memory["pid"] != os.getpid(), "user code ran in the stage"
        assert found.times is not None
        asks.ask(question(tokenizer, "9"))
        assert (await heard.get()).over
        asks.ask(question(tokenizer, "8"))
        assert ints((await heard.get()).tokens).tolist() == [5, 6]
        for text, why in (
            ("2", "ValueError: no such tool"),
            ("4", "its text 'not in the alphabet' cannot be written"),
            ("5", "token 10000 is none of the model's 24"),
            ("6", "TypeError: returned float 3.5, expected text, Append or None"),
            ("7", "TypeError"),
        ):
            asks.ask(question(tokenizer, text))
            failed = await heard.get()
            assert isinstance(failed, TurnFailed), text
            assert failed.why.startswith(why), failed.why


async def test_a_call_that_takes_too_long_fails_or_is_told_in_words(tokenizer: Tokenizer):
    async with turning(tokenizer, failure_text="?", limit_s=0.5, fail_share=1.0) as (
        asks,
        _,
        heard,
    ):
        asks.ask(question(tokenizer, "3"))
        found = await heard.get()
        assert isinstance(found, TurnAnswered)
        assert tokenizer.decode(ints(found.tokens).tolist()) == "?"


async def test_too_many_failures_stop_the_run(tokenizer: Tokenizer):
    async with turning(tokenizer) as (asks, _, heard):
        for number in range(10):
            asks.ask(question(tokenizer, "2", number))
        found = [await heard.get() for _ in range(11)]
        [halt] = [event for event in found if isinstance(event, Halt)]
        assert "environment 'python' failed in 10 of the last 10 calls" in halt.error
        assert "workers.fail_share" in halt.error


async def test_an_aborted_member_ends_its_call_and_the_next_one_is_answered(tokenizer: Tokenizer):
    async with turning(tokenizer) as (asks, pool, heard):
        asks.ask(question(tokenizer, "1", 5))
        pid = (await heard.get()).memory["pid"]
        asks.ask(question(tokenizer, "3", 6))
        assert await eventually(lambda: pool.statistics().running == 1)
        asks.cancel(6)
        assert await eventually(lambda: not runs(pid)), "the call goes on"
        asks.ask(question(tokenizer, "1", 7))
        assert (await heard.get()).trajectory == 7
        assert heard.empty(), "an answer that nobody waits for"


async def test_a_call_that_ends_at_once_costs_no_worker_when_it_is_aborted(tokenizer: Tokenizer):
    async with turning(tokenizer) as (asks, pool, heard):
        asks.ask(question(tokenizer, "1", 5))
        pid = (await heard.get()).memory["pid"]
        asks.ask(question(tokenizer, "9", 6))
        await asyncio.sleep(0)
        asks.cancel(6)
        asks.ask(question(tokenizer, "1", 7))
        assert (await heard.get()).memory["pid"] == pid
        assert pool.statistics().running == 0


def test_pieces_say_who_wrote_what(tokenizer: Tokenizer):
    ids = tokenizer.encode("7+9=16;#1")
    assert pieces_of(ids, ((4, 2),), tokenizer) == (("7+9=", True), ("16", False), (";#1", True))
    assert pieces_of(ids, ((0, 1), (8, 1)), tokenizer) == (
        ("7", False), ("+9=16;#", True), ("1", False),
    )  # fmt: skip


@pytest.mark.parametrize(
    "response, text, finish, follows",
    [
        ("7+9=", "7+9=", "stop", "16"),
        ("7+9=16;16+2=", ";16+2=", "stop", "18"),
        (";=", ";=", "stop", ""),
        ("7+9=16;#16", ";#16", "stop", None),
        ("7+9", "7+9", "length", ""),
    ],
)
def test_the_calculator_answers_expressions_and_nothing_else(
    response: str, text: str, finish: str, follows: str | None
):
    turn = Turn(
        prompt=PROMPT, response=response, text=text, number=0, finish=finish, left=9, answer="18",
        columns={},
    )  # fmt: skip
    assert Calculator().turn(turn) == follows
