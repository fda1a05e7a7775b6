"""Assigns GPUs to engines: those after the learner ranks', in order.

Learner rank r of a machine takes GPU r. On a machine with too few, counting starts again at the
first: a single GPU is shared by all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_DEVICE = re.compile(r"nvidia\d+")


def machine_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Returns the names of the GPUs that this process may use, as CUDA takes them."""
    if _VISIBLE in environment:
        return [name for name in environment[_VISIBLE].split(",") if name]
    found = sum(_DEVICE.fullmatch(path.name) is not None for path in devices.iterdir())
    return [str(number) for number in range(found)]


def engine_gpus(gpus: Sequence[str], learners: int, number: int, each: int) -> dict[str, str]:
    """Returns an engine's environment variables; {} on a machine without GPUs.

    Args:
        gpus: of the machine.
        learners: learner ranks on the machine.
        number: of the engine among those of the machine, from 0.
        each: GPUs of one engine (`engine.tensor_parallel`).

    >>> engine_gpus(["0", "1", "2", "3"], learners=1, number=1, each=1)
    {'CUDA_VISIBLE_DEVICES': '2'}
    >>> engine_gpus(["0", "1", "2", "3"], learners=0, number=1, each=2)
    {'CUDA_VISIBLE_DEVICES': '2,3'}
    >>> engine_gpus(["0"], learners=1, number=0, each=1)
    {'CUDA_VISIBLE_DEVICES': '0'}
    """
    if not gpus:
        return {}
    first = learners + number * each
    chosen = [gpus[place % len(gpus)] for place in range(first, first + each)]
    return {_VISIBLE: ",".join(dict.fromkeys(chosen))}
