"""Three ranks, two of them apart, carry parts of checkpoints:

    python -m tests.learner.checkpoint.carriers DIR

RANK is set. All ranks enter each situation in turn; DIR/rankR.json says what each met.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.system.durable_files import System
from tests.paths import ROOT

WORLD = 3
PART_BYTES = 9_000_000
"""Two whole pieces and a part of one."""


def part(rank: int) -> bytes:
    """What a rank has to say in a checkpoint: no two alike."""
    return bytes([rank]) * PART_BYTES


class FullForOne(System):
    """A disk without room for the part of rank 1."""

    full = False

    def create(self, path: Path) -> BinaryIO:
        if self.full and path.name == "optimizer-rank1.pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return super().create(path)


def run_carriers(folder: Path) -> list[dict[str, Any]]:
    """What each rank met, by situation."""
    for rank in range(1, WORLD):  # of a process that was killed
        (folder / f"own{rank}").mkdir()
        (folder / f"own{rank}" / "left").write_bytes(b"of an earlier life")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(WORLD)
    ]
    try:
        assert [process.wait(timeout=240) for process in ranks] == [0] * WORLD
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]


def main() -> None:
    import torch
    import torch.distributed

    from learner.checkpoint.transfer import make_transfer
    from pipeline.system import durable_files

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    full = FullForOne()
    own = folder / f"own{rank}" if rank else None
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    carrier = make_transfer(own, torch.device("cpu"), full)
    met: dict[str, Any] = {}

    def saves(situation: str, failing: int = -1) -> None:
        checkpoint = folder / situation
        if rank == 0:
            checkpoint.mkdir()
        try:
            with carrier.directory_to_write(checkpoint) as place:
                if rank == failing:
                    raise OSError(errno.EIO, "the disk is broken")
                if rank == 0:
                    (place / "model").mkdir()
                    durable_files.write_durably(
                        full, place / "model" / "model.safetensors", b"weights"
                    )
                durable_files.write_durably(full, place / f"optimizer-rank{rank}.pt", part(rank))
            met[situation] = ""
        except Exception as error:
            met[situation] = f"{type(error).__name__}: {error}"

    def needed(checkpoint: Path, rank: int) -> list[Path]:
        return [checkpoint / f"optimizer-rank{rank}.pt", checkpoint / "model" / "model.safetensors"]

    def restores(situation: str, checkpoint: Path) -> None:
        with carrier.checkpoint_to_read(checkpoint, needed) as place:
            assert place is not None
            found = {
                path.relative_to(place).as_posix(): path.read_bytes()[:1].hex()
                for path in place.rglob("*")
                if path.is_file()
            }
            met[situation] = {"place": str(place), "found": found}

    saves("whole")
    saves("rank2fails", failing=2)
    saves("rank0fails", failing=0)
    full.full = rank == 0
    saves("full")
    full.full = False
    if own is not None and rank == 2:
        own.write_bytes(b"where the directory would be")
    saves("nowhere")
    if own is not None and rank == 2:
        own.unlink()
    saves("again")
    restores("restored", folder / "again")
    with carrier.checkpoint_to_read(None, needed) as nothing:
        met["new"] = nothing is None
    met["left"] = own is not None and own.exists()
    (folder / f"rank{rank}.json").write_text(json.dumps(met))


if __name__ == "__main__":
    main()
