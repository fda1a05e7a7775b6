"""The loss of members that were not sampled for their group, against plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward.micro_batches import micro_batches
from learner.losses.dapo import Dapo
from learner.losses.gspo import Gspo
from learner.losses.minpro import Minpro
from learner.losses.reinforce import Reinforce
from learner.step.importance_weights import shaped_weights
from learner.step.loss_pass import LossPass
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup, TrainMember
from tests.learner.ranks import TEMPERATURE, group_of, make_model
from tests.learner.step.test_aggregation import logprobs
from tests.learner.step.test_steps import CPU, PlainRank, relative


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    directory: Path = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def with_solution(model: Any) -> TrainGroup:
    """Two members as sampled now, and one that no engine has sampled."""
    given = group_of(3, members=3)
    members: list[TrainMember] = []
    for place, member in enumerate(given.members):
        own = logprobs(model, given.prompt, member.response).detach().numpy().astype("<f4")
        members.append(
            msgspec.structs.replace(
                member,
                weight=1.0,
                advantage=(-0.5, -0.25, 0.75)[place],
                behaviour=b"" if place == 2 else own.tobytes(),
                foreign=place == 2,
            )
        )
    return msgspec.structs.replace(given, members=tuple(members))


def run(
    model: Any, given: TrainGroup, loss: Any, old: float | None = None, **settings: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Gradient and metrics; `old`: what the logprobs that the step began with are higher by."""
    rank = PlainRank(model)
    made = LossPass(loss, LearnerConfig(**settings), temperature=TEMPERATURE)
    [batch] = micro_batches([given], 9999, CPU)
    known = {}
    if old is not None:
        known = {
            m.trajectory: logprobs(model, given.prompt, m.response).detach() + old
            for m in given.members
        }
    value, metrics = made.forward(model, batch, known, {})
    value.backward()
    found = rank.gradient
    rank.zero_gradients()
    return found, metrics


def plain(model: Any, given: TrainGroup, weigh: Any) -> torch.Tensor:
    """Gradient of -sum of A times logprob, or times what `weigh` makes of a foreign one's."""
    rank, loss = PlainRank(model), torch.zeros(())
    for member in given.members:
        own = logprobs(model, given.prompt, member.response)
        loss = loss - member.advantage * (weigh(own) if member.foreign else own).sum()
    loss.backward()
    found = rank.gradient
    rank.zero_gradients()
    return found


@pytest.mark.parametrize("loss", [Dapo(), Reinforce(), Gspo(), Minpro()], ids=type)
def test_what_nobody_sampled_has_weight_1_with_every_loss(model: Any, loss: Any):
    given = with_solution(model)
    settings: dict[str, Any] = {"importance": "truncate", "reject_band": 10.0}
    settings = {} if isinstance(loss, Minpro) else settings
    found, metrics = run(model, given, loss, **settings)
    assert relative(found, plain(model, given, lambda own: own)) < 1e-5
    tokens = [m.sampled_tokens for m in given.members]
    assert metrics["computed"] == sum(tokens)
    assert metrics["foreign"] == tokens[2]
    assert metrics["mismatch"] < 1e-4
    if settings:
        assert abs(metrics["importance"] - sum(tokens[:2])) < 1e-3
        assert metrics["rejected"] == 0


def test_its_ratio_is_not_clipped_though_the_weights_have_moved_since_the_step_began(model: Any):
    given = with_solution(model)
    own = msgspec.structs.replace(given, members=given.members[2:])
    found, metrics = run(model, own, Dapo(), old=-1.0)
    assert relative(found, plain(model, own, lambda logprob: logprob)) < 1e-5
    assert metrics["clipped"] == 0
    sampled = msgspec.structs.replace(given, members=given.members[:2])
    assert run(model, sampled, Dapo(), old=1.0)[1]["clipped"] > 0, "others are clipped as ever"


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_policy_shaping_is_the_gradient_of_p_over_p_plus_gamma(model: Any, gamma: float):
    """LUFFY, equation of f; those sampled by the policy are as before."""
    given = with_solution(model)
    expected = plain(model, given, lambda own: own.exp() / (own.exp() + gamma))
    found, _ = run(model, given, Dapo(), policy_shaping=gamma)
    assert relative(found, expected) < 1e-5


def test_shaped_weights_are_largest_at_gamma_and_one_without():
    logprobs_BT = torch.tensor([[0.1, 1.0, 0.001]]).log()
    weights = shaped_weights(logprobs_BT, 0.1)[0]
    assert torch.allclose(weights, torch.tensor([0.25, 0.1 / 1.21, 0.0001 / 0.101**2]), atol=1e-5)
    assert shaped_weights(logprobs_BT, 0.0).tolist() == [[1.0, 1.0, 1.0]]


def test_a_stored_success_has_the_ratio_of_policy_over_behaviour_clipped_as_ever(model: Any):
    given = with_solution(model)
    known = logprobs(model, given.prompt, given.members[2].response).detach().numpy()
    behaviour = (known - np.log(1.1)).astype("<f4").tobytes()
    stored = msgspec.structs.replace(given.members[2], behaviour=behaviour, old=behaviour)
    group = msgspec.structs.replace(given, members=(*given.members[:2], stored))
    found, metrics = run(model, group, Dapo(), importance="truncate")
    assert relative(found, plain(model, group, lambda own: 1.1 * own)) < 1e-5
    assert metrics["mismatch"] < 1e-4, "nothing of it is in the mismatch of engine and learner"
    beyond = (known - np.log(1.5)).astype("<f4").tobytes()
    stored = msgspec.structs.replace(stored, behaviour=beyond, old=beyond)
    group = msgspec.structs.replace(group, members=(stored,))
    assert run(model, group, Dapo())[1]["clipped"] == stored.sampled_tokens


def test_without_logprobs_a_sampled_member_is_refused(model: Any):
    given = with_solution(model)
    sampled = msgspec.structs.replace(given.members[2], foreign=False)
    with pytest.raises(ValueError, match="0 behaviour logprobs"):
        micro_batches([msgspec.structs.replace(given, members=(sampled,))], 9999, CPU)
