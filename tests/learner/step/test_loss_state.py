"""What a loss remembers, and its say in the learning rate: kept as of the last applied step."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.checkpoint import save
from learner.deepspeed.engine import Zero
from learner.losses import LossBatch
from learner.losses.dapo import Dapo
from learner.losses.vcpo import Vcpo
from learner.step.loss_state import LossState, LossStateError
from learner.step.multi_update import MultiUpdateStep
from learner.step.passes import Passes
from learner.step.single_update import SingleUpdateStep
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import CloseStep, TrainGroup
from tests.learner.ranks import TEMPERATURE, group_of, make_model
from tests.learner.step.test_steps import PlainRank

SECTION = LearnerConfig(tokens_per_micro_batch=60)


class Counting(Dapo):
    """Remembers how many tokens it has seen, by groups; scales each step by what it was told."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.silent_without_advantage = False
        self.seen: dict[str, float] = {}
        self.scale = scale
        self.asked: list[dict[str, float]] = []

    def loss(self, batch: LossBatch):
        for group, tokens in zip(batch.group_B.tolist(), batch.lengths_B.tolist(), strict=True):
            self.seen[str(group)] = self.seen.get(str(group), 0.0) + tokens
        value, metrics = super().loss(batch)
        return value, {**metrics, "_rows": float(len(batch.group_B)), "_most_max": 1.0}

    def step_scale(self, sums: dict[str, float]) -> float:
        self.asked.append(sums)
        return self.scale

    def state(self) -> dict[str, float]:
        return self.seen

    def restore(self, state: dict[str, float]) -> None:
        self.seen = dict(state)


class ScaledRank(PlainRank):
    """Notes what each step's rate was multiplied by."""

    def __init__(self, model: Any, *others: dict[str, float]) -> None:
        super().__init__(model, others)
        self.scales: list[float] = []

    def step(self, normaliser: float, updates: int, rate_scale: float = 1.0) -> dict[str, float]:
        self.scales.append(rate_scale)
        return super().step(normaliser, updates)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    directory: Path = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def passes_of(rank: PlainRank, loss: Any, section: LearnerConfig = SECTION) -> Passes:
    return Passes(cast(Zero, rank), loss, section, temperature=TEMPERATURE)


def close_of(*groups: TrainGroup) -> CloseStep:
    return CloseStep(step=0, groups=tuple(g.group for g in groups), normaliser=10.0)


def tokens_of(*groups: TrainGroup) -> dict[str, float]:
    return {
        str(g.group): float(sum(m.sampled_tokens for m in g.members if m.weight)) for g in groups
    }


def test_a_group_that_is_taken_back_leaves_nothing_in_the_state(model: Any):
    kept, gone = group_of(2), group_of(3)
    loss = Counting()
    step = SingleUpdateStep(passes_of(ScaledRank(model), loss))
    step.add_groups([kept])
    step.add_groups([gone])
    assert loss.seen == tokens_of(kept, gone)
    step.forget_group(gone.group)
    step.close(close_of(kept), 0)
    assert loss.seen == tokens_of(kept)


def test_a_gradient_that_is_built_twice_counts_once(model: Any):
    group = group_of(2)
    rank, loss = ScaledRank(model), Counting()
    rank.spoil = [0]
    step = SingleUpdateStep(
        passes_of(rank, loss, msgspec.structs.replace(SECTION, tokens_per_micro_batch=999))
    )
    step.add_groups([group])
    step.close(close_of(group), 0)
    assert len(rank.applied) == 1
    assert loss.seen == tokens_of(group)


def test_a_step_that_is_not_applied_leaves_the_state_as_it_was(model: Any):
    first, second = group_of(2), group_of(3)
    rank, loss = ScaledRank(model), Counting()
    step = SingleUpdateStep(passes_of(rank, loss))
    step.add_groups([first])
    step.close(close_of(first), 0)
    rank.spoil = list(range(99))
    step.add_groups([second])
    assert step.close(close_of(second), 1) is None
    assert loss.seen == tokens_of(first)
    assert len(loss.asked) == 1


def test_a_checkpoint_in_the_middle_of_a_step_holds_the_state_of_before_it(model: Any):
    """Its gradients are not saved, so its groups are trained on again after a resume."""
    first, second = group_of(2), group_of(3)
    loss = Counting()
    passes = passes_of(ScaledRank(model), loss)
    step = SingleUpdateStep(passes)
    step.add_groups([first])
    step.close(close_of(first), 0)
    step.add_groups([second])
    again = Counting()
    LossState(again).restore(passes.loss_pass.state.saved())
    assert again.seen == tokens_of(first)


def test_each_of_several_updates_is_kept(model: Any):
    groups = [group_of(2), group_of(3)]
    rank, loss = ScaledRank(model), Counting(0.5)
    section = msgspec.structs.replace(SECTION, updates=2)
    passes = passes_of(rank, loss, section)
    step = MultiUpdateStep(passes, section)
    step.add_groups(groups)
    found = step.close(close_of(*groups), 0)
    assert found is not None
    assert found["lr_scale"] == 0.5
    assert rank.scales == [0.5, 0.5]
    rows = [sum(1 for m in group.members if m.weight) for group in groups]
    assert [asked["_rows"] for asked in loss.asked] == rows
    again = Counting()
    LossState(again).restore(passes.loss_pass.state.saved())
    assert again.seen == tokens_of(*groups)


def test_the_scale_is_asked_with_sums_over_all_ranks_and_groups_and_these_are_not_reported(
    model: Any,
):
    groups = [group_of(2), group_of(3)]
    other = {"_rows": 5.0, "_most_max": 3.0, "loss": 1.0}
    rank, loss = ScaledRank(model, other), Counting(0.25)
    step = SingleUpdateStep(passes_of(rank, loss))
    reports: list[Any] = [report for group in groups for report in step.add_groups([group])]
    assert not any(name.startswith("_") for report in reports for name in report.metrics)
    found = step.close(close_of(*groups), 0)
    assert found is not None
    assert (found["lr_scale"], rank.scales) == (0.25, [0.25])
    [sums] = loss.asked
    assert sums["_rows"] == 5 + sum(1 for g in groups for m in g.members if m.weight)
    assert sums["_most_max"] == 3
    assert sums["loss"] == pytest.approx(1 + sum(report.metrics["loss"] for report in reports))
    step.add_groups(groups[:1])
    step.close(close_of(*groups[:1]), 1)
    assert loss.asked[1]["_rows"] == 5 + sum(1 for m in groups[0].members if m.weight)


@pytest.mark.parametrize("scale", [float("nan"), -1.0, float("inf")])
def test_a_scale_that_is_no_factor_is_an_error_that_names_the_loss(model: Any, scale: float):
    group = group_of(2)
    step = SingleUpdateStep(passes_of(ScaledRank(model), Counting(scale)))
    step.add_groups([group])
    with pytest.raises(ValueError, match="loss Counting: step_scale returned"):
        step.close(close_of(group), 0)


def test_vcpo_lowers_the_rate_of_a_step_whose_weights_are_uneven(model: Any):
    groups = [group_of(2), group_of(3)]
    rank, loss = ScaledRank(model), Vcpo()
    step = SingleUpdateStep(passes_of(rank, loss))
    for group in groups:
        step.add_groups([group])
    step.close(close_of(*groups), 0)
    [scale] = rank.scales
    assert 0 < scale < 1


def test_a_loss_without_a_say_is_stepped_at_the_plain_rate(model: Any):
    group, rank = group_of(2), ScaledRank(model)
    step = SingleUpdateStep(passes_of(rank, Dapo()))
    step.add_groups([group])
    found = step.close(close_of(group), 0)
    assert found is not None
    assert rank.scales == [1.0]
    assert "lr_scale" not in found


# --- the file ---------------------------------------------------------------------------------


def rank_of(number: int) -> Any:
    """A rank that writes neither weights nor an optimizer."""
    return SimpleNamespace(
        rank=number, gathered_weights=contextlib.nullcontext, owns_state=lambda: False
    )


def test_every_rank_writes_and_reads_the_state_of_its_own_loss(tmp_path: Path):
    for number in (1, 2):
        loss = Counting()
        loss.seen = {"7": float(number)}
        save.save_checkpoint(
            rank_of(number), tmp_path, tmp_path, 3, 3, loss=LossState(loss).saved()
        )
    for number in (1, 2):
        again = Counting()
        LossState(again).restore(save.load_loss_state(tmp_path, number))
        assert again.seen == {"7": float(number)}
    assert save.load_loss_state(tmp_path, 3) == b"", "neither its own nor rank 0's"
    (tmp_path / "loss-rank0.msgpack").write_bytes(b"of rank 0")
    assert save.load_loss_state(tmp_path, 3) == b"of rank 0", "there are more ranks now"
    needed = {path.name for path in save.files_needed(tmp_path, 2)}
    assert needed == {"loss-rank2.msgpack"}


def test_a_loss_without_a_state_writes_nothing(tmp_path: Path):
    save.save_checkpoint(rank_of(1), tmp_path, tmp_path, 3, 3, loss=LossState(Dapo()).saved())
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_saved_is_refused_at_the_start():
    loss = Counting()
    loss.seen = cast(Any, {"weights": torch.zeros(2)})
    with pytest.raises(LossStateError, match=r"test_loss_state\.Counting: what state\(\) returns"):
        LossState(loss)


def test_the_state_of_another_loss_is_refused():
    class Other(Counting):
        pass

    saved = LossState(Counting()).saved()
    with pytest.raises(LossStateError, match=r"Counting, not of .*Other"):
        LossState(Other()).restore(saved)
