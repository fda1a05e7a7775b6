"""The decoupled objective by a worked number: staleness clipped, engine mismatch truncated, apart.

Source: decoupled PPO objective, AReaL, arXiv 2505.24298.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learner.losses.dapo import Dapo, DapoOptions
from learner.step.passes import Passes
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup, TrainMember

A, B, C, D, REST = range(5)
NEW = {A: 0.30, B: 0.60, C: 0.25, D: 0.30}
"""Probability of the response's tokens under the weights that are trained."""


def bigram() -> Any:
    """A model without layers: the next token depends on the last one alone, as `NEW` says."""
    size = 6
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=size,
        num_hidden_layers=0,
        num_attention_heads=1,
        tie_word_embeddings=False,
        rms_norm_eps=1e-12,
    )
    net: Any = LlamaForCausalLM(config)
    table = torch.full((size, size), 1e-9)
    for last, token in ((REST, A), (A, B), (B, C), (C, D)):
        table[last, token], table[last, REST] = NEW[token], 1 - NEW[token]
    with torch.no_grad():
        net.model.embed_tokens.weight.copy_(torch.eye(size))
        net.lm_head.weight.copy_(table.log().T / size**0.5)  # the norm scales a row to sqrt(size)
    return net.eval()


def loss_of(member: TrainMember, **settings: Any) -> dict[str, float]:
    """Metrics of a forward and backward of this one response."""
    section = LearnerConfig(max_staleness=1, **settings)
    zero: Any = SimpleNamespace(
        engine=bigram(),
        device=torch.device("cpu"),
        collective_passes=False,
        backward=lambda loss: loss.backward(),
    )
    passes = Passes(zero, Dapo(DapoOptions(clip_low=0.2, clip_high=0.28)), section, temperature=1.0)
    prompt = np.array([REST], "<i4").tobytes()
    group = TrainGroup(step=0, group=0, prompt=prompt, members=(member,))
    return passes.forward_backward([group])


def logs(*probabilities: float) -> bytes:
    return np.log(np.array(probabilities)).astype("<f4").tobytes()


MEMBER = TrainMember(
    trajectory=0,
    response=np.array([A, B, C, D], "<i4").tobytes(),
    behaviour=logs(0.20, 0.10, 0.50, 0.20),
    reward=1.0,
    advantage=2.0,
    old=logs(0.25, 0.40, 0.50, float("nan")),
)
"""Two stale tokens with old logprobs; a stale one without, so its behaviour's; a present one."""


def test_the_worked_number_of_the_documents():
    """Advantage 2, clip at 1.28, cap 2:

    token  behaviour   old   new   new/old      old/behaviour   gain
    A      .20         .25   .30   1.2          1.25            2 * 1.2  * 1.25 = 3.00
    B      .10         .40   .60   1.5 -> 1.28  4 -> 2          2 * 1.28 * 2    = 5.12
    C      .50         .50   .25   0.5          1 (missing)     2 * 0.5         = 1.00
    D      .20         .30   .30   1 (present)  1.5             2 * 1    * 1.5  = 3.00
    """
    metrics = loss_of(MEMBER)
    assert metrics["loss"] == pytest.approx(-(3.00 + 5.12 + 1.00 + 3.00), rel=1e-5)
    assert metrics["clipped"] == 1
    assert metrics["importance_cut"] == 1
    assert metrics["ratio"] == pytest.approx(1.2 + 1.5 + 0.5 + 1)
    assert metrics["importance"] == pytest.approx(1.25 + 2 + 1 + 1.5)


def test_without_importance_only_the_ratio_corrects():
    metrics = loss_of(MEMBER, importance="off")
    assert metrics["loss"] == pytest.approx(-2 * (1.2 + 1.28 + 0.5 + 1), rel=1e-5)
    assert "importance" not in metrics


def test_tokens_of_the_present_version_alone_keep_the_ratio_at_one():
    """Without old logprobs the weight of new over behaviour is all that is left."""
    metrics = loss_of(msgspec.structs.replace(MEMBER, old=b""))
    assert metrics["loss"] == pytest.approx(-2 * (1.5 + 2 + 0.5 + 1.5), rel=1e-5)
    assert metrics["ratio"] == pytest.approx(4)
