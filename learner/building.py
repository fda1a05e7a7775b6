"""A configuration -> everything a learner rank works with, before its first message.

Loads the model and, if a loss wants one, the reference model; forms the process
group; restores from a checkpoint. Imported late: it takes seconds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as chatter

from learner import carrying, saving, zero
from learner.accumulate import StepGradient
from learner.ahead import Ahead, Stream
from learner.passes import Passes
from learner.streamer import Streamer
from learner.updates import HeldStep, needs_old
from pipeline import plugins
from pipeline.config import Config, LearnerSection

log = logging.getLogger("learner")


@dataclass(frozen=True, slots=True)
class Parts:
    """What one rank works with."""

    zero: zero.Zero
    gradient: StepGradient | HeldStep
    passes: Passes
    ahead: Ahead
    restored: saving.Restored
    carrier: carrying.Carrier
    vocabulary: int
    """Rows of the embedding."""
    special: frozenset[int]
    """Ids of EOS and padding."""


def build(config: Config, resume: Path | None, local_rank: int, own: Path | None = None) -> Parts:
    """Join the other ranks, load, restore. Raises ValueError if the reference does not fit.

    Args:
        resume: a checkpoint, or None.
        own: of a rank that is apart (`carrying`), where it keeps files meanwhile.
    """
    section = config.learner
    if section.threads:
        torch.set_num_threads(section.threads)
    torch.manual_seed(config.seed)
    device = zero.device_of(local_rank)
    chatter.disable_progress_bar()
    zero.join_ranks()
    carrier = carrying.meet(own, device)
    with carrier.restoring(resume, saving.needed) as checkpoint:
        return _build(config, checkpoint, device, carrier)


def _build(
    config: Config, resume: Path | None, device: torch.device, carrier: carrying.Carrier
) -> Parts:
    section = config.learner
    model = load(Path(config.model) if resume is None else resume / saving.MODEL, device)
    vocabulary, special = vocabulary_of(model)
    reference: Any = None
    if section.reference:
        source = config.model if section.reference == "start" else section.reference
        reference = load(Path(source), device).eval().requires_grad_(False)
        if (rows := vocabulary_of(reference)[0]) != vocabulary:
            raise ValueError(
                f"learner.reference: {source} has {rows} token ids, the model has {vocabulary}: "
                "it needs the same vocabulary"
            )
    trainer = zero.Zero(model, section)
    restored = saving.Restored(-1, 0) if resume is None else saving.load(trainer, resume)
    cls = plugins.find("loss", config.loss.name)
    loss = cls(msgspec.convert(config.loss.options, plugins.options_type(cls)))
    temperature = config.sampling.temperature
    old_stream, reference_stream = streams(section, trainer, reference, temperature)
    passes = Passes(
        trainer,
        loss,
        section,
        temperature=temperature,
        reference=reference,
        old_stream=old_stream,
        reference_stream=reference_stream,
    )
    return Parts(
        zero=trainer,
        gradient=step_of(passes, section),
        passes=passes,
        ahead=Ahead([stream for stream in (old_stream, reference_stream) if stream is not None]),
        restored=restored,
        carrier=carrier,
        vocabulary=vocabulary,
        special=frozenset(special),
    )


def streams(
    section: LearnerSection, trainer: zero.Zero, reference: Any, temperature: float
) -> tuple[Stream | None, Stream | None]:
    """The cached forwards of `overlap: token`: of the own weights, and of the reference model.

    Where passes communicate (ZeRO 3) no rank may run its own model alone.
    """
    if section.overlap != "token":
        return None, None

    def stream(model: Any) -> Stream:
        return Stream(Streamer(model, temperature, section.kv_tokens))

    old = stream(trainer.engine) if needs_old(section) and not trainer.in_rounds else None
    return old, stream(reference) if reference is not None else None


def step_of(passes: Passes, section: LearnerSection) -> StepGradient | HeldStep:
    """Backward as groups arrive, where one optimizer step and no communication allow it."""
    if section.updates * section.epochs > 1 or passes.zero.in_rounds:
        return HeldStep(passes, section)
    return StepGradient(passes, old=needs_old(section))


def load(source: Path, device: torch.device) -> Any:
    """The model of a directory, on the device."""
    log.info("loading %s", source)
    # float32 everywhere: bfloat16 is ten times slower on a CPU, and drifts from the engine.
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, trust_remote_code=False
    )
    return model.to(device)


def vocabulary_of(model: Any) -> tuple[int, set[int]]:
    """Rows of the embedding, and the ids of EOS and padding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special: set[int] = set()
    for settings in (model.config, model.generation_config):
        for value in (settings.eos_token_id, settings.pad_token_id):
            if value is not None:
                special.update(value if isinstance(value, list) else [value])
    return rows, special


def about(device: torch.device) -> dict[str, str]:
    """What this rank runs on, for the log."""
    import deepspeed
    import transformers

    return {
        "device": str(device),
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
    }
