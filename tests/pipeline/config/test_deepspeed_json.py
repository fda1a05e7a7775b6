"""`learner.deepspeed`: what is DeepSpeed's goes through, what is ours is refused with the cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.deepspeed_json import (
    OURS,
    PASSED,
    REFUSED,
    DeepSpeedFileError,
    complaints,
    passed,
    read,
    without_effect,
)
from pipeline.config.schema import LearnerConfig

AUTO: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0},
    "optimizer": {"type": "auto", "params": {"lr": "auto", "weight_decay": "auto"}},
    "scheduler": {"params": {"warmup_min_lr": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none"},
        "overlap_comm": False,
        "reduce_bucket_size": 5000,
        "allgather_bucket_size": "auto",
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
    "prescale_gradients": False,
}
"""As transformers' and TRL's examples have it."""


def test_file_of_a_trainer_that_fills_in_auto_is_taken():
    section = LearnerConfig(zero=2)
    assert list(complaints(AUTO, section)) == []
    assert passed(AUTO) == {
        "zero_optimization": {"reduce_bucket_size": 5000},
        "wall_clock_breakdown": False,
    }


@pytest.mark.parametrize(
    "given,expected",
    [
        ({"train_batch_size": 64}, "train_batch_size: darts decides it; use step.prompts"),
        ({"gradient_accumulation_steps": 4}, "use learner.tokens_per_micro_batch"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}, "its lr is 1e-05, but learner"),
        ({"optimizer": {"type": "Adam", "params": {"lr": "auto"}}}, "its type is 'Adam'"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "gradients are summed in float32"),
        ({"gradient_predivide_factor": 2}, "divided once, by those of the step"),
        ({"scheduler": {"type": "WarmupLR"}}, "use learner.schedule"),
        ({"gradient_clipping": 0.3}, "gradient_clipping: found 0.3; darts decides it; use learn"),
        ({"fp16": {"enabled": True}}, "use learner.dtype: bfloat16"),
        ({"bf16": {"enabled": True}}, "bf16: enabled, but learner.dtype is float32"),
        ({"zero_optimization": {"stage": 3}}, "found 3, but learner.zero is 2; set"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer: its optimizers on the CPU",
        ),
        ({"zero_optimization": {"overlap_comm": True}}, "reduced once, when the step closes"),
        ({"zero_optimization": {"stage": "2"}}, "found '2', expected a number from 0 to 3"),
        ({"deepspeed_config": {}}, "a file of accelerate; name DeepSpeed's own"),
        ({"zero_optimization": 2}, "zero_optimization: found 2, expected an object"),
        ({"use_node_local_storage": False}, "no key of DeepSpeed that is known here; take it"),
        ({"compression_training": {"x": 1}}, "could not be published to the engines; take it out"),
        ({"zero_optimisation": {}}, "known here; did you mean zero_optimization?"),
    ],
)  # fmt: skip
def test_what_is_not_passed_on_is_named_with_its_reason(given: dict[str, Any], expected: str):
    [problem] = complaints(given, LearnerConfig(zero=2))
    assert expected in problem
    assert problem.startswith(next(iter(given)))


def test_bf16_that_says_the_same_as_the_dtype_is_taken():
    section = LearnerConfig(zero=2, dtype="bfloat16")
    assert list(complaints({"bf16": {"enabled": True}}, section)) == []


def test_all_problems_of_a_file_come_in_one_go_with_its_name(tmp_path: Path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 8, "amp": {"enabled": True}, "x": 1}))
    with pytest.raises(DeepSpeedFileError) as found:
        read(LearnerConfig(deepspeed=str(path)))
    assert [line.split(": ")[:2] for line in found.value.problems] == [
        [str(path), key] for key in ("train_batch_size", "amp", "x")
    ]


@pytest.mark.parametrize("text,expected", [("{", "not JSON"), ("[]", "found a list")])
def test_file_that_holds_no_object_is_refused(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(DeepSpeedFileError, match=expected):
        read(LearnerConfig(deepspeed=str(path)))


def test_no_key_is_in_two_tables():
    assert len({*OURS, *REFUSED, *PASSED}) == len(OURS) + len(REFUSED) + len(PASSED)


def test_nothing_of_a_null_is_passed_on(tmp_path: Path):
    (tmp_path / "ds.json").write_text(
        '{"zero_optimization": null, "aio": null, "wall_clock_breakdown": false}'
    )
    found = read(LearnerConfig(deepspeed=str(tmp_path / "ds.json")))
    assert found == {"wall_clock_breakdown": False}
    assert passed({"zero_optimization": {"reduce_bucket_size": None}})["zero_optimization"] == {}


def test_what_else_bf16_says_is_refused_for_it_would_do_nothing():
    given = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}
    [problem] = complaints(given, LearnerConfig(dtype="bfloat16", zero=1))
    assert problem.startswith("bf16.bf16_master_weights_and_grads: ")
    off = {"bf16": {"enabled": True, "immediate_grad_update": False}}
    assert list(complaints(off, LearnerConfig(dtype="bfloat16", zero=1))) == []


AGREES: dict[str, Any] = {
    "steps_per_print": 2000,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "gradient_clipping": 1.0,
    "gradient_predivide_factor": 1.0,
    "sequence_parallel_size": 1,
    "data_types": {"grad_accum_dtype": "fp32"},
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-6, "betas": "auto", "torch_adam": True}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}},
    "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "round_robin": True},
}
"""As LLaMA-Factory's, accelerate's and TRL's users have them."""


def test_what_agrees_with_the_learner_or_says_nothing_passes_and_is_named(tmp_path: Path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(AGREES))
    section = LearnerConfig(zero=2, lr=2e-6, clip_norm=1.0, deepspeed=str(path))
    assert read(section) == {"zero_optimization": {"round_robin": True}}
    named = without_effect(section)
    assert set(AGREES) - set(named) == {"zero_optimization"}
    assert "zero_optimization.offload_optimizer" in named
    [other] = complaints(AGREES, LearnerConfig(zero=2, lr=2e-6, clip_norm=0.5))
    assert other.startswith("gradient_clipping: found 1.0; darts decides it")
