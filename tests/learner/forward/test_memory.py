"""What counts as a lack of memory, and which limit of a micro-batch follows from it."""

from __future__ import annotations

import pytest
import torch

from learner.forward.memory import (
    MemoryShortage,
    MicroBatchLimit,
    ran_out_of_memory,
)
from learner.forward.micro_batches import MicroBatch, micro_batches
from tests.learner.ranks import group_of

SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
SETTING = 1000


def running(limit: MicroBatchLimit, batch: MicroBatch) -> None:
    """Bring the limit to where this micro-batch's pass runs."""
    assert next(iter(limit.watch([batch]))) is batch


def batch_of(members: int) -> MicroBatch:
    [batch] = micro_batches(
        [group_of(2, members=members, weight=1.0)], SETTING, torch.device("cpu")
    )
    return batch


@pytest.mark.parametrize(
    "error, short",
    [
        (SHORT, True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error: Exception, short: bool) -> None:
    assert ran_out_of_memory(error) == short


def test_limit_falls_below_what_failed_not_only_below_the_setting() -> None:
    limit, batch = MicroBatchLimit(SETTING), batch_of(6)
    running(limit, batch)
    limit.lower(SHORT)
    tokens = batch.packed.tokens_P.numel()
    assert limit.tokens == tokens // 2 < SETTING // 2
    smaller = micro_batches([group_of(2, members=6, weight=1.0)], limit.tokens, torch.device("cpu"))
    assert len(smaller) > 1, "the same pass would be run again"
    limit.restore()
    assert limit.tokens == SETTING


def test_single_response_cannot_be_split() -> None:
    limit, batch = MicroBatchLimit(SETTING), batch_of(1)
    running(limit, batch)
    limit.lower(SHORT)
    assert limit.tokens == batch.packed.tokens_P.numel(), "once more, with nothing larger before it"
    running(limit, batch)
    with pytest.raises(MemoryShortage, match=r"a single response .* sampling\.max_tokens") as found:
        limit.lower(SHORT)
    assert found.value.tokens == 0
    assert found.value.__cause__ is SHORT


def test_outside_of_a_pass_smaller_micro_batches_are_no_cure() -> None:
    limit = MicroBatchLimit(SETTING)
    assert len(list(limit.watch([batch_of(6)]))) == 1
    with pytest.raises(MemoryShortage, match="not in a pass over a micro-batch") as found:
        limit.lower(SHORT)
    assert found.value.tokens == 0


def test_other_errors_pass_unchanged() -> None:
    limit, error = MicroBatchLimit(SETTING), RuntimeError("shapes cannot be multiplied")
    running(limit, batch_of(6))
    with pytest.raises(RuntimeError) as found:
        limit.lower(error)
    assert found.value is error


def test_gradient_that_is_not_finite_keeps_a_limit_that_memory_has_forced() -> None:
    limit = MicroBatchLimit(SETTING)
    limit.halve_setting()
    assert limit.tokens == SETTING // 2
    running(limit, batch_of(6))
    limit.lower(SHORT)
    forced = limit.tokens
    limit.halve_setting()
    assert limit.tokens == forced


def test_a_group_that_the_loss_needs_whole_cannot_be_split_either() -> None:
    limit, batch = MicroBatchLimit(SETTING, whole_groups=True), batch_of(6)
    running(limit, batch)
    limit.lower(SHORT)
    assert limit.tokens == batch.packed.tokens_P.numel()
    running(limit, batch)
    with pytest.raises(MemoryShortage, match="a single group, which the loss needs whole"):
        limit.lower(SHORT)
