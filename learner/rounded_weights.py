"""Runs a model with its weights as the engines will get them: merged, and rounded to their type.

An engine's logprobs can only follow a change of the weights that it was given: where the learner
trains in float32 and publishes bfloat16, most of an update of 1e-6 is lost in the rounding. The
weights of one module at a time are replaced, while it computes. Invariant: the model is the same
after the context, whatever happens inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from learner import lora


def is_rounded(model: Any, dtype: torch.dtype | None) -> bool:
    """Return True if weights of this model lose digits in `dtype`; None: in a type unknown here."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return any(
        kind == torch.float32 if dtype is None else torch.finfo(kind).eps < torch.finfo(dtype).eps
        for kind in types
    )


@contextlib.contextmanager
def rounded_weights(model: Any, dtype: torch.dtype) -> Generator[None]:
    """Have every module compute with its weights rounded to `dtype`, adapters merged before.

    Arithmetic stays in the model's own type. Not for parameters in parts (ZeRO 3).
    """
    originals: dict[int, tuple[Tensor, Tensor]] = {}  # id of a parameter -> (it, its data)
    handles: list[Any] = []

    def replace(parameter: Tensor, data: Tensor) -> None:
        originals[id(parameter)] = (parameter, parameter.data)
        parameter.data = data.to(dtype).to(parameter.dtype)

    def restore(parameter: Tensor) -> None:
        if id(parameter) in originals:
            parameter.data = originals.pop(id(parameter))[1]

    def hook(module: Any, begin: Any, end: Any) -> None:
        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end, always_call=True))

    adapted = {id(layer) for _, layer in lora.adapted_layers(model)}
    inside = {id(part) for _, layer in lora.adapted_layers(model) for part in layer.modules()}

    def begin_adapted(module: Any, _: Any) -> None:
        base = module.base_layer
        replace(base.weight, base.weight.float() + lora.adapter_product(module))
        if getattr(base, "bias", None) is not None:
            replace(base.bias, base.bias.data)
        lora.switch_adapter(module, on=False)

    def end_adapted(module: Any, *_: Any) -> None:
        lora.switch_adapter(module, on=True)
        for parameter in module.base_layer.parameters():
            restore(parameter)

    def begin_plain(module: Any, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                replace(parameter, parameter.data)

    def end_plain(module: Any, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            restore(parameter)

    for module in model.modules():
        if id(module) in adapted:
            hook(module, begin_adapted, end_adapted)
        elif id(module) not in inside and next(module.parameters(recurse=False), None) is not None:
            hook(module, begin_plain, end_plain)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in originals.values():
            parameter.data = data
