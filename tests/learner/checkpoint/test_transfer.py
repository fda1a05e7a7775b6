"""Parts of checkpoints between rank 0 and ranks whose machines lack the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from learner.checkpoint.save import files_needed
from learner.checkpoint.transfer import CheckpointTransfer, TransferError
from tests.learner.checkpoint.carriers import PART_BYTES, part, run_carriers

Met = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Met:
    folder = tmp_path_factory.mktemp("carried")
    return folder, run_carriers(folder)


def test_parts_of_ranks_that_are_apart_are_in_rank_0s_checkpoint_when_it_has_left_the_context(
    met: Met,
) -> None:
    folder, ranks = met
    assert [found["whole"] for found in ranks] == ["", "", ""]
    for rank in range(3):
        path = folder / "whole" / f"optimizer-rank{rank}.pt"
        assert path.stat().st_size == PART_BYTES
        assert path.read_bytes() == part(rank)
    assert not any(found["left"] for found in ranks)


@pytest.mark.fault(
    "a rank on a machine without the run's folder cannot write its part",
    part="checkpoints",
    by="process",
)
def test_a_failure_of_one_rank_is_named_and_the_next_checkpoint_is_whole(met: Met) -> None:
    """The rank itself fails; rank 0 does; rank 0's disk has no room for what came; the rank has no
    place to write to.

    Promise: the checkpoint is an error of a rank that says whose part is missing and why; nobody
    waits for bytes that do not come, and the next one is whole.
    Bound: at that checkpoint.
    """
    folder, ranks = met
    assert [found["rank2fails"] for found in ranks] == [
        "TransferError: the part of rank 2: OSError: [Errno 5] the disk is broken",
        "",
        "OSError: [Errno 5] the disk is broken",
    ]
    assert [found["rank0fails"] for found in ranks] == [
        "OSError: [Errno 5] the disk is broken",
        "",
        "",
    ]
    full = folder / "full" / "optimizer-rank1.pt"
    assert [found["full"] for found in ranks] == [
        f"TransferError: the part of rank 1: {full}: No space left on device",
        "",
        "",
    ]
    assert (folder / "full" / "optimizer-rank2.pt").read_bytes() == part(2)
    nowhere = f"NotADirectoryError: [Errno 20] Not a directory: '{folder}/own2/optimizer-rank2.pt'"
    assert [found["nowhere"] for found in ranks] == [
        f"TransferError: the part of rank 2: {nowhere}",
        "",
        nowhere,
    ]
    assert [found["again"] for found in ranks] == ["", "", ""]
    assert (folder / "again" / "optimizer-rank1.pt").read_bytes() == part(1)


def test_a_rank_that_is_apart_reads_the_model_and_its_own_optimizer_and_no_other(met: Met) -> None:
    folder, ranks = met
    for rank in (1, 2):
        assert ranks[rank]["restored"] == {
            "place": str(folder / f"own{rank}"),
            "found": {
                "model/model.safetensors": b"w".hex(),
                f"optimizer-rank{rank}.pt": f"0{rank}",
            },
        }
    assert all(found["new"] for found in ranks), "and nobody waits where nothing is restored"
    assert ranks[0]["restored"]["place"] == str(folder / "again")


@pytest.mark.parametrize("zero, file", [(0, "optimizer-rank0.pt"), (1, "optimizer-rank2.pt")])
def test_a_rank_needs_the_model_and_its_own_optimizer_at_zero_0_that_of_rank_0(
    tmp_path: Path, zero: int, file: str
) -> None:
    names = [
        "MANIFEST.json",
        "model/a.json",
        *(f"optimizer-rank{r}.pt" for r in range(3 * zero or 1)),
    ]
    (tmp_path / "model").mkdir()
    for name in names:
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files_needed(tmp_path, 2)]
    assert found == ["MANIFEST.json", "model/a.json", file]


def test_rank_0_has_to_be_beside_the_runs_folder(tmp_path: Path) -> None:
    with pytest.raises(
        TransferError, match="rank 0 must run on a machine that has the run's folder"
    ):
        CheckpointTransfer(0, [True, False], tmp_path, torch.device("cpu"))
