"""A JSON file in DeepSpeed's format -> what of it is passed on, or every reason why not.

`learner.deepspeed` names it. Keys that darts decides are refused with the setting to use, unless
they say what darts does anyway; those that would change what is computed with the reason. The stage
of `learner.zero`, "auto", what is switched off and what changes nothing here are let pass, and
`without_effect` names them. Unknown keys at the top are refused (DeepSpeed would ignore them),
those below them are DeepSpeed's to check.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pipeline.config.schema import LearnerConfig
from pipeline.system import untrusted_files

OURS: dict[str, str] = {
    "train_batch_size": "step.prompts and group.size",
    "train_micro_batch_size_per_gpu": "learner.tokens_per_micro_batch",
    "gradient_accumulation_steps": "learner.tokens_per_micro_batch: groups are summed as they come",
    "managed_gradient_accumulation": "nothing: learner.zero decides it",
    "optimizer": "learner.lr, betas, eps and weight_decay (AdamW)",
    "scheduler": "learner.schedule, warmup_steps and min_lr",
    "gradient_clipping": "learner.clip_norm",
    "fp16": "learner.dtype: bfloat16; losses are not scaled",
    "amp": "learner.dtype: bfloat16",
    "bfloat16": "learner.dtype: bfloat16",
    "torch_autocast": "learner.dtype: bfloat16",
    "data_types": "learner.dtype; gradients are summed in float32",
    "activation_checkpointing": "learner.gradient_checkpointing",
    "tensorboard": "metrics.tensorboard",
    "wandb": "metrics.wandb",
}
"""Key -> what to use in darts."""
HARMLESS: dict[str, str] = {
    "zero_allow_untested_optimizer": "it is set anyway",
    "zero_force_ds_cpu_optimizer": "the optimizer is not on the CPU",
    "steps_per_print": "metrics.jsonl has a line a step",
}
"""Key -> why it changes nothing."""
REFUSED: dict[str, str] = {
    "prescale_gradients": "sums over tokens are divided once, by those of the step",
    "gradient_predivide_factor": "sums over tokens are divided once, by those of the step",
    "sparse_gradients": "the gradient is checked before it is applied, as a dense one",
    "data_efficiency": "which prompts come, and how often, is the pipeline's to decide",
    "curriculum_learning": "which prompts come, and how often, is the pipeline's to decide",
    "compression_training": "compressed weights could not be published to the engines",
    "pipeline": "the learner's ranks are data-parallel",
    "tensor_parallel": "the learner's ranks are data-parallel",
    "sequence_parallel_size": "the learner's ranks are data-parallel",
    "autotuning": "it starts runs of its own",
    "elasticity": "the number of ranks is learner.ranks",
    "checkpoint": "checkpoints are written by darts",
    "hybrid_engine": "the engines are processes of their own",
    "compile": "its passes were not tried with packed calls",
}
"""Key -> why it cannot be had."""
_ONE = ("gradient_predivide_factor", "sequence_parallel_size")
"""Of these, those of which 1 is the same as nothing."""
PASSED = (
    *(
        "zero_optimization",
        "bf16",
        "communication_data_type",
        "seq_parallel_communication_data_type",
    ),
    *("comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown", "dump_state"),
    *(
        "csv_monitor",
        "comet",
        "aio",
        "nebula",
        "disable_allgather",
        "use_data_before_expert_parallel_",
    ),
)
"""Keys that are DeepSpeed's own business."""
_ZERO_OURS: dict[str, str] = {
    "overlap_comm": "it is off: gradients are reduced once, when the step closes",
    "offload_optimizer": "its optimizers on the CPU were not tried with sums over a step",
    "offload_param": "weights on the CPU were not tried with sums over a step",
    "cpu_offload": "its optimizers on the CPU were not tried with sums over a step",
    "zero_quantized_weights": "rounded weights would not be those that the engines are given",
    "zero_quantized_gradients": "the step's gradient is to be exact",
    "zero_quantized_nontrainable_weights": "rounded weights would not be those of the engines",
    "zenflow": "late updates of a part of the weights belong to no policy version",
}
"""Keys of `zero_optimization` -> why they cannot be had; false and null are let pass."""


class DeepSpeedFileError(Exception):
    """The file does not fit; `problems` has a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read(section: LearnerConfig) -> dict[str, Any]:
    """What to add to DeepSpeed's settings; {} without a file. Raises DeepSpeedFileError."""
    if not section.deepspeed:
        return {}
    found = _read(section)
    if problems := [f"{section.deepspeed}: {problem}" for problem in complaints(found, section)]:
        raise DeepSpeedFileError(problems)
    return passed(found)


def _read(section: LearnerConfig) -> dict[str, Any]:
    """The file's content. Raises DeepSpeedFileError if it holds no object."""
    path = Path(section.deepspeed)
    try:
        found = untrusted_files.read_json(path)
    except untrusted_files.UnreadableFile as error:
        raise DeepSpeedFileError([str(error)]) from error
    if not isinstance(found, dict):
        raise DeepSpeedFileError([f"{path}: found a {type(found).__name__}, expected an object"])
    return found


def complaints(given: dict[str, Any], section: LearnerConfig) -> Iterator[str]:
    """A line each for what cannot be passed on: key, finding, reason, cure."""
    for key, value in given.items():
        if _silent(value) or key in HARMLESS or key.startswith("_"):
            continue
        if key in REFUSED and (_is_off(value) or (key in _ONE and value == 1)):
            continue
        if key in OURS:
            other = _disagreement(key, value, section)
            if other is not None:
                yield f"{key}: {other}darts decides it; use {OURS[key]}"
        elif key in REFUSED:
            yield f"{key}: {REFUSED[key]}; take it out"
        elif key == "bf16":
            yield from _bf16(value, section)
        elif key == "zero_optimization":
            yield from _zero(value, section)
        elif key not in PASSED:
            known = [*OURS, *REFUSED, *HARMLESS, *PASSED]
            near = difflib.get_close_matches(key, known, n=1)
            if key in ("compute_environment", "deepspeed_config"):
                yield f"{key}: a file of accelerate; name DeepSpeed's own, or set learner.zero"
                continue
            hint = f"did you mean {near[0]}?" if near else "take it out"
            yield f"{key}: no key of DeepSpeed that is known here; {hint}"


def _disagreement(key: str, value: Any, section: LearnerConfig) -> str | None:
    """What a key that darts decides says against it, as the beginning of a complaint; None if it
    says what darts does anyway."""
    given: dict[str, Any] = value if isinstance(value, dict) else {}
    match key:
        case "gradient_clipping":
            same = not isinstance(value, bool) and value == section.clip_norm
        case "data_types":
            same = given.get("grad_accum_dtype") in _FLOAT32 and len(given) == 1
        case "bfloat16":
            same = given == {"enabled": True} and section.dtype == "bfloat16"
        case "optimizer":
            return _of_optimizer(value, section)
        case "scheduler":
            same = _automatic(value)
        case "activation_checkpointing":
            same = bool(given) and not any(given.values())
        case _:
            return ""
    return None if same else f"found {value!r:.60}; "


_FLOAT32 = ("fp32", "float32")


def _automatic(value: Any) -> bool:
    """Whether only a type is named, and all its parameters are left to the trainer."""
    parameters = value.get("params") if isinstance(value, dict) else None
    return isinstance(parameters, dict) and bool(parameters) and _silent(parameters)


def _of_optimizer(value: Any, section: LearnerConfig) -> str | None:
    """What an optimizer says against AdamW with the learner's settings; None if nothing."""
    if not isinstance(value, dict):
        return f"found {value!r:.60}; "
    kind = value.get("type", "AdamW")
    if kind not in ("AdamW", "auto"):
        return f"its type is {kind!r:.40}, and darts has AdamW; "
    ours = {
        "lr": section.lr,
        "betas": list(section.betas),
        "eps": section.eps,
        "weight_decay": section.weight_decay,
        **_ALWAYS,
    }
    parameters: Any = value.get("params")
    if not isinstance(parameters, dict) or not parameters:
        return "it has no params, for which DeepSpeed has values of its own; "
    for name, given in parameters.items():
        if not _silent(given) and (name not in ours or given != ours[name]):
            is_ = f", but learner.{name} is {ours[name]}" if name in ours else ""
            return f"its {name} is {given!r:.40}{is_}; "
    return None


_ALWAYS = {"torch_adam": True, "adam_w_mode": True, "amsgrad": False, "bias_correction": True}


def without_effect(section: LearnerConfig) -> list[str]:
    """Keys of the file, without complaints, that are let pass and change nothing here."""
    found = _read(section) if section.deepspeed else {}
    kept = passed(found)
    zero = found.get("zero_optimization")
    inner = sorted({*zero} - {*kept.get("zero_optimization", {})}) if isinstance(zero, dict) else []
    return [
        *(key for key in found if key not in kept),
        *(f"zero_optimization.{key}" for key in inner if "zero_optimization" in kept),
    ]


def passed(given: dict[str, Any]) -> dict[str, Any]:
    """The part that is handed on, of a file without complaints."""
    kept = {key: value for key, value in given.items() if key in PASSED and key != "bf16"}
    zero = kept.get("zero_optimization")
    if isinstance(zero, dict):
        own = (*_ZERO_OURS, "stage")
        kept["zero_optimization"] = {
            key: value for key, value in zero.items() if key not in own and not _silent(value)
        }
    return {key: value for key, value in kept.items() if value not in ("auto", None)}


def _is_off(value: Any) -> bool:
    """Whether this is false, or an object in which everything is."""
    inner = cast(dict[str, Any], value).values() if isinstance(value, dict) else ()
    return value is False or (bool(inner) and all(one is False for one in inner))


def _silent(value: Any) -> bool:
    """Whether this says nothing: "auto" and all that transformers fills in, or switched off."""
    if isinstance(value, dict):
        if value.get("enabled") in (False, "auto"):
            return True
        return bool(value) and all(_silent(inner) for inner in value.values())
    return value in ("auto", None)


def _bf16(value: Any, section: LearnerConfig) -> Iterator[str]:
    on = isinstance(value, dict) and value.get("enabled") is True
    if on and section.dtype != "bfloat16":
        yield "bf16: enabled, but learner.dtype is float32; set learner.dtype: bfloat16"
    elif not on:
        yield f"bf16: found {value!r:.100}, expected an object with enabled"
    elif more := sorted(key for key, inner in value.items() if key != "enabled" and inner):
        yield f"bf16.{more[0]}: how bfloat16 is trained is darts' to decide; take it out"


def _zero(value: Any, section: LearnerConfig) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"zero_optimization: found {value!r:.100}, expected an object"
        return
    stage = value.get("stage", section.zero)
    if isinstance(stage, str) and stage != "auto":
        yield f"zero_optimization.stage: found {stage!r}, expected a number from 0 to 3"
    elif stage not in (section.zero, "auto"):
        yield (
            f"zero_optimization.stage: found {stage!r}, but learner.zero is {section.zero}; "
            f"set learner.zero: {stage}"
        )
    for key, reason in _ZERO_OURS.items():
        found = value.get(key)
        device = found.get("device") if isinstance(found, dict) else None
        if found not in (None, False, "auto") and device != "none":
            yield f"zero_optimization.{key}: {reason}; take it out"
