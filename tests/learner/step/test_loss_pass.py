"""What the learner's section adds around a loss: rejected responses, turns left out, entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward import lm_head
from learner.forward.micro_batches import loss_batch, micro_batches
from learner.losses.dapo import Dapo
from learner.losses.decoupled_ppo import DecoupledPpo
from learner.losses.reinforce import Reinforce
from learner.step.loss_pass import LossPass
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup, floats, ints
from tests.learner.ranks import TEMPERATURE, group_of, make_model
from tests.learner.step.test_aggregation import logprobs
from tests.learner.step.test_steps import CPU, PlainRank, relative


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    directory: Path = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def run(
    model: Any, given: TrainGroup, loss: Any, **settings: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Gradient and metrics of one pass over a group."""
    rank = PlainRank(model)
    made = LossPass(loss, LearnerConfig(**settings), temperature=TEMPERATURE)
    [batch] = micro_batches([given], 9999, CPU)
    value, metrics = made.forward(model, batch, {}, {})
    value.backward()
    found = rank.gradient
    rank.zero_gradients()
    return found, metrics


def with_behaviour(model: Any, given: TrainGroup, *gaps: float) -> TrainGroup:
    """Members whose every w, old over behaviour, is exp(gap)."""
    members = []
    for member, gap in zip(given.members, gaps, strict=True):
        own = logprobs(model, given.prompt, member.response).detach().numpy() - gap
        members.append(
            msgspec.structs.replace(member, behaviour=own.astype("<f4").tobytes(), weight=1.0)
        )
    return msgspec.structs.replace(given, members=tuple(members))


def test_rejected_responses_add_no_gradient_and_still_count(model: Any):
    given = with_behaviour(model, group_of(3, members=3), 0.1, np.log(20), -np.log(20))
    kept = msgspec.structs.replace(given, members=given.members[:1])
    expected, _ = run(model, kept, Dapo())
    found, metrics = run(model, given, Dapo(), reject_band=10.0)
    assert relative(found, expected) < 1e-5
    tokens = [m.sampled_tokens for m in given.members]
    assert metrics["computed"] == sum(tokens)
    assert metrics["rejected"] == sum(tokens[1:])


def test_a_response_with_one_absurd_token_is_rejected(model: Any):
    given = with_behaviour(model, group_of(3, members=2), 0.0, 0.0)
    first, second = given.members
    spoiled = floats(second.behaviour).copy()
    spoiled[-1] += 10.0  # w = 4.5e-5
    given = msgspec.structs.replace(
        given, members=(first, msgspec.structs.replace(second, behaviour=spoiled.tobytes()))
    )
    _, metrics = run(model, given, Dapo(), reject_below=1e-4)
    assert metrics["rejected"] == second.sampled_tokens
    _, metrics = run(model, given, Dapo(), reject_below=1e-5)
    assert metrics["rejected"] == 0


@pytest.mark.parametrize("parts", [False, True], ids=["at once", "output layer in parts"])
def test_the_bonus_has_the_gradient_of_the_entropy(
    model: Any, parts: bool, monkeypatch: pytest.MonkeyPatch
):
    given = group_of(4)
    rank = PlainRank(model)
    loss = torch.zeros(())
    for member in given.members:
        if not member.weight:
            continue
        prompt, response = ints(given.prompt).tolist(), ints(member.response).tolist()
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logs = (logits / TEMPERATURE).log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        own = logs.gather(-1, torch.tensor(response)[:, None])[:, 0]
        loss = loss - member.weight * (member.advantage * own + 0.3 * entropy).sum()
    loss.backward()
    expected = rank.gradient
    rank.zero_gradients()
    if parts:
        monkeypatch.setattr(lm_head, "LARGEST_LOGITS", 24 * 7)
        monkeypatch.setattr(model, "darts_output_is_last", True, raising=False)
    found, metrics = run(model, given, Reinforce(), entropy_bonus=0.3, entropy=False)
    assert relative(found, expected) < 1e-5
    assert metrics["entropy"] > 0


def test_with_a_bonus_no_member_is_silent():
    assert LossPass(Dapo(), LearnerConfig(), temperature=1.0).skips_silent
    assert not LossPass(Dapo(), LearnerConfig(entropy_bonus=0.1), temperature=1.0).skips_silent
    assert not LossPass(Dapo(), LearnerConfig(), temperature=1.0, reference=True).skips_silent


@pytest.mark.parametrize("loss, applied", [(Dapo, True), (DecoupledPpo, False)])
def test_importance_is_not_applied_to_a_loss_that_corrects_for_itself(
    model: Any, loss: type[Any], applied: bool
):
    seen: list[torch.Tensor] = []

    class Watched(loss):
        def loss(self, batch: Any):
            seen.append(batch.importance_BT)
            return super().loss(batch)

    _, metrics = run(model, group_of(3), Watched(), importance="truncate")
    assert bool((seen[0] != 1).any()) == applied
    assert ("importance" in metrics) == applied


def test_only_bad_responses_are_left_out_for_having_become_unlikely(model: Any):
    given = with_behaviour(model, group_of(3, members=3), -0.5, -0.5, 0.0)
    advantages = (1.0, -1.0, -1.0)
    members = zip(given.members, advantages, strict=True)
    given = msgspec.structs.replace(
        given, members=tuple(msgspec.structs.replace(m, advantage=a) for m, a in members)
    )
    _, metrics = run(model, given, Dapo(), reject_drift=0.3)
    assert metrics["rejected"] == given.members[1].sampled_tokens


def test_turns_that_were_sure_are_not_trained_on(model: Any):
    """Of three turns those two with the higher mean entropy are kept, as if the third were no
    token of the model's; it counts in the mean."""
    [whole] = group_of(8, members=1).members
    whole = msgspec.structs.replace(
        whole,
        response=np.arange(12, dtype="<i4").tobytes(),
        behaviour=np.full(12, -1.0, dtype="<f4").tobytes(),
        appended=((3, 2), (8, 1)),
        advantage=0.7,
        weight=1.0,
    )
    given = msgspec.structs.replace(group_of(8), members=(whole,))
    turns = [(0, 3), (5, 3), (9, 3)]
    [batch] = micro_batches([given], 9999, CPU)
    found = loss_batch(model, batch, TEMPERATURE, entropy=True)
    assert found.entropy_BT is not None
    sampled = found.mask_BT[0].nonzero().squeeze(1)
    assert len(sampled) == 9
    entropies = found.entropy_BT[0][sampled].split(3)
    sure = min(range(3), key=lambda turn: entropies[turn].mean().item())
    one_less = msgspec.structs.replace(whole, appended=(*whole.appended, turns[sure]))
    expected, _ = run(model, msgspec.structs.replace(given, members=(one_less,)), Dapo())
    gradient, metrics = run(model, given, Dapo(), turn_share=0.7)
    assert relative(gradient, expected) < 1e-5
    assert (metrics["computed"], metrics["sure_turns"]) == (9, 3)
