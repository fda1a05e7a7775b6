"""Exactness of the streamed learner against plain torch: one padded batch, one AdamW.

The reference never touches DeepSpeed, packing or accumulation. Both sides use
the same sharpened tiny model; clipping is active in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward import logprobs, micro_batches
from learner.zero import warmed_up
from pipeline.messages import TrainGroup, floats, ints
from tests.learner.ranks import SECTION, STEPS, TEMPERATURE, group_of, make_model, run_ranks

pytestmark = pytest.mark.timeout(480)
Results = dict[int, list[dict[str, Any]]]
CASES = [(zero, world) for world in (1, 2) for zero in (0, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("exact") / "model")


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """world -> what each of its ranks wrote down."""
    out = tmp_path_factory.mktemp("ranks")
    return {world: run_ranks(model, out / f"world{world}", world) for world in (1, 2)}


class Plain:
    """The reference: the whole batch padded to one tensor, torch's own AdamW and clipping."""

    def __init__(self, model: Path, importance_cap: float = 0.0) -> None:
        self.net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=SECTION.lr, betas=SECTION.betas, weight_decay=0.0
        )
        self.cap = importance_cap
        self.updates = 0
        self.norms: list[float] = []

    def gradient(self, groups: Sequence[TrainGroup]) -> torch.Tensor:
        """Gradient of sum(weight x loss) / sum(weight) over tokens, one padded batch."""
        rows: list[tuple[Any, Any]] = [(group, m) for group in groups for m in group.members]
        sequences = [[*ints(g.prompt).tolist(), *ints(m.response).tolist()] for g, m in rows]
        longest = max(len(sequence) for sequence in sequences)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        weights = torch.zeros(len(rows), longest - 1)
        behaviour = torch.zeros(len(rows), longest - 1)
        advantages = torch.tensor([[m.advantage] for _, m in rows])
        for row, ((group, member), sequence) in enumerate(zip(rows, sequences, strict=True)):
            begin = len(ints(group.prompt)) - 1
            tokens[row, : len(sequence)] = torch.tensor(sequence)
            weights[row, begin : len(sequence) - 1] = member.weight
            behaviour[row, begin : len(sequence) - 1] = torch.tensor(floats(member.behaviour))
        logits = self.net(input_ids=tokens).logits[:, :-1] / TEMPERATURE
        found = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        old = found.detach()
        importance = (old - behaviour).exp().clamp(max=self.cap) if self.cap else 1.0
        loss = -((found - old).exp() * advantages * importance * weights).sum() / weights.sum()
        self.net.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in self.net.parameters() if p.grad is not None])

    def step(self, groups: Sequence[TrainGroup]) -> None:
        self.gradient(groups)
        for settings in self.optimizer.param_groups:
            settings["lr"] = warmed_up(SECTION.lr, self.updates, SECTION.warmup_steps)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), SECTION.clip_norm)
        self.norms.append(float(norm))
        assert self.norms[-1] > SECTION.clip_norm, "the case must clip"
        self.optimizer.step()
        self.updates += 1

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])

    def momentum(self) -> torch.Tensor:
        return torch.cat(
            [self.optimizer.state[p]["exp_avg"].flatten() for p in self.net.parameters()]
        )


def groups_of(step: int) -> list[TrainGroup]:
    return [group_of(number) for number in STEPS[step]]


@pytest.fixture(scope="module")
def after(model: Path) -> list[torch.Tensor]:
    """Weights of the reference after each of the three steps."""
    plain = Plain(model)
    found = [plain.weights()]
    for step in range(3):
        plain.step(groups_of(step))
        found.append(plain.weights())
    return found


def summed(ranks: list[dict[str, Any]], case: str) -> torch.Tensor:
    """The accumulated gradient of all ranks, before anything divides it."""
    return torch.stack([rank[case]["gradient"] for rank in ranks]).sum(0)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def same_update(found: torch.Tensor, expected: torch.Tensor, before: torch.Tensor) -> bool:
    """Equal up to rounding, measured against how far the steps moved the weights."""
    return (
        float((found - expected).abs().max()) < 1e-5
        and float((found - expected).norm() / (expected - before).norm()) < 1e-3
    )


@pytest.mark.parametrize("zero,world", CASES)
@pytest.mark.parametrize("case", ["streamed", "together", "lazy"])
def test_streamed_gradient_equals_whole_batch_to_1e_5(
    results: Results, model: Path, case: str, zero: int, world: int
):
    expected = Plain(model).gradient(groups_of(0))
    counted = sum(m.weight * len(m.response) / 4 for g in groups_of(0) for m in g.members)
    found = summed(results[world], f"{case}{zero}") / counted
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("zero,world", CASES)
@pytest.mark.parametrize("case", ["streamed", "together", "lazy"])
def test_reduced_and_clipped_gradient_equals_whole_batch_to_1e_5(
    results: Results, model: Path, case: str, zero: int, world: int
):
    plain = Plain(model)
    plain.step(groups_of(0))
    expected = plain.momentum()
    parts = [rank[f"{case}{zero}"]["momentum"] for rank in results[world]]
    found = torch.cat(parts)[: len(expected)] if zero else parts[0]
    assert relative(found, expected) < 1e-5
    assert results[world][0][f"{case}{zero}"]["norms"][0] == pytest.approx(plain.norms[0], rel=1e-5)


@pytest.mark.parametrize("zero,world", CASES)
@pytest.mark.parametrize("case", ["streamed", "together", "lazy"])
def test_weights_after_three_steps_equal_plain_adamw_on_every_rank(
    results: Results, after: list[torch.Tensor], case: str, zero: int, world: int
):
    for rank in results[world]:
        assert same_update(rank[f"{case}{zero}"]["weights"], after[3], after[0])


@pytest.mark.parametrize("zero,world", CASES)
def test_truncated_importance_weights_the_gradient_per_token(
    results: Results, model: Path, zero: int, world: int
):
    expected = Plain(model, importance_cap=1.5).gradient(groups_of(0))
    counted = sum(m.weight * len(m.response) / 4 for g in groups_of(0) for m in g.members)
    found = summed(results[world], f"capped{zero}") / counted
    assert relative(found, expected) < 1e-5
    assert relative(Plain(model).gradient(groups_of(0)), expected) > 0.05


@pytest.mark.parametrize("zero,world", CASES)
def test_group_with_a_nan_loss_fails_and_leaves_no_trace_in_the_gradient(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    for rank in results[world]:
        found = rank[f"spoiled{zero}"]
        assert found["reports"].count("GroupFailed 99") == 2
        assert sum("GroupTrained" in report for report in found["reports"]) == (
            5 if world == 1 else len(found["reports"]) - 2
        )
        assert same_update(found["weights"], after[1], after[0])


@pytest.mark.parametrize("zero,world", CASES)
def test_nan_gradient_is_built_again_and_the_second_time_skipped_with_weights_bit_equal(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    for rank in results[world]:
        found = rank[f"poisoned{zero}"]
        assert found["applied"] == [True, False, True]
        assert same_update(found["once"], after[1], after[0])
        assert torch.equal(found["always"], found["once"])
        assert same_update(found["weights"], after[2], after[0])


@pytest.mark.parametrize("zero,world", CASES)
def test_memory_that_runs_out_halves_the_micro_batches_and_changes_nothing(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    for rank in results[world]:
        found = rank[f"starved{zero}"]
        assert found["after"] <= SECTION.tokens_per_micro_batch // 2 < found["before"]
        assert same_update(found["weights"], after[1], after[0])


@pytest.mark.parametrize("zero,world", CASES)
def test_forgotten_groups_leave_no_trace_in_the_step(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    for rank in results[world]:
        assert same_update(rank[f"forgotten{zero}"]["weights"], after[1], after[0])


@pytest.mark.parametrize("zero,world", CASES)
def test_checkpoint_in_mid_step_resumes_to_the_same_weights(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    for rank in results[world]:
        found = rank[f"resumed{zero}"]
        assert (found["step"], found["version"]) == (2, 2)
        assert torch.equal(found["again"], found["weights"])
        assert same_update(found["weights"], after[3], after[0])


@torch.no_grad()
def test_padded_logprobs_equal_one_unpadded_forward_each_to_1e_4(model: Path):
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    groups = [group_of(number, weight=1.0) for number in (1, 2, 3)]
    checked = 0
    for batch in micro_batches(groups, 400, torch.device("cpu")):
        found_BT = logprobs(net, batch.tokens_BL, batch.first, TEMPERATURE)
        for row in range(len(batch.tokens_BL)):
            columns = batch.mask_BT[row].nonzero()[:, 0]
            end = batch.first + int(columns[-1]) + 2
            tokens = batch.tokens_BL[row : row + 1, :end]
            scaled = net(input_ids=tokens).logits[0, :-1] / TEMPERATURE
            whole = scaled.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
            expected = whole[batch.first + int(columns[0]) :]
            assert float((found_BT[row, columns] - expected).abs().max()) < 1e-4
            checked += len(columns)
    assert checked == sum(len(m.response) // 4 for group in groups for m in group.members)
