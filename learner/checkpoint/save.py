"""Saves and restores a learner's part of a checkpoint: model and optimizer.

    DIRECTORY/model/                 Hugging Face format, with tokenizer (rank 0), or
    DIRECTORY/adapter/               with LoRA: peft's format, without the base model (rank 0)
    DIRECTORY/optimizer-rankR.pt     optimizer and random state (ZeRO 0: rank 0 only)
    DIRECTORY/loss-rankR.msgpack     state of the loss, if it has any
    DIRECTORY/average.pt             moving average of the weights, if one is kept (rank 0)

Every file is fsynced here; the stage syncs the directories and commits by renaming
DIRECTORY. Gradients are not saved: their groups count as not trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from learner import lora
from learner.deepspeed.engine import Zero, ZeroError
from learner.moving_average import MovingAverage
from pipeline.system.durable_files import SYSTEM, Disk, make_durable, write_durably

MODEL = "model"
AVERAGE = "average.pt"
_SKIPPED = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".gguf", ".index.json")


class Restored(msgspec.Struct, frozen=True):
    """The step and version of a checkpoint."""

    step: int
    version: int


def optimizer_file(directory: Path, rank: int) -> Path:
    return directory / f"optimizer-rank{rank}.pt"


def loss_file(directory: Path, rank: int) -> Path:
    return directory / f"loss-rank{rank}.msgpack"


def save_checkpoint(
    zero: Zero,
    source: Path,
    directory: Path,
    step: int,
    version: int,
    disk: Disk = SYSTEM,
    *,
    loss: bytes = b"",
    average: MovingAverage | None = None,
) -> None:
    """Write this rank's part.

    Args:
        source: the model directory with the tokenizer.
        loss: state of the loss; empty: it has none.
        average: the same on every rank.
    """
    with zero.gathered_weights():  # first: all take part, even if rank 0 cannot write
        if zero.rank == 0:
            if lora.is_attached(zero.module):
                lora.save_adapter(zero.module, directory / lora.ADAPTER, disk)
            else:
                save_model(zero.module, source, directory / MODEL, disk)
    if zero.owns_state():
        state: dict[str, Any] = {
            "step": step,
            "version": version,
            "random": torch.get_rng_state(),
            "state": zero.optimizer_state(),
        }
        save_tensors(state, optimizer_file(directory, zero.rank), disk)
    if average is not None and zero.rank == 0:
        save_tensors(average.state(), directory / AVERAGE, disk)
    if loss:
        write_durably(disk, loss_file(directory, zero.rank), loss)


def save_tensors(state: dict[str, Any], path: Path, disk: Disk = SYSTEM) -> None:
    """Write tensors and plain values, which `torch.load` accepts with `weights_only`."""
    with disk.create(path) as file:
        torch.save(state, file)
    make_durable(disk, path)


def save_model(model: Any, source: Path, directory: Path, disk: Disk = SYSTEM) -> None:
    """Write the model in Hugging Face format, with the other files of `source`."""
    disk.mkdir(directory)
    for path in companions(source):
        shutil.copyfile(path, directory / path.name)
    model.save_pretrained(directory, max_shard_size="1000GB")
    for path in sorted(directory.iterdir()):
        make_durable(disk, path)


def load_checkpoint(zero: Zero, directory: Path) -> Restored:
    """Restore optimizer and random state; the model is already loaded from DIRECTORY/model."""
    path = optimizer_file(directory, zero.rank if zero.owns_state() else 0)
    if not path.is_file():
        raise ZeroError(
            f"{path} is missing: the checkpoint was written by fewer ranks or at another ZeRO "
            "stage; resume with the same learner.ranks and learner.zero"
        )
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    zero.restore_state(state["state"])
    torch.set_rng_state(state["random"])
    return Restored(state["step"], state["version"])


def load_average(directory: Path) -> dict[str, Any]:
    """Return the state of the moving average in a checkpoint. Raises ZeroError if it has none."""
    path = directory / AVERAGE
    if not path.is_file():
        raise ZeroError(
            f"{path} is missing: the run that wrote the checkpoint had no learner.reference: "
            "average; resume without it"
        )
    return torch.load(path, weights_only=True, map_location="cpu")


def load_loss_state(directory: Path, rank: int) -> bytes:
    """Return what this rank's loss left in a checkpoint, or rank 0's if that had fewer ranks; empty
    if there is nothing."""
    found = [path for r in (rank, 0) if (path := loss_file(directory, r)).is_file()]
    return found[0].read_bytes() if found else b""


_OWN_FILES = ((optimizer_file, "optimizer-rank*.pt"), (loss_file, "loss-rank*.msgpack"))


def files_needed(directory: Path, rank: int) -> list[Path]:
    """List the files of a checkpoint that a rank reads: all but those of other ranks alone."""
    others: set[Path] = set()
    for file_of, pattern in _OWN_FILES:
        own = file_of(directory, rank)
        own = own if own.is_file() else file_of(directory, 0)  # ZeRO 0, or fewer ranks
        others |= set(directory.glob(pattern)) - {own}
    return sorted(path for path in directory.rglob("*") if path.is_file() and path not in others)


def companions(model: Path) -> Iterator[Path]:
    """Yield the files of a model that are not weights: tokenizer, generation settings, licence."""
    for path in sorted(model.iterdir()):
        if path.is_file() and not path.name.endswith(_SKIPPED):
            yield path
