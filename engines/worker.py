"""The process around an engine: starts it, and serves it to the stage.

    python -m engines.worker --stage SOCKETS --config RUN/config.yaml --name e0

Leads a process group of its own: ending this process ends vLLM's processes too, even
with `kill -9`. `engines.server` is what it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import msgspec

from engines.base import READY, Engine, EngineError, log_line
from engines.process_group import die_with_parent, end_group, lead_own_group
from pipeline.config.schema import Config
from pipeline.system.progress import announce
from pipeline.system.python_path import user_folder_last
from pipeline.wire.keys import TransportError, peer_keys_of

if __name__ == "__mp_main__":  # its name in a process spawned by `multiprocessing`
    die_with_parent()


def build_engine(config: Config) -> Engine:
    """Make the engine that the configuration names. Raises EngineError."""
    section = config.engine
    if section.kind == "vllm":
        from engines.backends.vllm import VllmEngine

        return VllmEngine(config.model, section, config.seed)
    if section.kind == "transformers":
        from engines.backends.transformers import TransformersEngine

        truncates = (config.eval.top_p, config.eval.top_k, config.eval.min_p) != (1.0, 0, 0.0)
        return TransformersEngine(config.model, section, config.seed, truncates=truncates)
    if section.kind == "simulated":
        from engines.backends.simulated import SimulatedEngine
        from engines.model_facts import read_model_facts

        facts = read_model_facts(config.model)
        return SimulatedEngine(
            slots=section.slots,
            vocabulary=facts.vocabulary,
            max_model_tokens=facts.max_model_tokens,
            stop_token=facts.stop_tokens[0],
            interval=min(8, section.chunk_tokens),
            seed=config.seed,
            remaining=True,
        )
    raise EngineError(f"no engine {section.kind!r} (known: vllm, transformers, simulated)")


async def serve_engine(stage: Path, config: Config, name: str, weights: Path | None) -> int:
    """Start the engine, join the stage, serve until asked to stop; returns the exit status."""
    from engines.latency_profile import cached_latency
    from engines.server import Worker
    from engines.text_search import TextSearch
    from engines.weights import PacedReceiver, WeightReceiver
    from engines.weights_fetch import FetchingReceiver
    from pipeline.config.load import stop_texts
    from pipeline.wire.client import StageClient

    try:
        peer_keys = peer_keys_of(stage)
        announce(f"starting the engine ({config.engine.kind}): imports, the model, a first token")
        engine = build_engine(config)
        texts = stop_texts(config)
        stops = TextSearch(config.model, texts) if texts else None
        markers = config.sampling.markers
        shown = TextSearch(config.model, markers) if markers else None
        info = await engine.start()
        if not info.latency:
            announce("measuring the engine's pace, once for this model and machine")
            points = await cached_latency(engine, info, config.model, config.engine)
            info = msgspec.structs.replace(info, latency=points)
        await engine.take_paced()  # those of the profile are not the run's
    except (EngineError, TransportError) as error:
        log_line(f"{name}: {error}")
        return 1
    receiver = (
        FetchingReceiver(peer_keys, weights) if peer_keys.weights and weights else WeightReceiver()
    )
    worker = Worker(
        engine,
        info,
        lambda join, receive: StageClient(peer_keys, join, receive),
        name=name,
        chunk_tokens=config.engine.chunk_tokens,
        timeouts=config.timeouts,
        receiver=PacedReceiver(receiver, config.weights),
        stops=stops,
        markers=shown,
    )
    # Until here SIGTERM killed at once; the launcher answers SIGINT.
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.stop_serving, 0, "received SIGTERM")
    worker.log(f"{READY}{', '.join(f'{key} {value}' for key, value in info.about.items())})")
    announce("")
    return await worker.run()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m engines.worker", description="Serve one engine to a stage."
    )
    parser.add_argument(
        "--stage", type=Path, required=True, help="directory of the stage's sockets, or a key file"
    )
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of the run")
    parser.add_argument("--weights", type=Path, help="directory for fetched weights")
    parser.add_argument("--name", required=True, help="name of this engine, shown by the stage")
    options = parser.parse_args()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    user_folder_last()
    lead_own_group()
    import uvloop

    from pipeline.config.load import ConfigError, load

    status = 1
    try:
        arguments = (options.stage, load(options.config), options.name, options.weights)
        status = uvloop.run(serve_engine(*arguments))
    except ConfigError as error:
        log_line(f"{options.name}: {error}")
    finally:
        end_group()
    sys.exit(status)


if __name__ == "__main__":
    main()
