"""What every engine keeps to: the same claims about each of them."""

import asyncio
import math
from collections.abc import AsyncIterator
from itertools import count

import pytest
import pytest_asyncio

from engines.backends.simulated import SimulatedEngine
from engines.base import Delta, Engine, Sampling
from pipeline.wire.fields import Drawing

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [5, 6, 7, 8]
_ids = count()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def simulated_engine() -> AsyncIterator[Engine]:
    simulated = SimulatedEngine(slots=16, vocabulary=24, step_s=0.002)
    await simulated.start()
    yield simulated
    await simulated.close()


@pytest.fixture(
    params=[
        "simulated",
        "transformers",
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow]),
    ]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(f"{request.param}_engine")


def sampling_of(**changes: object) -> Sampling:
    fields: dict[str, object] = {
        "id": f"r{next(_ids)}",
        "tokens": PROMPT,
        "max_tokens": 200,
        "drawing": Drawing(),
        "seed": 1,
    }
    return Sampling(**(fields | changes))  # pyright: ignore[reportArgumentType]


async def deltas_of(engine: Engine, **changes: object) -> list[Delta]:
    return [delta async for delta in engine.generate(sampling_of(**changes))]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


async def test_a_response_ends_exactly_once_and_the_finish_rides_on_the_last_token(engine: Engine):
    for deltas in await asyncio.gather(*(deltas_of(engine, seed=seed) for seed in range(24))):
        assert [delta.finish for delta in deltas[:-1]] == [""] * (len(deltas) - 1)
        assert deltas[-1].finish in ("stop", "length")
        assert deltas[-1].tokens
        assert (tokens_of(deltas)[-1] == 1) == (deltas[-1].finish == "stop")
        assert 1 not in tokens_of(deltas)[:-1]


async def test_every_token_has_a_logprob_of_at_most_zero(engine: Engine):
    for delta in await deltas_of(engine):
        assert len(delta.logprobs) == len(delta.tokens)
        assert all(logprob <= 1e-3 for logprob in delta.logprobs)


async def test_tokens_come_while_the_response_goes_on(engine: Engine):
    long = max(
        await asyncio.gather(*(deltas_of(engine, seed=seed) for seed in range(8))),
        key=lambda deltas: len(tokens_of(deltas)),
    )
    assert len(long) >= 3


async def test_no_more_tokens_than_asked_for(engine: Engine):
    responses = await asyncio.gather(*(deltas_of(engine, seed=s, max_tokens=3) for s in range(16)))
    lengths = {len(tokens_of(deltas)) for deltas in responses}
    assert max(lengths) == 3
    assert "length" in {deltas[-1].finish for deltas in responses}


async def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(engine: Engine):
    one, again = await deltas_of(engine, seed=5), await deltas_of(engine, seed=5)
    assert tokens_of(one) == tokens_of(again)
    others = [tokens_of(await deltas_of(engine, seed=seed)) for seed in (6, 7, 8)]
    assert any(other != tokens_of(one) for other in others)


async def test_at_temperature_0_each_token_is_the_likeliest_whatever_the_seed(engine: Engine):
    if not engine.has_model:
        pytest.skip("nothing is likely to an engine without a model")
    changes: dict[str, object] = {"drawing": Drawing(temperature=0.0), "max_tokens": 12}
    one, other = await deltas_of(engine, seed=5, **changes), await deltas_of(engine, **changes)
    assert tokens_of(one) == tokens_of(other)
    logprobs = [logprob for delta in one for logprob in delta.logprobs]
    assert all(-math.log(24) <= logprob <= 1e-3 for logprob in logprobs), "of 24 tokens"


async def test_a_response_can_be_continued_after_a_prefix(engine: Engine):
    prefix = tokens_of(await deltas_of(engine, seed=5, max_tokens=4))
    deltas = await deltas_of(engine, tokens=[*PROMPT, *prefix], seed=77, max_tokens=50)
    assert 1 <= len(tokens_of(deltas)) <= 50
    assert deltas[-1].finish in ("stop", "length")


async def test_an_abort_ends_a_running_response_at_once(engine: Engine):
    for seed in range(60):
        sampling = sampling_of(seed=seed)
        stream = engine.generate(sampling)
        first = await anext(stream)
        if not first.finish:
            break
    else:
        pytest.fail("no response of more than one delta")
    await engine.abort([sampling.id])
    async with asyncio.timeout(1.0):
        rest = [delta async for delta in stream]
    assert rest[-1].finish == "abort"
    assert len(rest) <= 2


async def test_an_abort_of_an_unknown_request_is_ignored(engine: Engine):
    await engine.abort(["never heard of"])


async def test_more_requests_than_slots_all_come_to_their_end(engine: Engine):
    responses = await asyncio.gather(*(deltas_of(engine, seed=seed) for seed in range(60)))
    assert {deltas[-1].finish for deltas in responses} <= {"stop", "length"}


async def test_an_engine_in_order_reports_no_failure(engine: Engine):
    assert engine.failure() == ""
