"""Engines' numbers against a plain forward of transformers, before and after new weights.

Shapes: T tokens of prompt and response, V vocabulary.
"""

import asyncio
import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from engines.base import Delta, Engine, Sampling
from pipeline.wire.fields import Drawing

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [5, 6, 7, 8]
PROBE = [2 + (7 * i) % 22 for i in range(40)]
LIMIT = 5e-5
"""Nats, float32. Two engines that are so near to a plain forward are within 1e-4 of each other."""
_ids, _versions = count(), count(10)


@pytest.fixture(
    params=["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(f"{request.param}_engine")


def model_of(directory: Path, noise: float = 0.0) -> Any:
    """The model in fp32; with `noise`, every weight moved by that share of its deviation."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            deviation = weight.std() if weight.numel() > 1 else torch.tensor(1.0)
            weight += noise * deviation * torch.randn(weight.shape, generator=generator)
    return model


def publish(model: Any, directory: Path) -> str:
    """As the learner does: every parameter once, nothing else in the directory."""
    tensors = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(tensors, directory / "model.safetensors")
    return str(directory)


@torch.no_grad()
def logprobs_of(model: Any, tokens: Sequence[int], temperature: float) -> list[float]:
    """Logprob of tokens[i + 1] given those before."""
    ids_T = torch.tensor(tokens)
    logprobs_TV = (model(ids_T[None]).logits[0] / temperature).log_softmax(-1)
    return logprobs_TV[:-1].gather(-1, ids_T[1:, None]).squeeze(-1).tolist()


async def sample(
    engine: Engine, drawing: Drawing, seeds: range, started: asyncio.Event | None = None
) -> list[list[Delta]]:
    """Responses of all seeds at once; `started` is set when one has come to its second delta."""

    async def one(seed: int) -> list[Delta]:
        sampling = Sampling(
            id=f"exact-{next(_ids)}",
            tokens=PROMPT,
            max_tokens=120 if started is None else 400,
            drawing=drawing,
            seed=seed,
            ignore_stop=started is not None,  # who waits for it wants them under way, and long
        )
        deltas: list[Delta] = []
        async for delta in engine.generate(sampling):
            deltas.append(delta)
            if started and len(deltas) == 2:
                started.set()
        return deltas

    return list(await asyncio.gather(*map(one, seeds)))


def largest_gap(models: dict[int | None, Any], deltas: list[Delta], temperature: float) -> float:
    """Over all tokens of a response, each against the model of its version."""
    tokens = [token for delta in deltas for token in delta.tokens]
    expected = {
        version: logprobs_of(model, [*PROMPT, *tokens], temperature)[len(PROMPT) - 1 :]
        for version, model in models.items()
    }
    gap, position = 0.0, 0
    for delta in deltas:
        for logprob in delta.logprobs:
            gap = max(gap, abs(logprob - expected[delta.version][position]))
            position += 1
    return gap


async def load(engine: Engine, directory: str) -> int:
    version = next(_versions)
    await engine.load_weights(directory, version)
    return version


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_sampled_logprobs_are_those_of_transformers_before_and_after_new_weights(
    engine: Engine, model_directory: Path, tmp_path: Path, temperature: float
):
    for noise in (0.0, 0.3):
        model = model_of(model_directory, noise)
        version = await load(engine, publish(model, tmp_path))
        for deltas in await sample(engine, Drawing(temperature=temperature), range(12)):
            assert {delta.version for delta in deltas} == {version}
            assert largest_gap({version: model}, deltas, temperature) < LIMIT


def filtered(scores_V: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    """Logprobs of the distribution that is drawn from, by its definition."""
    probs_V = scores_V.double().softmax(-1)
    kept = probs_V >= drawing.min_p * probs_V.max()
    order = [int(i) for i in probs_V.argsort(descending=True) if kept[i]]
    order = order[: drawing.top_k or None]
    total, given, taken = float(probs_V[order].sum()), 0.0, list[int]()
    for token in order:
        if given < drawing.top_p * total or drawing.top_p == 1:
            taken.append(token)
        given += float(probs_V[token])
    logprobs_V = torch.full_like(probs_V, -math.inf)
    logprobs_V[taken] = (probs_V[taken] / probs_V[taken].sum()).log()
    return logprobs_V


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(top_p=0.6),
        Drawing(top_k=2),
        Drawing(min_p=0.3),
        Drawing(temperature=1.3, top_p=0.9, top_k=5, min_p=0.02),
    ],
    ids=["top_p", "top_k", "min_p", "all"],
)
async def test_logprobs_of_truncated_sampling_are_of_the_distribution_that_was_drawn_from(
    engine: Engine, model_directory: Path, tmp_path: Path, drawing: Drawing
):
    model = model_of(model_directory, 0.3)
    await load(engine, publish(model, tmp_path))
    whole = asyncio.create_task(sample(engine, Drawing(), range(4)))  # in the same forward passes
    cut = dropped = 0
    for deltas in await sample(engine, drawing, range(8)):
        tokens = [*PROMPT, *(token for delta in deltas for token in delta.tokens)]
        logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
        with torch.no_grad():
            scores_TV = model(torch.tensor([tokens])).logits[0] / drawing.temperature
        for at, (token, logprob) in enumerate(zip(tokens[4:], logprobs, strict=True), 3):
            expected_V = filtered(scores_TV[at], drawing)
            if abs(float(expected_V[token]) - logprob) > LIMIT:
                cut += 1  # a token at the edge may be on the other side of it by rounding
            dropped += int(expected_V.isinf().sum())
    assert cut <= 1
    assert dropped > 100, "the test would not see a drawing from all tokens"
    for deltas in await whole:
        assert largest_gap({delta.version: model for delta in deltas}, deltas, 1.0) < LIMIT


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_a_response_that_meets_new_weights_is_cut_where_they_came_and_exact_on_both_sides(
    engine: Engine, model_directory: Path, tmp_path: Path, temperature: float
):
    models: dict[int | None, Any] = {}
    directories: list[str] = []
    for index, noise in enumerate((0.0, 0.3)):
        (tmp_path / str(index)).mkdir()
        directories.append(publish(model_of(model_directory, noise), tmp_path / str(index)))
    mixed: list[list[Delta]] = []
    responses: list[list[Delta]] = []
    for _ in range(3):  # a machine that stands still for a second misses the moment
        models[await load(engine, directories[0])] = model_of(model_directory, 0.0)
        started = asyncio.Event()
        running = asyncio.create_task(
            sample(engine, Drawing(temperature=temperature), range(100, 116), started)
        )
        await started.wait()
        models[await load(engine, directories[1])] = model_of(model_directory, 0.3)
        responses = await running
        mixed = [r for r in responses if len({delta.version for delta in r}) == 2]
        if mixed:
            break
    assert mixed, "no response was under way when the weights came"
    for deltas in responses:
        assert largest_gap(models, deltas, temperature) < LIMIT


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_the_probe_is_exact_and_finds_stale_weights(
    engine: Engine, model_directory: Path, tmp_path: Path, temperature: float
):
    old, new = model_of(model_directory), model_of(model_directory, 0.3)
    await load(engine, publish(new, tmp_path))
    found = await engine.logprobs(PROBE, temperature)
    answered = [i for i, logprob in enumerate(found) if not math.isnan(logprob)]
    assert len(found) == len(PROBE) - 1
    assert len(answered) >= 8
    expected, stale = (logprobs_of(model, PROBE, temperature) for model in (new, old))
    assert max(abs(found[i] - expected[i]) for i in answered) < LIMIT
    assert max(abs(found[i] - stale[i]) for i in answered) > 0.1


async def test_the_probe_is_exact_while_every_slot_is_taken(
    engine: Engine, model_directory: Path, tmp_path: Path
):
    model = model_of(model_directory, 0.3)
    version = await load(engine, publish(model, tmp_path))
    started = asyncio.Event()
    running = asyncio.create_task(sample(engine, Drawing(), range(200, 216), started))
    await started.wait()
    found = await engine.logprobs(PROBE, 0.7)
    assert not running.done()
    expected = logprobs_of(model, PROBE, 0.7)
    gaps = [abs(a - b) for a, b in zip(found, expected, strict=True) if not math.isnan(a)]
    assert max(gaps) < LIMIT
    for deltas in await running:
        assert largest_gap({version: model}, deltas, 1.0) < LIMIT


async def test_new_weights_may_come_with_more_tokens_in_flight_than_one_prefill_takes(
    engine: Engine, model_directory: Path, tmp_path: Path
):
    directory = publish(model_of(model_directory), tmp_path)
    held = dict.fromkeys(range(16), 0)
    many = asyncio.Event()

    async def one(number: int) -> str:
        sampling = Sampling(
            id=f"long-{next(_ids)}",
            tokens=PROMPT,
            max_tokens=500,
            drawing=Drawing(),
            seed=number,
            ignore_stop=True,
        )
        finish = ""
        async for delta in engine.generate(sampling):
            held[number] += len(delta.tokens)
            if min(held.values()) > 400:
                many.set()
            finish = delta.finish
        return finish

    running = [asyncio.create_task(one(number)) for number in held]
    await many.wait()
    await load(engine, directory)
    assert not any(task.done() for task in running)
    assert await asyncio.gather(*running) == ["length"] * 16
