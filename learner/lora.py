"""Trains LoRA adapters through peft: merged for the engines, small in a checkpoint.

The adapters sit inside the model (peft's layers replace its linear ones), so packed calls,
caches and DeepSpeed see a model like any other. The engines get W + scaling B A, computed
in float32 beside the training copy and rounded once. Invariant: published weights have
the names of the base model; the training copy is never merged into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config.schema import LoraConfig
from pipeline.system import untrusted_files
from pipeline.system.durable_files import SYSTEM, Disk, make_durable

ADAPTER = "adapter"
"""Directory within a checkpoint that holds the adapter in peft's format."""
ALL_LINEAR = "all-linear"
SETTINGS = "adapter_config.json"
_FILE = "adapter_model.safetensors"
_NAME = "default"
_PREFIX = "base_model.model."
"""Prefix of every name in peft's files."""


class LoraError(ValueError):
    """The adapters do not fit the model."""


def attach(model: Any, section: LoraConfig, base: Path) -> None:
    """Put new adapters into a model; from then on only they have a gradient.

    Args:
        base: the model's directory, recorded in the adapter's settings.

    Raises: LoraError if a target is missing, or cannot be merged for the engines.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear

    targets = ALL_LINEAR if section.targets == (ALL_LINEAR,) else list(section.targets)
    settings = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
    )
    tied = model.get_input_embeddings().weight
    try:
        inject_adapter_in_model(settings, model, adapter_name=_NAME)
    except ValueError as error:
        raise LoraError(f"learner.lora.targets: {type(model).__name__}: {error}") from error
    for name, layer in adapted_layers(model):
        if not isinstance(layer, Linear):
            raise LoraError(
                f"learner.lora.targets: {name} is a {type(layer.base_layer).__name__}, which "
                "cannot be merged for the engines: name linear layers"
            )
        if layer.base_layer.weight is tied:
            raise LoraError(
                f"learner.lora.targets: {name} shares its weights with the embedding, and an "
                "adapter would separate them: leave it out"
            )
    model.darts_adapter = settings


def is_attached(model: Any) -> bool:
    """Return True if this model has adapters."""
    return hasattr(model, "darts_adapter")


@torch.no_grad()
def merged_tensors(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of the base model by name, with the adapters added in float32.

    Args:
        tensors: those of the model with its adapters; not changed.
    """
    found = {
        name.replace(".base_layer.", "."): value
        for name, value in tensors.items()
        if not _is_adapters(name)
    }
    for name, layer in adapted_layers(model):
        up, down = layer.lora_B[_NAME].weight, layer.lora_A[_NAME].weight
        delta = (up.float() @ down.float()) * layer.scaling[_NAME]
        if layer.fan_in_fan_out:  # GPT-2's layers hold their weights the other way round
            delta = delta.T
        weight = layer.base_layer.weight
        found[f"{name}.weight"] = weight.float() + delta
    return found


def adapter_product(layer: Any) -> Tensor:
    """Return scaling B A of a layer by peft's own arithmetic, in float32."""
    return layer.get_delta_weight(_NAME).float()


@torch.no_grad()
def check_merged(model: Any, merged: dict[str, Tensor]) -> None:
    """Check what `merged_tensors` returned, before it is rounded, with peft's own product.

    With D = scaling B A by peft and d = the merged weight minus the base weight: |d - D| must be
    less than half of |D|, so nearer to merged than to not merged, or below the rounding of the
    sum, eps |W|.

    Raises: LoraError with the first layer whose adapter is not in its weight.
    """
    for name, layer in adapted_layers(model):
        weight = layer.base_layer.weight.float()
        product = adapter_product(layer)
        missing = float((merged[f"{name}.weight"].float() - weight - product).norm())
        rounding = torch.finfo(torch.float32).eps * float(weight.norm())
        if not missing <= max(float(product.norm()) / 2, rounding):
            raise LoraError(
                f"{name}: the adapter is not in the weight that would be published: it differs "
                f"by {missing:.2g}, the adapter is {float(product.norm()):.2g}"
            )


class Base:
    """The model without its adapters: a frozen reference that needs no copy."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **named: Any) -> Any:
        with _without_adapters(self._model):
            return self._model(**named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@contextlib.contextmanager
def _without_adapters(model: Any) -> Generator[None]:
    layers = [layer for _, layer in adapted_layers(model)]
    for layer in layers:
        switch_adapter(layer, on=False)
    try:
        yield
    finally:
        for layer in layers:
            switch_adapter(layer, on=True)


def switch_adapter(layer: Any, *, on: bool) -> None:
    """Let a layer compute with its adapter, or without."""
    layer._disable_adapters = not on  # noqa: SLF001 - its setter freezes the adapters too


def save_adapter(model: Any, directory: Path, disk: Disk = SYSTEM) -> None:
    """Write the adapter in peft's format into a new directory."""
    disk.mkdir(directory)
    tensors = {
        _PREFIX + name.replace(f".{_NAME}.", "."): p.detach().contiguous()
        for name, p in model.named_parameters()
        if _is_adapters(name)
    }
    save_file(tensors, directory / _FILE, metadata={"format": "pt"})
    model.darts_adapter.save_pretrained(directory)
    for path in sorted(directory.iterdir()):
        make_durable(disk, path)


@torch.no_grad()
def load_adapter(model: Any, directory: Path) -> None:
    """Fill a model's adapters from a saved one. Raises LoraError if they do not match."""
    saved = load_file(directory / _FILE)
    own = {
        _PREFIX + name.replace(f".{_NAME}.", "."): p
        for name, p in model.named_parameters()
        if _is_adapters(name)
    }
    if different := sorted(saved.keys() ^ own.keys()):
        raise LoraError(
            f"{directory / _FILE}: {different[0]} is only in the file or only in the model: "
            "resume with the learner.lora that it was written with"
        )
    for name, p in own.items():
        p.copy_(saved[name])


class _Settings(msgspec.Struct, frozen=True):
    """What is used of peft's file."""

    r: int
    lora_alpha: float
    target_modules: str | list[str]


def section_of(directory: Path) -> LoraConfig:
    """Read the settings that an adapter was made with."""
    path = directory / SETTINGS
    try:
        found = untrusted_files.read_json(path, _Settings)
    except untrusted_files.UnreadableFile as error:
        raise LoraError(f"{error}; take another checkpoint") from error
    targets = found.target_modules
    return LoraConfig(
        rank=found.r,
        alpha=found.lora_alpha,
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
    )


def _is_adapters(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) of every layer with an adapter."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module
