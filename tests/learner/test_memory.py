"""Ranks that run out of memory, at ZeRO 0 to 3: what they train, or how they give up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.learner.memory_ranks import FITS, TOO_SMALL
from tests.learner.ranks import SECTION, make_model, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks wrote down."""
    directory = tmp_path_factory.mktemp("memory")
    make_model(directory / "reference", seed=4)
    model = make_model(directory / "model")
    return run_ranks(model, directory / "out", 2, "tests.learner.memory_ranks")


@pytest.mark.fault(
    "memory for a third of a micro-batch, at ZeRO 0 to 2", part="learner", by="process"
)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("zero", [0, 2])
def test_micro_batches_are_made_smaller_until_they_fit(
    results: list[dict[str, Any]], zero: int, where: str
) -> None:
    """Promise: the limit is lowered more than once if need be, for that step; both steps are
    applied, and the weights are those of ranks with plenty of memory.
    Bound: the same step.
    """
    for rank in results:
        found = rank[f"{where}{zero}"]
        too_large = [size for size in found["sizes"] if size > FITS]
        assert len(too_large) >= 2, "the case must run out of memory more than once"
        assert max(found["sizes"]) > SECTION.tokens_per_micro_batch // 2
        assert torch.allclose(found["weights"], rank[f"plenty{zero}"], atol=2e-5)
    limits = [rank[f"{where}{zero}"]["limits"] for rank in results]
    assert min(limits[0] + limits[1]) < SECTION.tokens_per_micro_batch // 2


@pytest.mark.fault("a single response does not fit into memory", part="learner", by="process")
@pytest.mark.parametrize("zero", [0, 3])
def test_a_response_that_does_not_fit_ends_the_rank_with_what_to_change(
    results: list[dict[str, Any]], zero: int
) -> None:
    """Promise: the rank ends with the size of the response and the settings that help; nothing is
    started again to fail again.
    Bound: as soon as the micro-batch that fails has one response.
    """
    for rank in results:
        found = rank[f"floor{zero}"]
        assert found["tokens"] == 0
        assert found["sizes"][-1] > TOO_SMALL
        for words in (
            f"a single response ({found['sizes'][-1]} tokens with its prompt)",
            "learner.tokens_per_micro_batch",
            "sampling.max_tokens",
            "learner.gradient_checkpointing",
        ):
            assert words in found["why"]


def test_at_zero_3_a_rank_asks_for_a_restart_with_half_of_what_failed(
    results: list[dict[str, Any]],
) -> None:
    for name in ("together", "old"):
        for rank in results:
            found = rank[name]
            assert found["tokens"] == found["sizes"][-1] // 2
            assert "in a pass of all ranks" in found["why"]


def test_at_zero_3_the_reference_model_is_run_again_without_a_restart(
    results: list[dict[str, Any]],
) -> None:
    sizes = results[0]["reference"]["sizes"]
    assert sizes[0] > FITS >= sizes[-1]
    for rank in results:
        found = rank["reference"]
        assert torch.allclose(found["weights"], found["plain"], atol=2e-5)
