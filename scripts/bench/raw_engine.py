"""Measures vLLM alone: sends the requests of a step of darts to `AsyncLLM` directly.

    python -m scripts.bench.raw_engine --config CONFIG --out FILE

Asks a coordinator for the requests of a configuration's first step, streams them with
`engine.slots` in flight, and writes tokens and seconds as JSON. It is a separate process because
vLLM is imported with its environment set. Engine and sampling settings are those of
`engines.backends.vllm`: only what darts adds around them is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engines.backends.vllm import async_llm, sampling_params
from engines.base import Sampling
from engines.model_facts import read_model_facts
from engines.process_group import die_with_parent, end_group, lead_own_group
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.coordinator.events import (
    AnyEvent,
    EngineJoined,
    Generate,
    LearnerJoined,
    Published,
    WeightsLoaded,
)
from pipeline.data import eval_sets
from pipeline.data.dataset import load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import wanted_of
from pipeline.stage import build
from pipeline.wire.fields import Drawing
from pipeline.wire.messages import ints

if __name__ == "__mp_main__":  # the name in a process that `multiprocessing` has spawned
    die_with_parent()


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Number of generated tokens, and their time."""

    tokens: int  # response tokens
    seconds: float  # from the first request to the last token

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def requests_of(config: Config) -> list[Sampling]:
    """Returns the first step's requests, in the order in which a run sends them.

    Uses a coordinator with one engine that has a slot for each. Evaluation must be off.
    """
    tokenizer = Tokenizer(Path(config.model))
    train = load_train(config.data, tokenizer, config.sampling.max_tokens, wanted_of(config))
    held_out = eval_sets.load_eval_sets(config, tokenizer)
    coordinator = build.coordinator(config, tokenizer, train, held_out)
    beginning: list[AnyEvent] = [
        *(LearnerJoined(rank=rank) for rank in range(config.learner.ranks)),
        Published(version=0),
        EngineJoined(engine="e0", epoch=0, slots=config.step.prompts * config.group.size),
        WeightsLoaded(engine="e0", version=0, gap=0.0),
    ]
    commands = [command for event in beginning for command in coordinator.handle(event, 0.0)]
    return [
        Sampling(
            id=f"{command.trajectory}",
            tokens=ints(train[command.prompt].tokens).tolist(),
            max_tokens=command.max_tokens,
            drawing=Drawing(temperature=config.sampling.temperature),
            seed=command.seed,
        )
        for command in commands
        if isinstance(command, Generate)
    ]


async def measure_raw(config: Config, requests: Sequence[Sampling]) -> Span:
    """Streams all requests, after an unmeasured warm-up with one request for each slot."""
    stops = read_model_facts(config.model).stop_tokens
    # A delta has as many tokens as in darts, and `AsyncLLM` its cheapest way to make one.
    interval = {"stream_interval": min(8, config.engine.chunk_tokens), **config.engine.vllm}
    engine = msgspec.structs.replace(config.engine, vllm=interval)
    llm = async_llm(config.model, engine, config.seed)

    from vllm.sampling_params import RequestOutputKind

    async def stream(name: str, chosen: Sequence[Sampling]) -> Span:
        tokens, waiting = 0, iter(chosen)

        async def slot() -> None:
            nonlocal tokens
            for request in waiting:
                prompt = {"prompt_token_ids": list(request.tokens)}
                params = sampling_params(request, stops)
                params.flat_logprobs, params.output_kind = True, RequestOutputKind.DELTA
                async for output in llm.generate(prompt, params, f"{name}-{request.id}"):
                    tokens += len(output.outputs[0].token_ids)

        started = time.monotonic()
        await asyncio.gather(*(slot() for _ in range(config.engine.slots)))
        return Span(tokens=tokens, seconds=time.monotonic() - started)

    try:
        await stream("warm-up", requests[: config.engine.slots])
        return await stream("measured", requests)
    finally:
        llm.shutdown(timeout=2.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.raw_engine")
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    options = parser.parse_args()
    lead_own_group()
    import uvloop

    try:
        config = load(options.config)
        span = uvloop.run(measure_raw(config, requests_of(config)))
        options.out.write_bytes(msgspec.json.encode(span))
    finally:
        end_group()


if __name__ == "__main__":
    main()
