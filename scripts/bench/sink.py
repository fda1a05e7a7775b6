"""An idle learner: the pipeline without the time and the core of training.

    python -m scripts.bench.sink --stage SOCKETS --config CONFIG --rank 0 --world 1

Speaks the learner's side of the wire: publishes the start weights, reports every group as trained
and every step as done at once, and uses the same file for each version.
"""

from __future__ import annotations

import argparse
import queue
from pathlib import Path
from typing import Any

import msgspec

from learner.process_setup import leave_engine_cores
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.data.tokenizer import Tokenizer
from pipeline.wire.client import StageClient
from pipeline.wire.messages import (
    PROTOCOL,
    CloseStep,
    GroupTrained,
    Join,
    Manifest,
    Published,
    Refused,
    Shutdown,
    StepDone,
    ToPeer,
    TrainGroup,
    Welcome,
)


class Sink:
    """Serves a stage as its only learner rank."""

    def __init__(self, config: Config, stage: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        # transformers' loaders have no usable types.
        loader: Any = AutoModelForCausalLM
        self._model: Any = loader.from_pretrained(
            config.model, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = Tokenizer(Path(config.model))
        self._vocabulary = tokenizer.vocabulary
        self._special = tokenizer.eos | {tokenizer.pad}
        self._manifest: Manifest | None = None
        self._inbox: queue.SimpleQueue[ToPeer] = queue.SimpleQueue()
        join = Join(protocol=PROTOCOL, role="learner", name="l0", vocabulary=self._vocabulary)
        self._client = StageClient(stage, join, self._inbox.put)

    def serve_stage(self) -> int:
        """Serves until the stage sends it away. Returns the exit status."""
        self._client.start()
        self._client.set_activity("idle", 0.0)
        while True:
            match self._inbox.get():
                case Welcome(weights_directory=directory):
                    self._publish(Path(directory))
                case TrainGroup() as group:
                    tokens = sum(m.weight * (len(m.response) // 4) for m in group.members)
                    self._client.send(
                        GroupTrained(step=group.step, group=group.group, tokens=tokens)
                    )
                case CloseStep(step=step):
                    self._client.send(self._done(step))
                case Shutdown():
                    self._client.close()
                    return 0
                case Refused(why=why):
                    self._client.close()
                    print(f"refused by the stage: {why}", flush=True)
                    return 2
                case _:
                    pass  # messages that would change weights

    def _publish(self, directory: Path) -> None:
        from learner.weights import WeightPublisher, probe_logprobs, probe_tokens

        probe = probe_tokens(self._vocabulary, self._special)
        logprobs = probe_logprobs(self._model, probe)
        manifest = WeightPublisher(directory, probe).publish_version(self._model, 0, logprobs)
        self._manifest = manifest
        self._client.send(Published(manifest=manifest))

    def _done(self, step: int) -> StepDone:
        assert self._manifest is not None, "a step is closed before the weights were published"
        version = self._manifest.version + 1
        self._manifest = msgspec.structs.replace(self._manifest, version=version)
        return StepDone(step=step, version=version, manifest=self._manifest)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.sink")
    parser.add_argument("--stage", type=Path, required=True, help="sockets or key file")
    parser.add_argument("--config", type=Path, required=True, help="the run's settings")
    parser.add_argument("--rank", type=int, choices=[0], required=True, help="0")
    parser.add_argument("--world", type=int, choices=[1], required=True, help="1")
    parser.add_argument("--micro-batch-tokens", type=int, help="as a learner rank has it; no use")
    options = parser.parse_args()
    config = load(options.config)
    leave_engine_cores(config)
    raise SystemExit(Sink(config, options.stage).serve_stage())


if __name__ == "__main__":
    main()
