"""Compares the tensors that an engine really holds with those that were published.

Reads a published file tensor by tensor, each with its checksum in the manifest, and has the
backend show where it holds it. A comparison with the file's bytes, whose checksum is right, is
one with the manifest; so tensors may be rounded, sliced or packed by an engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from engines.base import TensorCheck

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Each place where an engine holds a published tensor: (what it holds, its part of the tensor)."""
Held = Callable[[str, Tensor], Pairs]
"""Shows every place that holds a tensor, given its name and content; empty: not readable."""


def tensor_checksum(tensor: Tensor) -> str:
    """Return the xxh3_64 of a tensor's bytes, as in the manifest."""
    return xxhash.xxh3_64_hexdigest(tensor.reshape(-1).view(torch.uint8).numpy().data)


@torch.no_grad()
def compare_with_file(file: Path, checksums: Mapping[str, str], held: Held) -> TensorCheck:
    """Compare what is held with a published file.

    A tensor counts as equal if every place that holds it is readable and equal, after rounding to
    that place's type, and as different if one is not, or if the file's own tensor is not the
    manifest's (an older file under the new name).
    """
    equal: list[str] = []
    different: list[str] = []
    with safe_open(file, framework="pt") as tensors:
        there = set(tensors.keys())
        for name, checksum in sorted(checksums.items()):
            tensor = tensors.get_tensor(name) if name in there else None
            if tensor is None or tensor_checksum(tensor) != checksum:
                different.append(name)
                continue
            pairs = held(name, tensor)
            if not all(_equal(*pair) for pair in pairs):
                different.append(name)
            elif pairs:
                equal.append(name)
    return TensorCheck(tuple(equal), tuple(different))


@torch.no_grad()
def equal_to_files(files: Sequence[Path], held: Held) -> frozenset[str]:
    """Return the names of all tensors of a model's own files that are held as they are there."""
    found: set[str] = set()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        where = {name: tensors for tensors in opened for name in tensors.keys()}  # noqa: SIM118
        for name, tensors in sorted(where.items(), key=lambda item: item[0]):
            pairs = held(name, tensors.get_tensor(name))
            if pairs and all(_equal(*pair) for pair in pairs):
                found.add(name)
    return frozenset(found)


def _equal(found: Tensor, expected: Tensor) -> bool:
    expected = expected.to(found.device).to(found.dtype)
    if torch.equal(found, expected):
        return True
    if found.shape != expected.shape or not found.is_floating_point():
        return False
    # Kernels of AMX read numbers below the smallest normal one as zero.
    tiny = torch.finfo(found.dtype).tiny
    return bool(((found == expected) | ((found == 0) & (expected.abs() < tiny))).all())
