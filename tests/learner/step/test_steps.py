"""Both kinds of step over plain torch, in one process: what is summed, divided and held.

The same over DeepSpeed and several ranks is in `tests/learner/test_exactness.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.deepspeed.engine import Zero
from learner.forward.memory import MemoryShortage
from learner.forward.micro_batches import loss_batch, micro_batches
from learner.losses.dapo import Dapo, DapoOptions
from learner.step.multi_update import MultiUpdateStep
from learner.step.passes import Passes
from learner.step.single_update import SingleUpdateStep
from learner.streaming.fixed_logprobs import member_logprobs
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import CloseStep, GroupFailed, GroupTrained, TrainGroup
from tests.learner.ranks import TEMPERATURE, group_of, make_model

CPU = torch.device("cpu")
TWO = LearnerConfig(lr=0.0, tokens_per_micro_batch=150, updates=2, old_logprobs="always")
ONE = LearnerConfig(lr=0.0, tokens_per_micro_batch=150)


class PlainRank:
    """What a step needs of `Zero`, over plain torch; `others` reports for the other ranks."""

    collective_passes = False
    device = CPU

    def __init__(
        self,
        model: Any,
        others: Sequence[dict[str, float]] = (),
        tokens: float = 0.0,
        rate: float = 0.0,
    ) -> None:
        """`tokens`: of the others, in each update; `rate`: of plain gradient descent."""
        self.engine, self._others, self._tokens, self._rate = model, others, tokens, rate
        model.zero_grad()  # the test before may have left some
        self.applied: list[tuple[torch.Tensor, float, int]] = []
        """(gradient over the normaliser, normaliser, version) of every step."""
        self.passes = 0
        self.spoil: list[int] = []
        """Numbers of passes, from 0, whose gradient is made not finite."""

    def sum_over_ranks(self, *values: float) -> list[float]:
        return [value + self._tokens for value in values]

    def gather_from_ranks(self, value: dict[str, float]) -> list[dict[str, float]]:
        return [value, *self._others]

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        if self.passes in self.spoil:
            next(self.engine.parameters()).grad.fill_(math.nan)
        self.passes += 1

    def zero_gradients(self) -> None:
        self.engine.zero_grad()

    def has_gradient(self) -> bool:
        return any(p.grad is not None for p in self.engine.parameters())

    @property
    def gradient(self) -> torch.Tensor:
        found = [p.grad for p in self.engine.parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in found]).clone()

    def gradient_is_finite(self, normaliser: float, *, fine_here: bool = True) -> bool:
        return fine_here and bool(torch.isfinite(self.gradient).all())

    def step(self, normaliser: float, updates: int) -> dict[str, float]:
        self.applied.append((self.gradient / normaliser, normaliser, updates))
        with torch.no_grad():
            for p in self.engine.parameters():
                if p.grad is not None:
                    p -= self._rate * p.grad / normaliser
        self.zero_gradients()
        return {"grad_norm": float(len(self.applied)), "lr": 0.5 * len(self.applied)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    directory: Path = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def step_of(kind: type, rank: PlainRank, section: LearnerConfig = ONE, **options: Any) -> Any:
    passes = Passes(
        cast(Zero, rank), Dapo(DapoOptions(**options)), section, temperature=TEMPERATURE
    )
    return kind(passes, section) if kind is MultiUpdateStep else kind(passes)


def close_of(groups: Sequence[TrainGroup], normaliser: float = 1.0) -> CloseStep:
    return CloseStep(step=4, groups=tuple(g.group for g in groups), normaliser=normaliser)


def sums_of(model: Any, groups: Sequence[TrainGroup]) -> dict[str, float]:
    """Sums of the loss and of its metrics over all members, one by one, and the token count."""
    total: dict[str, float] = {"tokens": 0.0, "computed": 0.0}
    for group in groups:
        for member in group.members:
            if not member.weight:
                continue
            [batch] = micro_batches([msgspec.structs.replace(group, members=(member,))], 999, CPU)
            with torch.no_grad():
                found = loss_batch(model, batch, TEMPERATURE)
                _, metrics = Dapo().loss(found)
            tokens = member.weight * len(member.response) / 4
            total["tokens"] += tokens
            total["computed"] += tokens if member.advantage else 0.0
            for name in ("loss", "mismatch"):
                heard = metrics[name] if member.advantage else 0.0
                total[name] = total.get(name, 0.0) + heard
    return total


def test_metrics_of_several_updates_are_means_over_all_ranks_each_by_its_own_count(model: Any):
    """The loss is over every trained token, the others over those that went through the model:
    a member without advantage is counted in the first only."""
    groups = [group_of(number) for number in (1, 2, 3, 5)]
    expected = sums_of(model, groups)
    assert 0 < expected["computed"] < expected["tokens"], "nobody is silent: no difference to see"
    other = {"loss": 7.0, "mismatch": 30.0, "mismatch_max": 99.0, "computed": 40.0}
    rank = PlainRank(model, [other], tokens=25.0)  # of the other rank, in each of two updates
    step = step_of(MultiUpdateStep, rank, TWO)
    for group in groups:
        assert step.add_groups([group]) == [
            GroupTrained(
                step=0,
                group=group.group,
                tokens=sum(m.weight * len(m.response) / 4 for m in group.members),
                metrics={},
            )
        ]
    found = step.close(close_of(groups), version=9)
    tokens, computed = expected["tokens"] + 50.0, expected["computed"] + 40.0
    assert found["loss"] == pytest.approx((expected["loss"] + 7.0) / tokens, rel=1e-4)
    assert found["mismatch"] == pytest.approx((expected["mismatch"] + 30.0) / computed, rel=1e-4)
    assert found["mismatch_max"] == 99.0
    assert found["computed_share"] == pytest.approx(computed / tokens)
    assert "computed" not in found
    assert (found["updates"], found["grad_norm"], found["lr"]) == (2.0, 1.5, 1.0)
    assert [version for _, _, version in rank.applied] == [9, 9]
    assert sum(normaliser for _, normaliser, _ in rank.applied) == pytest.approx(tokens)
    assert step.is_empty


def test_an_update_without_any_weight_is_left_out_and_a_step_of_none_is_skipped(model: Any):
    silent = group_of(1, weight=0.0)
    heard = group_of(2)
    rank = PlainRank(model)
    step = step_of(MultiUpdateStep, rank, TWO)
    step.add_groups([silent, heard])
    assert step.close(close_of([silent, heard]), version=0)["updates"] == 1.0
    step.add_groups([silent])
    assert step.close(close_of([silent]), version=1) is None
    assert len(rank.applied) == 1


def test_an_update_whose_gradient_is_twice_not_finite_is_left_out_of_every_mean(model: Any):
    groups = [group_of(2), group_of(3)]
    rank = PlainRank(model)
    whole = msgspec.structs.replace(TWO, tokens_per_micro_batch=9999)  # one pass an update
    step = step_of(MultiUpdateStep, rank, whole)
    step.add_groups(groups)
    rank.spoil = [0, 1]  # both tries of the first update
    found = step.close(close_of(groups), version=0)
    expected = sums_of(model, groups[1:])
    assert found["updates"] == 1.0
    assert found["loss"] == pytest.approx(expected["loss"] / expected["tokens"], rel=1e-4)
    assert found["computed_share"] == 1.0


def gradient_of(model: Any, groups: Sequence[TrainGroup]) -> torch.Tensor:
    rank = PlainRank(model)
    rank.zero_gradients()
    for batch in micro_batches(groups, 9999, CPU):
        Dapo().loss(loss_batch(model, batch, TEMPERATURE))[0].backward()
    found = rank.gradient
    rank.zero_gradients()
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_group_that_is_sent_twice_counts_once_and_one_taken_back_not_at_all(model: Any):
    groups = [group_of(number) for number in (2, 3, 4)]
    rank = PlainRank(model)
    step = step_of(SingleUpdateStep, rank)
    first, second = step.add_groups(groups[:2])
    assert (first.group, second.group) == (2, 3)
    expected = sums_of(model, groups[:2])
    assert first.metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert first.metrics["computed"] == pytest.approx(expected["computed"])
    assert second.metrics == {}, "the first report has the sums of both"
    assert step.add_groups(groups[:1]) == []
    assert not step.forget_group(3)
    assert not step.forget_group(77), "a group that it never had"
    step.add_groups(groups[2:])
    kept = [groups[0], groups[2]]
    found = step.close(close_of(kept), version=0)
    limit = float(ONE.tokens_per_micro_batch)
    assert found == {"grad_norm": 1.0, "lr": 0.5, "updates": 1.0, "micro_batch_tokens": limit}
    assert relative(rank.applied[0][0], gradient_of(model, kept)) < 1e-5
    assert step.is_empty


def test_a_close_that_names_fewer_groups_trains_on_those_alone(model: Any):
    groups = [group_of(2), group_of(3)]
    rank = PlainRank(model)
    step = step_of(SingleUpdateStep, rank)
    step.add_groups(groups)
    step.close(close_of(groups[1:], normaliser=8.0), version=0)
    [(gradient, normaliser, _)] = rank.applied
    assert normaliser == 8.0
    assert relative(gradient * 8.0, gradient_of(model, groups[1:])) < 1e-5


@pytest.mark.parametrize("kind", [SingleUpdateStep, MultiUpdateStep])
def test_a_step_is_empty_again_when_its_last_group_is_taken_back(model: Any, kind: type):
    step = step_of(kind, PlainRank(model), TWO if kind is MultiUpdateStep else ONE)
    assert step.is_empty
    step.add_groups([group_of(2), group_of(3)])
    assert not step.is_empty
    assert not step.forget_group(2)
    assert step.forget_group(3)
    assert step.is_empty


@pytest.mark.parametrize("kind", [SingleUpdateStep, MultiUpdateStep])
@pytest.mark.parametrize("field", ["advantage", "weight"])
def test_of_groups_that_came_together_only_the_one_that_is_not_finite_fails(
    model: Any, kind: type, field: str
):
    good, last = group_of(2), group_of(4)
    changes: dict[str, Any] = {field: math.nan}
    bad = group_of(3, **changes)
    rank = PlainRank(model)
    section = TWO if kind is MultiUpdateStep else ONE
    step = step_of(kind, rank, section)
    reports = step.add_groups([good, bad, last])
    assert [(type(r), r.group) for r in reports] == [
        (GroupTrained, 2),
        (GroupFailed, 3),
        (GroupTrained, 4),
    ]
    step.close(close_of([good, last]), version=0)
    whole = sum(gradient * n for gradient, n, _ in rank.applied)
    assert isinstance(whole, torch.Tensor)
    assert relative(whole, gradient_of(model, [good, last])) < 1e-5


def test_the_second_epoch_is_held_against_the_logprobs_of_before_the_first(model: Any):
    groups = [group_of(2), group_of(3)]
    section = msgspec.structs.replace(ONE, epochs=2, tokens_per_micro_batch=9999)
    moving = copy.deepcopy(model)
    rank = PlainRank(moving, rate=0.2)
    step = step_of(MultiUpdateStep, rank, section)
    batches = micro_batches(groups, 9999, CPU)
    before = member_logprobs(moving, batches, TEMPERATURE)
    step.add_groups(groups)
    found = step.close(close_of(groups), version=0)
    assert len(rank.applied) == 2
    moving.load_state_dict(model.state_dict())
    with torch.no_grad():  # to where the second epoch found it
        first, normaliser, _ = rank.applied[0]
        parts = first.split([p.numel() for p in moving.parameters()])
        for p, part in zip(moving.parameters(), parts, strict=True):
            p -= 0.2 * part.reshape(p.shape)
    after = member_logprobs(moving, batches, TEMPERATURE)
    weights = {m.trajectory: m.weight for group in groups for m in group.members}
    ratios = sum(float((after[t] - before[t]).exp().sum()) * weights[t] for t in before)
    assert abs(ratios / normaliser - 1) > 0.01, "the weights have not moved"
    assert found["ratio"] == pytest.approx((normaliser + ratios) / (2 * normaliser), rel=1e-3)


class Together(PlainRank):
    """A rank whose passes communicate, beside one that has `more` passes than it."""

    collective_passes = True
    more = 2

    def max_over_ranks(self, value: int) -> int:
        return value + self.more


def test_where_passes_communicate_a_rank_runs_as_many_as_the_busiest_and_its_own_count(model: Any):
    groups = [group_of(2), group_of(3)]
    rank = Together(model)
    step = step_of(MultiUpdateStep, rank, msgspec.structs.replace(ONE, epochs=1))
    step.add_groups(groups)
    assert rank.passes == 0, "nothing is run before the close, where all ranks are"
    step.close(close_of(groups), version=0)
    own = len(micro_batches(groups, ONE.tokens_per_micro_batch, CPU))
    assert rank.passes == own + Together.more
    [(gradient, normaliser, _)] = rank.applied
    assert relative(gradient * normaliser, gradient_of(model, groups)) < 1e-5


def test_a_step_that_closes_without_a_group_is_an_error_of_whoever_closes_it(model: Any):
    step = step_of(SingleUpdateStep, PlainRank(model))
    with pytest.raises(ValueError, match="step 4 closes without a group"):
        step.close(close_of([]), version=0)


def test_memory_that_runs_out_changes_nothing_and_where_nothing_helps_that_is_said(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    groups = [group_of(2), group_of(3)]
    rank = PlainRank(model)
    step = step_of(SingleUpdateStep, rank)
    plain, sizes, failures = rank.backward, list[int](), [1]

    def backward(loss: torch.Tensor) -> None:
        sizes.append(rank.passes)
        plain(loss)
        if rank.passes in failures:
            raise torch.OutOfMemoryError("not enough")

    monkeypatch.setattr(rank, "backward", backward)
    assert len(step.add_groups(groups)) == 2
    halved = len(micro_batches(groups, 75, CPU))
    assert len(sizes) == 1 + halved > 1 + len(micro_batches(groups, 150, CPU))
    step.close(close_of(groups), version=0)
    assert relative(rank.applied[0][0], gradient_of(model, groups)) < 1e-5
    failures[:] = range(99)
    with pytest.raises(MemoryShortage, match="a single response"):
        step.add_groups(groups)
