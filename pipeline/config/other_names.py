"""Names of settings in other libraries -> those of darts, for messages; those of TRL and verl for
docs/migrating.md too.

Names of losses and advantages are in `pipeline.plugins.elsewhere`. `ours` answers an unknown key
with the setting that does the same here.
"""

from __future__ import annotations

from pipeline.plugins import registry
from pipeline.plugins.elsewhere import hint_of_name

_WHOLE = (
    "training samples from all tokens, as the learner's probabilities are of all: a token's "
    "probability within a cut-off set is another, and the ratio of new to old one would be wrong"
)

VERL: dict[str, str] = {
    "data.train_files": "data.train",
    "data.val_files": "data.held_out",
    "data.train_batch_size": "step.prompts",
    "data.max_prompt_length": "data.max_prompt_tokens",
    "data.max_response_length": "sampling.max_tokens",
    "data.prompt_key": "data.prompt",
    "actor_rollout_ref.model.path": "model",
    "actor_rollout_ref.rollout.n": "group.size",
    "actor_rollout_ref.rollout.temperature": "sampling.temperature",
    "actor_rollout_ref.rollout.top_p": f"eval.top_p; for evaluations alone: {_WHOLE}",
    "actor_rollout_ref.rollout.top_k": f"eval.top_k; for evaluations alone: {_WHOLE}",
    "actor_rollout_ref.rollout.val_kwargs.temperature": "eval.temperature",
    "actor_rollout_ref.rollout.val_kwargs.top_p": "eval.top_p",
    "actor_rollout_ref.rollout.val_kwargs.top_k": "eval.top_k",
    "actor_rollout_ref.rollout.val_kwargs.n": "eval.samples",
    "actor_rollout_ref.rollout.val_kwargs.do_sample": "eval.greedy, or eval.temperature=0",
    "actor_rollout_ref.rollout.name": "engine.kind",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "engine.tensor_parallel",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "engine.gpu_memory",
    "actor_rollout_ref.rollout.max_num_seqs": "engine.slots",
    "actor_rollout_ref.rollout.engine_kwargs.vllm": "engine.vllm",
    "actor_rollout_ref.actor.optim.lr": "learner.lr",
    "actor_rollout_ref.actor.optim.weight_decay": "learner.weight_decay",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": "learner.warmup_steps",
    "actor_rollout_ref.actor.grad_clip": "learner.clip_norm",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "learner.updates, which is "
    "train_batch_size / ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs": "learner.epochs",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "learner.tokens_per_micro_batch",
    "actor_rollout_ref.actor.clip_ratio": "loss.dapo.clip_low and clip_high",
    "actor_rollout_ref.actor.clip_ratio_low": "loss.dapo.clip_low",
    "actor_rollout_ref.actor.clip_ratio_high": "loss.dapo.clip_high",
    "actor_rollout_ref.actor.use_kl_loss": "learner.reference=start, and loss.dapo.kl",
    "actor_rollout_ref.actor.kl_loss_coef": "loss.dapo.kl, with learner.reference=start",
    "actor_rollout_ref.actor.clip_ratio_c": "loss.dapo.dual_clip",
    "actor_rollout_ref.actor.entropy_coeff": "learner.entropy_bonus",
    "actor_rollout_ref.actor.tis_imp_ratio_cap": "learner.importance_cap, with "
    "learner.importance=truncate",
    "actor_rollout_ref.actor.loss_agg_mode": "learner.aggregate (token-mean: token, "
    "seq-mean-token-mean: sequence, seq-mean-token-sum-norm: constant)",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "loss (vanilla: dapo, geo_mean: gmpo, "
    "gpg: reinforce, gspo, sapo, cispo, clip_cov and kl_cov as they are)",
    "actor_rollout_ref.actor.fsdp_config": "learner.zero",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "learner.gradient_checkpointing",
    "algorithm.adv_estimator": "advantage",
    "algorithm.kl_ctrl.kl_coef": "loss.dapo.kl, with learner.reference=start",
    "algorithm.norm_adv_by_std_in_grpo": "advantage.grpo.divide_by_deviation",
    "algorithm.filter_groups": "advantage.grpo.drop_equal",
    "algorithm.filter_groups.enable": "advantage.grpo.drop_equal",
    "reward_model.overlong_buffer.len": "advantage.grpo.overlong_tokens",
    "custom_reward_function.path": "reward.python.function=file.py:function",
    "custom_reward_function.name": "reward.python.function=file.py:function",
    "trainer.total_training_steps": "step.count",
    "trainer.total_epochs": "prompt_order.shuffled.epochs",
    "trainer.test_freq": "eval.every",
    "trainer.save_freq": "checkpoint.every",
    "trainer.nnodes": "ranks of torchrun: learner.ranks + engine.count",
    "trainer.n_gpus_per_node": "ranks of torchrun: learner.ranks + engine.count",
    "trainer.logger": "metrics",
    "trainer.project_name": "metrics.wandb",
    "trainer.default_local_dir": "--out",
    "trainer.resume_mode": "darts train --resume RUN",
}
"""Dotted key of verl -> what does the same in darts."""
TRL: dict[str, str] = {
    "model_name_or_path": "model",
    "num_generations": "group.size",
    "max_completion_length": "sampling.max_tokens",
    "max_new_tokens": "sampling.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "learning_rate": "learner.lr",
    "max_grad_norm": "learner.clip_norm",
    "lr_scheduler_type": "learner.schedule",
    "adam_beta1": "learner.betas",
    "adam_beta2": "learner.betas",
    "adam_epsilon": "learner.eps",
    "num_iterations": "learner.epochs",
    "epsilon": "loss.dapo.clip_low",
    "epsilon_high": "loss.dapo.clip_high",
    "beta": "loss.dapo.kl, with learner.reference=start",
    "scale_rewards": "advantage.grpo.divide_by_deviation",
    "loss_type": "loss (grpo: dapo with learner.aggregate=sequence, dr_grpo: dapo with "
    "learner.aggregate=constant, cispo and sapo as they are)",
    "importance_sampling_level": "loss=gspo for sequence",
    "entropy_coef": "learner.entropy_bonus",
    "off_policy_mask_threshold": "learner.reject_drift",
    "reward_funcs": "reward.python.function",
    "reward_weights": "reward.python.weights",
    "vllm_importance_sampling_correction": "learner.importance=truncate",
    "vllm_importance_sampling_cap": "learner.importance_cap",
    "max_steps": "step.count",
    "num_train_epochs": "prompt_order.shuffled.epochs",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "eval.every",
    "report_to": "metrics",
    "callbacks": "on_step and on_eval, in Python",
    "output_dir": "--out",
    "bf16": "learner.dtype=bfloat16",
    "use_peft": "learner.lora",
    "lora_r": "learner.lora.rank",
    "lora_alpha": "learner.lora.alpha",
    "lora_target_modules": "learner.lora.targets",
    "chat_template_kwargs": "data.chat_arguments",
    "use_vllm": "engine.kind=vllm",
    "vllm_gpu_memory_utilization": "engine.gpu_memory",
    "vllm_tensor_parallel_size": "engine.tensor_parallel",
    "gradient_checkpointing": "learner.gradient_checkpointing",
    "per_device_train_batch_size": "step.prompts and group.size; passes are as long as "
    "learner.tokens_per_micro_batch",
    "gradient_accumulation_steps": "none: a step runs as many passes as it needs",
    "steps_per_generation": "learner.max_staleness",
    "top_p": f"eval.top_p; for evaluations alone: {_WHOLE}",
    "top_k": f"eval.top_k; for evaluations alone: {_WHOLE}",
    "min_p": f"eval.min_p; for evaluations alone: {_WHOLE}",
    "repetition_penalty": f"none: {_WHOLE}",
    "stop": "sampling.stop",
    "stop_strings": "sampling.stop",
    "generation_kwargs": "sampling.stop for its stop; the others are in eval, for evaluations",
}
"""Name of TRL's `GRPOConfig`, of its script or of transformers -> what does the same in darts."""

_NO_KL_REWARD = "none: KL is in the loss alone, loss.dapo.kl with learner.reference=start"
_NO_CRITIC = "none: there is no critic; rewards of a group are compared with each other"
OTHERS: dict[str, tuple[str, str]] = {
    **{
        name: ("OpenRLHF", ours)
        for name, ours in {
            "rollout_batch_size": "step.prompts",
            "n_samples_per_prompt": "group.size",
            "actor_learning_rate": "learner.lr",
            "critic_learning_rate": _NO_CRITIC,
            "lambd": _NO_CRITIC,
            "gamma": _NO_CRITIC,
            "micro_train_batch_size": "learner.tokens_per_micro_batch",
            "micro_rollout_batch_size": "engine.slots",
            "prompt_max_len": "data.max_prompt_tokens",
            "generate_max_len": "sampling.max_tokens",
            "max_epochs": "learner.epochs",
            "num_episodes": "prompt_order.shuffled.epochs",
            "zero_stage": "learner.zero",
            "pretrain": "model",
            "reward_pretrain": "reward; a reward model answers over HTTP, reward.http.url",
            "remote_rm_url": "reward.http.url",
            "vllm_num_engines": "engine.count",
            "eps_clip": "loss.dapo.clip_low and clip_high",
            "clip_eps": "loss.dapo.clip_low and clip_high",
            "cliprange": "loss.dapo.clip_low and clip_high",
            "init_kl_coef": "loss.dapo.kl, with learner.reference=start",
            "kl_estimator": "loss.dapo.kl_estimator",
            "input_key": "data.prompt",
            "label_key": "data.answer",
            "apply_chat_template": "data.chat=always",
            "save_path": "--out",
            "ckpt_path": "--out",
            "use_wandb": "metrics.wandb",
            "lora_rank": "learner.lora.rank",
            "flash_attn": "learner.attention",
        }.items()
    },
    **{
        name: ("prime-rl", ours)
        for name, ours in {
            "rollouts_per_example": "group.size",
            "rollouts_per_prompt": "group.size",
            "max_async_level": "learner.max_staleness",
            "max_off_policy_steps": "learner.max_staleness",
            "seq_len": "sampling.max_tokens; a prompt is bounded by data.max_prompt_tokens",
        }.items()
    },
    "n_samples": ("AReaL", "group.size"),
    "max_head_offpolicyness": ("AReaL", "learner.max_staleness"),
    "async_training": ("AReaL", "learner.max_staleness; 0 is synchronous"),
    **{
        name: ("vLLM", f"engine.vllm.{name}")
        for name in (
            "enforce_eager",
            "enable_prefix_caching",
            "max_num_batched_tokens",
            "kv_cache_dtype",
            "enable_chunked_prefill",
        )
    },
    "max_model_len": ("vLLM", "sampling.max_tokens, and data.max_prompt_tokens"),
    "tensor_parallel_size": ("vLLM", "engine.tensor_parallel"),
    "stop_token_ids": ("vLLM", "sampling.stop, with their texts"),
    "presence_penalty": ("vLLM", f"none: {_WHOLE}"),
    "frequency_penalty": ("vLLM", f"none: {_WHOLE}"),
    "batch_size": ("", "step.prompts"),
    **dict.fromkeys(("steps", "total_steps", "num_steps"), ("", "step.count")),
    **dict.fromkeys(
        ("num_rollouts", "n_rollouts", "samples_per_prompt"),
        ("", "group.size"),
    ),
    "torch_dtype": ("transformers", "learner.dtype"),
    "attn_implementation": ("transformers", "learner.attention"),
    "warmup_ratio": ("transformers", "learner.warmup_steps, a number of steps"),
    "resume_from_checkpoint": ("transformers", "darts train --resume RUN"),
    "logging_steps": ("transformers", "none: every step is logged"),
    "fp16": ("transformers", "learner.dtype=bfloat16; losses are not scaled"),
    "run_name": ("transformers", "--out"),
    "wandb_project": ("transformers", "metrics.wandb"),
    "train_dataset": ("TRL", "data.train"),
    "dataset_name": ("TRL", "data.train"),
    "eval_dataset": ("TRL", "data.held_out"),
    "vllm_mode": ("TRL", "none: engines and learner are processes of their own, side by side"),
    "mask_truncated_completions": ("TRL", "advantage.grpo.overlong_tokens, and reward.math.cut"),
    "system_prompt": ("TRL", "data.system"),
    "use_kl_in_reward": ("verl", _NO_KL_REWARD),
    "lam": ("verl", _NO_CRITIC),
    "ppo_micro_batch_size_per_gpu": ("verl", "learner.tokens_per_micro_batch"),
    "log_prob_micro_batch_size_per_gpu": ("verl", "learner.tokens_per_micro_batch"),
    **dict.fromkeys(("num_gpus", "world_size"), ("", "learner.ranks and engine.count")),
    "fsdp": ("transformers", "learner.zero"),
    "tokenizer": ("", "none: it is that of model"),
    "colocate_all_models": ("OpenRLHF", "none: engines and learner are processes side by side"),
    "experiment_name": ("verl", "--out"),
    "val_before_train": (
        "verl",
        "none: a run evaluates before its first step; eval.every=0: never",
    ),
    "reward_fn_key": ("verl", "none: a reward of verl's kind gets data_source"),
    "response_length": ("verl", "sampling.max_tokens"),
}
"""Name, without what stands before it -> library, and what does the same in darts."""

_SHORT = ("beta", "epsilon")
_PLUGINS = {
    "loss_type": "loss",
    "loss_mode": "loss",
    "policy_loss": "loss",
    "adv_estimator": "advantage",
    "advantage_estimator": "advantage",
}
"""Last part of a key of theirs whose value names a plug-in -> its kind."""


def ours(key: str, value: object = "") -> str:
    """What a key is called here, for a message: `TRL's learning_rate is learner.lr here`; "".

    A key of verl may be given without what stands before it, one of TRL in any section.

    Args:
        value: what was written for it, where it names a plug-in.

    >>> ours("learner.learning_rate"), ours("rollout.n"), ours("group.sise")
    ("TRL's learning_rate is learner.lr here", "verl's rollout.n is group.size here", '')
    >>> ours("algorithm.adv_estimator", "rloo")
    'here it is advantage=rloo'
    """
    last = key.rpartition(".")[2]
    if kind := _PLUGINS.get(last):
        named = hint_of_name(kind, str(value), registry.plugin_names(kind))
        return named.removeprefix("; ") or f"here it is {kind}"
    if last in _SHORT and key != last:  # `learner.beta` is a slip of another kind
        return ""
    for whole, name in VERL.items():
        if key == whole or (whole.endswith(f".{key}") and _is_distinct(key)):
            return _said("verl", key, name)
        if whole.startswith(f"{key}.") and key == key.partition(".")[0]:
            return f"a section of verl; its keys have other names here: {whole} is {name}"
    if last in TRL:
        return _said("TRL", last, TRL[last])
    if last in OTHERS:
        return _said(OTHERS[last][0], last, OTHERS[last][1])
    of_verl = {whole.rpartition(".")[2]: name for whole, name in VERL.items()}
    found = last in of_verl and _is_distinct(last)
    return _said("verl", last, of_verl[last]) if found else ""


def _is_distinct(key: str) -> bool:
    """Whether the end of a key of verl says which one is meant."""
    return "." in key or (key not in TRL and ("_" in key or key in ("n", "lr")))


def _said(whose: str, key: str, name: str) -> str:
    owner = f"{whose}'{'' if whose.endswith('s') else 's'} " if whose else ""
    if name.startswith("none: "):
        return f"{owner}{key} has no setting here: {name.removeprefix('none: ')}"
    first, _, more = name.partition("; ")
    return f"{owner}{key} is {first} here{more and f'; {more}'}"


def hint(option: str) -> str:
    """The end of a message on an unknown option of a plug-in that TRL has; "" for others."""
    found = TRL.get(option, "")
    if not found:
        return ""
    return f"; {_said('TRL', option, found)}"
