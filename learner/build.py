"""Builds everything that a learner rank works with from a configuration.

Loads the model and, if a loss wants one, the reference model; forms the process
group; restores from a checkpoint. Imported late: it takes seconds.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as chatter

from learner import lora
from learner.checkpoint import save, transfer
from learner.deepspeed import engine
from learner.forward.packed_attention import AttentionError
from learner.forward.packing_check import prove_packing
from learner.moving_average import MovingAverage
from learner.pace import PassPace
from learner.step.base import LearnerStep
from learner.step.multi_update import MultiUpdateStep
from learner.step.passes import Passes
from learner.step.single_update import SingleUpdateStep
from learner.streaming.cached_forward import CachedForward
from learner.streaming.logprob_stream import LogprobStream, ModelStream
from pipeline.config.logprob_uses import LogprobUses, needs_old
from pipeline.config.logprob_uses import of as logprob_uses
from pipeline.config.model_files import read_facts
from pipeline.config.pace import learner_pace
from pipeline.config.schema import Config, LearnerConfig
from pipeline.plugins import registry
from pipeline.system.progress import announce

log = logging.getLogger("learner")


@dataclass(frozen=True, slots=True)
class LearnerParts:
    """Everything that one rank works with."""

    zero: engine.Zero
    step: LearnerStep
    passes: Passes
    pace: PassPace
    logprob_stream: LogprobStream
    answers: bool
    """The stage wants the streamed logprobs of the own weights back."""
    restored: save.Restored
    checkpoint_transfer: transfer.CheckpointTransfer
    vocabulary: int
    """Rows of the embedding."""
    special: frozenset[int]
    """Ids of EOS and padding."""


def build_learner(
    config: Config, resume: Path | None, local_rank: int, own: Path | None = None
) -> LearnerParts:
    """Join the other ranks, load, restore. Raises ValueError if the reference does not fit.

    Args:
        resume: a checkpoint, or None.
        own: if this machine does not share the run's folder, where the rank keeps files (see
            `transfer`).
    """
    section = config.learner
    if section.threads:
        # More threads than cores wait for one another at every operation, for a time slice each.
        torch.set_num_threads(min(section.threads, len(os.sched_getaffinity(0))))
    torch.manual_seed(config.seed)
    device = engine.device_of(local_rank)
    chatter.disable_progress_bar()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    announce(f"waiting for all {world} learner ranks" if world > 1 else "loading DeepSpeed's op")
    engine.join_ranks()
    carrier = transfer.make_transfer(own, device)
    with carrier.checkpoint_to_read(resume, save.files_needed) as checkpoint:
        return _build(config, checkpoint, device, carrier)


def _build(
    config: Config, resume: Path | None, device: torch.device, carrier: transfer.CheckpointTransfer
) -> LearnerParts:
    section = config.learner
    model = load_trained(config, resume, device)
    vocabulary, special = vocabulary_of(model)
    special.update(read_facts(Path(config.model)).ends)
    reference = load_reference(config, model, device)
    trainer = engine.Zero(model, section, config.step.count)
    restored = save.Restored(-1, 0) if resume is None else save.load_checkpoint(trainer, resume)
    average: MovingAverage | None = None
    if section.reference == "average":
        average = MovingAverage(reference, trainer.module, section.reference_decay)
        if resume is not None:
            average.restore(save.load_average(resume))
    cls = registry.find_plugin("loss", config.loss.name)
    loss = cls(msgspec.convert(config.loss.options, registry.options_type(cls)))
    temperature = config.sampling.temperature
    uses = logprob_uses(config)
    pace = PassPace(learner_pace(section.pace))
    old_stream, reference_stream = model_streams(
        section, uses, trainer, reference, temperature, pace
    )
    passes = Passes(
        trainer,
        loss,
        section,
        temperature=temperature,
        max_tokens=config.sampling.max_tokens,
        reference=reference,
        average=average,
        old_stream=old_stream,
        reference_stream=reference_stream,
        pace=pace,
    )
    if resume is not None:
        passes.loss_pass.state.restore(save.load_loss_state(resume, trainer.rank))
    return LearnerParts(
        zero=trainer,
        step=step_of(passes, section),
        passes=passes,
        pace=pace,
        logprob_stream=LogprobStream(old_stream, reference_stream),
        answers=uses.answered,
        restored=restored,
        checkpoint_transfer=carrier,
        vocabulary=vocabulary,
        special=frozenset(special),
    )


def load_reference(config: Config, model: Any, device: torch.device) -> Any:
    """Load the reference model of a run that trains `model`; None without `learner.reference`.

    Raises: ValueError if it does not fit.
    """
    section = config.learner
    if section.reference == "start" and section.lora is not None:
        return lora.Base(model)
    if not section.reference:
        return None
    dtype = "float32" if section.reference == "average" else section.dtype
    source = section.reference_folder or config.model
    reference = load_model(Path(source), device, dtype).requires_grad_(False)
    prove_packing(reference, section.attention)
    rows, vocabulary = vocabulary_of(reference)[0], vocabulary_of(model)[0]
    if rows != vocabulary:
        raise ValueError(
            f"learner.reference: {source} has {rows} token ids, the model has {vocabulary}: "
            "it needs the same vocabulary"
        )
    return reference


def model_streams(
    section: LearnerConfig,
    uses: LogprobUses,
    trainer: engine.Zero,
    reference: Any,
    temperature: float,
    pace: PassPace | None = None,
) -> tuple[ModelStream | None, ModelStream | None]:
    """Make the cached forwards of `overlap: token`: of the own weights and the reference model."""

    def stream(model: Any, entropy: bool = False) -> ModelStream:
        cached = CachedForward(model, temperature, section.kv_tokens, entropy=entropy)
        return ModelStream(cached, pace)

    return (
        stream(trainer.engine, uses.entropy) if uses.own else None,
        stream(reference) if uses.reference else None,
    )


def step_of(passes: Passes, section: LearnerConfig) -> LearnerStep:
    """Choose the step: backward as groups arrive needs one update and no communication."""
    if section.updates * section.epochs > 1 or passes.zero.collective_passes:
        return MultiUpdateStep(passes, section)
    return SingleUpdateStep(passes, old=needs_old(section))


def load_trained(config: Config, resume: Path | None, device: torch.device) -> Any:
    """Load the model to train and check that it runs packed calls; with LoRA also the adapters.

    Raises: AttentionError or LoraError if it cannot be trained as the configuration asks.
    """
    section = config.learner
    base = Path(config.model)
    whole = section.lora is None and resume is not None
    model = load_model(resume / save.MODEL if whole and resume else base, device, section.dtype)
    if section.lora is not None:
        lora.attach(model, section.lora, base)
        if resume is not None:
            lora.load_adapter(model, resume / lora.ADAPTER)
    announce("checking that the model computes several responses in one call")
    prove_packing(model, section.attention)
    if section.gradient_checkpointing:
        checkpoint_layers(model)
    return model


def load_model(source: Path, device: torch.device, dtype: str = "float32") -> Any:
    """Load a model onto the device. `dtype`: `learner.dtype`."""
    log.info("loading %s", source)
    announce(f"loading {source}")
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, dtype), trust_remote_code=False
    )
    return model.to(device).eval()


def checkpoint_layers(model: Any) -> None:
    """Keep only the inputs of layers, and compute the layers again in backward.

    transformers does so only in training mode, which would switch dropout on.
    Raises AttentionError for a model whose layers cannot be computed again.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise AttentionError(
            f"{type(model).__name__} cannot compute its layers again: set "
            "learner.gradient_checkpointing: false"
        )
    for layer in layers:
        layer.forward = functools.partial(_checkpointed, layer.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **named)


def vocabulary_of(model: Any) -> tuple[int, set[int]]:
    """Return the rows of the embedding, and the ids of EOS and padding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special: set[int] = set()
    for settings in (model.config, model.generation_config):
        for value in (settings.eos_token_id, settings.pad_token_id):
            if value is not None:
                special.update(value if isinstance(value, list) else [value])
    return rows, special


def versions_and_device(device: torch.device) -> dict[str, str]:
    """Return the device and the versions of libraries, for the log."""
    import deepspeed
    import transformers

    return {
        "device": str(device),
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
    }
