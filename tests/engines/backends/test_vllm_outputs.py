"""Requests and deltas over a core that is played by the test; vLLM itself is not needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from engines.backends.vllm_outputs import PARTS, CoreOutputs
from engines.base import Delta, EngineError


class Core:
    """Stands for vLLM's core: keeps what it is sent, and sends what the test has it send."""

    def __init__(self) -> None:
        self.added: list[str] = []
        self.aborted: list[str] = []
        self.steps: asyncio.Queue[Any] = asyncio.Queue()

    async def add_request_async(self, request: Any) -> None:
        self.added.append(request.request_id)

    async def abort_requests_async(self, ids: list[str]) -> None:
        self.aborted += ids

    async def get_output_async(self) -> Any:
        step = await self.steps.get()
        if isinstance(step, Exception):
            raise step
        return step

    def send(self, request: str, *tokens: int, version: str = "3", finish: str | None = None):
        """One step's output: the logprob of token t is -t, of the token asked for -t - 0.5."""
        rows = np.asarray([[-float(t), -t - 0.5] for t in tokens], dtype=np.float32)
        output = SimpleNamespace(
            request_id=request,
            new_token_ids=list(tokens),
            new_logprobs=SimpleNamespace(logprobs=rows) if tokens else None,
            finish_reason=finish,
        )
        self.steps.put_nowait(SimpleNamespace(weight_version=version, outputs=[output]))


def llm_over(core: Core) -> Any:
    def process_inputs(number: str, *_: Any) -> Any:
        return SimpleNamespace(request_id=number)

    return SimpleNamespace(
        output_handler=None,
        engine_core=core,
        input_processor=SimpleNamespace(process_inputs=process_inputs),
    )


@pytest_asyncio.fixture
async def core() -> Core:
    return Core()


@pytest_asyncio.fixture
async def outputs(core: Core) -> AsyncIterator[CoreOutputs]:
    llm = llm_over(core)
    yield CoreOutputs(llm, chunk_tokens=4)
    llm.output_handler.cancel()


async def begin(outputs: CoreOutputs, core: Core, name: str = "r") -> tuple[asyncio.Task[Any], str]:
    """A reader of all deltas, and the id that the core knows its request by."""

    async def read() -> list[Delta]:
        return [delta async for delta in outputs.generate(name, [1], None)]

    reader = asyncio.create_task(read())
    await settle()
    return reader, core.added[-1]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_tokens_gather_but_for_the_first_and_the_finish_rides_on_the_last(
    outputs: CoreOutputs, core: Core
):
    reader, number = await begin(outputs, core)
    for token in range(1, 8):
        core.send(number, token)
    core.send(number, 8, finish="stop")
    deltas = await reader
    assert [list(d.tokens) for d in deltas] == [[1], [2, 3, 4, 5], [6, 7, 8]]
    assert [d.finish for d in deltas] == ["", "", "stop"]
    assert [x for d in deltas for x in d.logprobs] == [-float(t) for t in range(1, 9)]
    assert core.aborted == []


async def test_a_delta_has_one_version_of_the_weights(outputs: CoreOutputs, core: Core):
    reader, number = await begin(outputs, core)
    for token, version in ((1, "default"), (2, "default"), (3, "1"), (4, "1")):
        core.send(number, token, version=version)
    core.send(number, 5, version="2", finish="length")
    found = [(list(d.tokens), d.version) for d in await reader]
    assert found == [([1], None), ([2], None), ([3, 4], 1), ([5], 2)]


async def test_an_abort_hands_on_what_has_gathered_and_later_tokens_reach_nobody(
    outputs: CoreOutputs, core: Core
):
    reader, number = await begin(outputs, core)
    core.send(number, 1)
    core.send(number, 2)
    await settle()
    await outputs.abort(["r", "never heard of"])
    again, other = await begin(outputs, core)
    core.send(number, 3)  # was under way when the abort came
    core.send(other, 4, finish="length")
    assert [(list(d.tokens), d.finish) for d in await reader] == [([1], ""), ([2], "abort")]
    assert [(list(d.tokens), d.finish) for d in await again] == [([4], "length")]
    assert core.aborted == [number]


async def test_a_request_whose_reader_goes_away_is_aborted(outputs: CoreOutputs, core: Core):
    reader, number = await begin(outputs, core)
    reader.cancel()
    await settle()
    assert core.aborted == [number]
    await outputs.abort(["r"])
    assert core.aborted == [number]


async def test_when_the_core_cannot_be_read_every_reader_hears_it_and_no_request_begins(
    outputs: CoreOutputs, core: Core
):
    reader, _ = await begin(outputs, core)
    core.steps.put_nowait(EngineError("gone"))
    with pytest.raises(EngineError, match="gone"):
        await reader
    with pytest.raises(EngineError, match="died"):
        await anext(outputs.generate("other", [1], None))


async def test_tokens_without_a_version_are_an_error(outputs: CoreOutputs, core: Core):
    reader, number = await begin(outputs, core)
    core.send(number, 1, version=None)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="version of the weights"):
        await reader


@pytest.mark.parametrize("part", PARTS)
async def test_a_vllm_that_lacks_a_part_is_named(core: Core, part: str):
    llm = llm_over(core)
    holder, _, name = part.rpartition(".")
    known = {p.rpartition(".")[2] for p in PARTS if p.rpartition(".")[0] == holder} - {name}
    if holder:
        setattr(llm, holder, SimpleNamespace(**dict.fromkeys(known)))
    else:
        delattr(llm, name)
    with pytest.raises(EngineError, match=f"no AsyncLLM.{part}"):
        CoreOutputs(llm, chunk_tokens=4)
