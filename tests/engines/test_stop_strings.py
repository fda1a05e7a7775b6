"""Stop texts: a turn ends with the token that completes one, whatever the engine has sampled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import WordLevel

from engines.backends.vllm import VllmEngine
from engines.base import Delta, Sampling
from engines.stop_strings import generate_until_stop
from engines.text_search import TextSearch
from pipeline.wire.fields import Drawing
from tests.paths import MODEL

WORDS = ["a", "<", "/t", ">", "x>", "=", "Ã", "©"]
"""The last two are the bytes of "é", as byte-level tokenizers write them."""
A, OPEN, T, CLOSE, X_CLOSE, EQUALS, BYTE_1, BYTE_2 = range(len(WORDS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.decoder = ByteLevel()  # type: ignore[assignment]
    directory = tmp_path_factory.mktemp("words")
    tokenizer.save(str(directory / "tokenizer.json"))
    return str(directory)


class Fake:
    """Samples what it is told in deltas of a size, and goes on until it is aborted."""

    def __init__(self, tokens: Sequence[int], size: int) -> None:
        self.tokens, self.size = tokens, size
        self.aborted: list[str] = []
        self.asked: list[Sampling] = []

    async def generate(self, sampling: Sampling) -> AsyncIterator[Delta]:
        self.asked.append(sampling)
        for begin in range(0, len(self.tokens), self.size):
            if self.aborted:
                yield Delta((), (), "abort")
                return
            part = self.tokens[begin : begin + self.size]
            finish = "length" if begin + self.size >= len(self.tokens) else ""
            yield Delta(part, [-float(begin + i) for i in range(len(part))], finish, 3)

    async def abort(self, ids: Sequence[str]) -> None:
        self.aborted += ids


def sampling_of(*tokens: int) -> Sampling:
    return Sampling(id="r", tokens=tokens, max_tokens=50, drawing=Drawing(), seed=0)


async def found(stops: TextSearch, engine: Any, sampling: Sampling) -> tuple[list[int], str]:
    deltas = [delta async for delta in generate_until_stop(stops, engine, sampling)]
    tokens = [token for delta in deltas for token in delta.tokens]
    assert [logprob for d in deltas for logprob in d.logprobs] == [
        -float(i) for i in range(len(tokens))
    ]
    assert {d.version for d in deltas if d.tokens} == {3}
    assert all(not d.finish for d in deltas[:-1])
    return tokens, deltas[-1].finish


@pytest.mark.parametrize("size", [1, 2, 3, 8])
async def test_a_turn_ends_with_the_token_that_completes_a_stop_text(model: str, size: int):
    engine = Fake([A, OPEN, T, A, OPEN, T, CLOSE, A, A, A], size)
    tokens, finish = await found(TextSearch(model, ["</t>"]), engine, sampling_of(A))
    assert (tokens, finish) == ([A, OPEN, T, A, OPEN, T, CLOSE], "stop")


async def test_what_was_there_before_the_turn_ends_none_but_may_begin_a_stop_text(model: str):
    stops = TextSearch(model, ["</t>"])
    tokens, finish = await found(stops, Fake([A, A], 1), sampling_of(OPEN, T, CLOSE))
    assert (tokens, finish) == ([A, A], "length")
    tokens, finish = await found(stops, Fake([CLOSE, A], 1), sampling_of(OPEN, T))
    assert (tokens, finish) == ([CLOSE], "stop"), "a leg goes on where an engine was lost"


async def test_engines_are_told_the_tokens_that_hold_a_stop_text(model: str):
    stops = TextSearch(model, [">", "é"])
    assert stops.tokens == {CLOSE, X_CLOSE}
    engine = Fake([A, BYTE_1, BYTE_2, A], 4)
    tokens, finish = await found(stops, engine, sampling_of(A))
    assert (tokens, finish) == ([A, BYTE_1, BYTE_2], "stop")
    assert engine.asked[0].stop_tokens == (CLOSE, X_CLOSE)


async def test_who_goes_away_at_the_finish_leaves_no_request_behind(model: str):
    engine = Fake([A, OPEN, T, CLOSE, A, A], 1)
    deltas = generate_until_stop(TextSearch(model, ["</t>"]), engine, sampling_of(A))  # type: ignore[arg-type]
    async for delta in deltas:
        if delta.finish:
            break
    assert engine.aborted == ["r"]


async def test_an_engine_that_ends_by_itself_at_the_stop_text_is_not_aborted(model: str):
    engine = Fake([A, EQUALS], 2)
    tokens, finish = await found(TextSearch(model, ["="]), engine, sampling_of(A))
    assert (tokens, finish, engine.aborted) == ([A, EQUALS], "stop", [])


@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_stops_at_a_stop_text_and_goes_on_after_what_is_appended(
    vllm_engine: VllmEngine,
) -> None:
    stops, tokenizer = (
        TextSearch(str(MODEL), ["="]),
        Tokenizer.from_file(f"{MODEL}/tokenizer.json"),
    )
    prompt = tokenizer.encode("7+9+2=", add_special_tokens=False).ids
    equals = tokenizer.token_to_id("=")
    ended: set[str] = set()
    for seed in range(8):
        asked = Sampling(
            id=f"turn{seed}",
            tokens=prompt,
            max_tokens=40,
            drawing=Drawing(),
            seed=seed,
        )
        deltas = [delta async for delta in generate_until_stop(stops, vllm_engine, asked)]
        tokens = [token for delta in deltas for token in delta.tokens]
        assert equals not in tokens[:-1]
        ended.add(str(tokenizer.id_to_token(tokens[-1])))
        assert deltas[-1].finish == "stop"
    assert "=" in ended
