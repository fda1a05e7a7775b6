"""Exactness of the streamed learner against plain torch: one padded batch, one AdamW.

The reference never touches DeepSpeed, packing or accumulation. Both sides use
the same sharpened tiny model; clipping is active in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.deepspeed.lr_schedule import scheduled_lr
from learner.forward.micro_batches import micro_batches
from learner.step.mini_batches import mini_batches
from learner.streaming.fixed_logprobs import member_logprobs
from learner.weights import FILE
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup, floats, ints
from tests.learner.ranks import (
    CASES,
    RUN_STEPS,
    SECTION,
    SEVERAL,
    SEVERAL_LOSS,
    STEPS,
    TEMPERATURE,
    group_of,
    make_model,
    run_ranks,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
Results = dict[int, list[dict[str, Any]]]
LOCAL = [(zero, world) for zero, world in CASES if zero < 3]  # backward is the rank's alone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exact")
    make_model(directory / "reference", seed=4)
    return make_model(directory / "model")


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """world -> what each of its ranks wrote down."""
    out = tmp_path_factory.mktemp("ranks")
    return {world: run_ranks(model, out / f"world{world}", world) for world in (1, 2)}


@dataclass
class Padded:
    """Groups as one padded batch; `weights` is 0 where no response token is predicted."""

    tokens: torch.Tensor
    weights: torch.Tensor
    behaviour: torch.Tensor
    advantages: torch.Tensor


def padded(groups: Sequence[TrainGroup]) -> Padded:
    rows: list[tuple[Any, Any]] = [(group, m) for group in groups for m in group.members]
    sequences = [[*ints(g.prompt).tolist(), *ints(m.response).tolist()] for g, m in rows]
    longest = max(len(sequence) for sequence in sequences)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest - 1)
    behaviour = torch.zeros(len(rows), longest - 1)
    for row, ((group, member), sequence) in enumerate(zip(rows, sequences, strict=True)):
        begin = len(ints(group.prompt)) - 1
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        weights[row, begin : len(sequence) - 1] = member.weight
        behaviour[row, begin : len(sequence) - 1] = torch.tensor(floats(member.behaviour))
    return Padded(tokens, weights, behaviour, torch.tensor([[m.advantage] for _, m in rows]))


class Plain:
    """The reference: the whole batch padded to one tensor, torch's own AdamW and clipping.

    Importance weights w lie in [low, cap], or are truncated there without `low`.
    """

    def __init__(
        self,
        model: Path,
        *,
        low: float = 0.0,
        cap: float = 0.0,
        clip: tuple[float, float] = (0.2, 0.28),
        kl: float = 0.0,
        sequences: bool = False,
        section: LearnerConfig = SECTION,
    ) -> None:
        self.net = load(model)
        self.reference = load(model.parent / "reference")
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=section.lr, betas=section.betas, weight_decay=0.0
        )
        self.section = section
        self.low, self.cap, self.clip, self.kl = low, cap, clip, kl
        self.sequences = sequences  # a mean over each response, then over responses
        self.version = 0
        self.norms: list[float] = []

    def logprobs(self, net: Any, batch: Padded) -> torch.Tensor:
        logits = net(input_ids=batch.tokens).logits[:, :-1] / TEMPERATURE
        return logits.log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]

    def gradient(
        self, groups: Sequence[TrainGroup], old: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Gradient of sum(weight x loss) / sum(weight) over tokens, one padded batch."""
        batch = padded(groups)
        if self.sequences:
            batch.weights /= (batch.weights != 0).sum(1, keepdim=True).clamp(min=1)
        found = self.logprobs(self.net, batch)
        old = found.detach() if old is None else old
        ratio, importance = (found - old).exp(), torch.ones_like(old)
        if self.cap:
            importance = (old - batch.behaviour).exp()
            outside = (importance < self.low) | (importance > self.cap)
            importance = importance.masked_fill(outside, 0) if self.low else importance
            importance = importance.clamp(max=self.cap)
        clipped = ratio.clamp(1 - self.clip[0], 1 + self.clip[1])
        gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
        loss = -gain * importance
        if self.kl:
            with torch.no_grad():
                reference = self.logprobs(self.reference, batch)
            loss = loss + self.kl * ((reference - found).exp() - (reference - found) - 1)
        self.net.zero_grad()
        ((loss * batch.weights).sum() / batch.weights.sum()).backward()
        return torch.cat([p.grad.flatten() for p in self.net.parameters() if p.grad is not None])

    def step(
        self, *parts: Sequence[TrainGroup], olds: Sequence[torch.Tensor] | None = None
    ) -> None:
        """One version: an update for each part, with the old logprobs of before the first, or
        those given."""
        if olds is None:
            with torch.no_grad():
                olds = [self.logprobs(self.net, padded(groups)) for groups in parts]
        for groups, old in zip(parts, olds, strict=True):
            self.gradient(groups, old)
            for settings in self.optimizer.param_groups:
                settings["lr"] = scheduled_lr(self.section, self.version, RUN_STEPS)
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), SECTION.clip_norm)
            self.norms.append(float(norm))
            assert self.norms[-1] > SECTION.clip_norm, "the case must clip"
            self.optimizer.step()
        self.version += 1

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])

    def momentum(self) -> torch.Tensor:
        return torch.cat(
            [self.optimizer.state[p]["exp_avg"].flatten() for p in self.net.parameters()]
        )


def load(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


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


@pytest.mark.parametrize("zero,world", LOCAL)
@pytest.mark.parametrize("case", ["streamed", "together", "lazy"])
def test_streamed_gradient_equals_whole_batch_to_1e_5(
    results: Results, model: Path, case: str, zero: int, world: int
):
    expected = Plain(model).gradient(groups_of(0))
    counted = sum(m.weight * len(m.response) / 4 for g in groups_of(0) for m in g.members)
    found = summed(results[world], f"{case}{zero}") / counted
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("zero,world", LOCAL)
@pytest.mark.parametrize("case", ["streamed", "together", "lazy"])
def test_members_without_advantage_are_counted_and_not_computed(
    results: Results, case: str, zero: int, world: int
):
    found = sum(rank[f"{case}{zero}"]["computed"] for rank in results[world])
    members = [m for g in groups_of(0) for m in g.members]
    assert found == sum(m.weight * len(m.response) / 4 for m in members if m.advantage)
    assert 0 < found < sum(m.weight * len(m.response) / 4 for m in members)


@pytest.mark.parametrize("zero,world", CASES)
@pytest.mark.parametrize("case", ["streamed", "together", "lazy"])
def test_reduced_and_clipped_gradient_equals_whole_batch_to_1e_5(
    results: Results, model: Path, case: str, zero: int, world: int
):
    plain = Plain(model)
    plain.step(groups_of(0))
    expected = plain.momentum()
    for rank in results[world]:
        assert relative(rank[f"{case}{zero}"]["momentum"], expected) < 1e-5
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
    plain, off = Plain(model, cap=1.5), Plain(model)
    plain.step(groups_of(0))
    off.step(groups_of(0))
    expected = plain.momentum()
    for rank in results[world]:
        assert relative(rank[f"capped{zero}"]["momentum"], expected) < 1e-5
    assert relative(off.momentum(), expected) > 0.05


def parts_of(step: int) -> list[list[TrainGroup]]:
    """The mini-batches of `several`, each as groups."""
    found = mini_batches(STEPS[step], updates=SEVERAL["updates"], epochs=SEVERAL["epochs"], step=0)
    return [[group_of(number) for number in part] for part in found]


@pytest.fixture(scope="module")
def several(model: Path) -> Plain:
    """The reference after two batches of four updates each."""
    cap, loss = SEVERAL["importance_cap"], SEVERAL_LOSS
    clip = (loss["clip_low"], loss["clip_high"])
    plain = Plain(model, low=1 / cap, cap=cap, clip=clip, kl=loss["kl"])
    plain.step(*parts_of(0))
    plain.step(*parts_of(1))
    return plain


@pytest.mark.parametrize("zero,world", CASES)
def test_several_updates_with_masks_and_kl_equal_plain_adamw_on_every_rank(
    results: Results, after: list[torch.Tensor], several: Plain, zero: int, world: int
):
    for rank in results[world]:
        found = rank[f"several{zero}"]
        assert same_update(found["weights"], several.weights(), after[0])
    first, second = results[world][0][f"several{zero}"]["metrics"]
    assert first["grad_norm"] == pytest.approx(sum(several.norms[:4]) / 4, rel=1e-4)
    assert (first["updates"], second["updates"]) == (4, 4)
    assert 0 < first["importance_cut"] < 1
    assert 0 < first["clipped"] < 1
    assert first["ratio"] != 1
    assert first["kl"] > 0
    assert first["computed_share"] == pytest.approx(1), "the divergence is of all members"


@pytest.mark.fault("one of several updates is not finite", part="learner", by="process")
@pytest.mark.parametrize("zero,world", CASES)
def test_update_whose_loss_is_not_finite_is_left_out_and_the_others_count(
    results: Results, model: Path, after: list[torch.Tensor], zero: int, world: int
):
    """Promise: it is left out; the weights are those of the other updates.
    Bound: the same step.
    """
    plain = Plain(model, cap=2.0)
    plain.step([group_of(number) for number in STEPS[0][:2]])
    for rank in results[world]:
        assert same_update(rank[f"several{zero}"]["half"], plain.weights(), after[0])
        assert rank[f"several{zero}"]["half_updates"] == 1


@pytest.mark.parametrize("zero,world", CASES)
def test_published_file_and_probe_are_the_weights_after_the_step(
    results: Results, model: Path, after: list[torch.Tensor], zero: int, world: int
):
    found = results[world][0][f"published{zero}"]
    net = load(model)
    missing = net.load_state_dict(load_file(Path(found["directory"]) / FILE), strict=False)
    assert missing.missing_keys == ["lm_head.weight"]  # tied
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.equal(weights, found["weights"])
    assert same_update(weights, after[1], after[0])
    probe = torch.arange(2, 20)[None]
    with torch.no_grad():
        logprobs = net(input_ids=probe).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(-1, probe[0, 1:, None])[:, 0].tolist()
    for rank in results[world] if zero == 3 else results[world][:1]:
        assert rank[f"published{zero}"]["logprobs"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.fault("the loss of a group is NaN", part="learner", by="process")
@pytest.mark.parametrize("zero,world", CASES)
def test_group_with_a_nan_loss_fails_and_leaves_no_trace_in_the_gradient(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    """Promise: it is reported as failed; the weights are those of the others alone, on every rank.
    Bound: the same step.
    """
    for rank in results[world]:
        found = rank[f"spoiled{zero}"]
        assert found["reports"].count("GroupFailed 99") == 2
        assert sum("GroupTrained" in report for report in found["reports"]) == (
            5 if world == 1 else len(found["reports"]) - 2
        )
        assert same_update(found["weights"], after[1], after[0])


@pytest.mark.fault("the gradient of a step is NaN", part="learner", by="process")
@pytest.mark.parametrize("zero,world", CASES)
def test_nan_gradient_is_built_again_and_the_second_time_skipped_with_weights_bit_equal(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    """Promise: the gradient is built again; if it is NaN again the step is skipped with weights bit
    for bit as before, and the next step counts.
    Bound: two attempts.
    """
    for rank in results[world]:
        found = rank[f"poisoned{zero}"]
        assert found["applied"] == [True, False, True]
        assert same_update(found["once"], after[1], after[0])
        assert torch.equal(found["always"], found["once"])
        assert same_update(found["weights"], after[2], after[0])


@pytest.mark.fault("memory runs out in the backward pass", part="learner", by="process")
@pytest.mark.parametrize("zero,world", LOCAL)
def test_memory_that_runs_out_halves_the_micro_batches_and_changes_nothing(
    results: Results, after: list[torch.Tensor], zero: int, world: int
):
    """Promise: micro-batches are halved and the weights after the step are the same (ZeRO 0 to 2;
    the error is raised by the test).
    Bound: the same step.
    """
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
def test_member_logprobs_equal_one_unpadded_forward_each_to_1e_4(model: Path):
    net, plain = load(model), load(model)
    groups = [group_of(number) for number in (1, 2, 3)]
    batches = micro_batches(groups, 150, torch.device("cpu"))
    assert len(batches) > 1
    found = member_logprobs(net, batches, TEMPERATURE)
    trained = [(g, m) for g in groups for m in g.members if m.weight]
    assert found.keys() == {m.trajectory for _, m in trained}
    for group, member in trained:
        prompt, response = ints(group.prompt), ints(member.response)
        tokens = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        scaled = plain(input_ids=tokens).logits[0, :-1] / TEMPERATURE
        whole = scaled.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        expected = whole[len(prompt) - 1 :]
        assert float((found[member.trajectory] - expected).abs().max()) < 1e-4
