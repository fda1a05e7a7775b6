"""Trains once with TRL's GRPOTrainer, with the recipe of a darts configuration.

    python -m scripts.bench.trl_trainer --config FILE --setting NAME --out FILE [KEY=VALUE ...]

`scripts.bench.trl_peer` starts it, so that each run has a process of its own. TRL samples and
trains on all cores. Evaluations lie between steps and are not timed; they use the held-out prompts,
samples and limits that darts would use with the same configuration.
"""

# TRL, datasets and parts of torch and transformers have no usable types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.data.dataset import Item, load_held_out, load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.rewards.exact import Exact
from pipeline.plugins.views import Sampled
from scripts.bench.plain_loop import Policy
from scripts.bench.sampler import sample_batch


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Held-out results after some training."""

    train_s: float  # seconds in the steps before it
    accuracy: float
    mean_tokens: float


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """One run of either trainer."""

    seconds: list[float]  # of each step, without evaluations
    curve: list[Evaluation]  # the first before the first step

    @property
    def step_seconds(self) -> float:
        return statistics.fmean(self.seconds)

    def seconds_to(self, target: float) -> float | None:
        """Returns the training seconds before the first evaluation that reaches an accuracy."""
        return next((e.train_s for e in self.curve if e.accuracy >= target), None)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A way to cut a step into micro-batches."""

    about: str
    micro_batches: int  # 0: as many as there are groups of 8 rows
    checkpointing: bool = False  # of activations

    def arguments(self, rows: int) -> dict[str, Any]:
        """Returns the arguments of GRPOConfig for a step of so many responses."""
        count = self.micro_batches or rows // _DEFAULT_ROWS
        return {
            "per_device_train_batch_size": rows // count,
            "gradient_accumulation_steps": count,
            "steps_per_generation": count,
            "gradient_checkpointing": self.checkpointing,
        }


_DEFAULT_ROWS = 8
"""GRPOConfig's own `per_device_train_batch_size`."""

SETTINGS = {
    "one_batch": Setting(about="all responses in one batch", micro_batches=1),
    "accumulated": Setting(about="8 accumulated micro-batches", micro_batches=8),
    "default": Setting(
        about="GRPOConfig's own: micro-batches of 8 rows, gradient checkpointing",
        micro_batches=0,
        checkpointing=True,
    ),
}


class Evaluator:
    """Measures a policy on the held-out prompts of a configuration."""

    def __init__(self, config: Config, policy: Policy) -> None:
        tokenizer = Tokenizer(Path(config.model))
        self._items = load_held_out(config.data, tokenizer, config.sampling.max_tokens).items
        self._config, self._policy = config, policy
        self._generator = torch.Generator().manual_seed(1)

    def evaluate(self, train_s: float) -> Evaluation:
        config, policy = self._config, self._policy
        items = [item for item in self._items for _ in range(config.eval.samples)]
        policy.model.eval()
        responses = sample_batch(
            policy.model,
            [np.frombuffer(item.tokens, "<i4").tolist() for item in items],
            max_tokens=config.sampling.max_tokens,
            eos=policy.eos,
            generator=self._generator,
            temperature=config.sampling.temperature,
        )
        policy.model.train()
        right = [
            policy.is_right(response, item.answer)
            for response, item in zip(responses, items, strict=True)
        ]
        return Evaluation(
            train_s=train_s,
            accuracy=statistics.fmean(right),
            mean_tokens=statistics.fmean(len(response.tokens) for response in responses),
        )


def train_with_trl(config: Config, setting: Setting, every: int) -> Training:
    """Trains for `step.count` steps. Raises ImportError without TRL.

    Args:
        config: the recipe, of darts.
        setting: how a step is cut.
        every: steps between evaluations; 0: none at all.
    """
    trl: Any = importlib.import_module("trl")
    policy = Policy(Path(config.model), torch.get_num_threads())
    evaluator = Evaluator(config, policy)
    curve = [evaluator.evaluate(0.0)] if every else []
    seconds: list[float] = []
    begun = 0.0

    class Clock(importlib.import_module("transformers").TrainerCallback):
        """Times steps, and evaluates between them."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal begun
            del args, state, control, kwargs
            begun = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal begun
            del args, control, kwargs
            seconds.append(time.monotonic() - begun)
            step = int(state.global_step)
            if every and (step % every == 0 or step == config.step.count):
                curve.append(evaluator.evaluate(sum(seconds)))
            begun = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="darts-trl-") as folder:
        trainer: Any = trl.GRPOTrainer(
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=_reward(policy.eos),
            train_dataset=_dataset(config),
            callbacks=[Clock()],
            args=trl.GRPOConfig(
                output_dir=folder,
                **recipe(config),
                **setting.arguments(config.step.prompts * config.group.size),
            ),
        )
        trainer.train()
    return Training(seconds=seconds, curve=curve)


def recipe(config: Config) -> dict[str, Any]:
    """Returns the arguments of GRPOConfig that make it train as darts would."""
    return {
        "max_steps": config.step.count,
        "num_generations": config.group.size,
        "max_completion_length": config.sampling.max_tokens,
        "temperature": config.sampling.temperature,
        "learning_rate": config.learner.lr,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": config.learner.warmup_steps,
        "adam_beta1": config.learner.betas[0],
        "adam_beta2": config.learner.betas[1],
        "max_grad_norm": config.learner.clip_norm,
        "loss_type": "dapo",
        "scale_rewards": "none",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "seed": config.seed,
        "shuffle_dataset": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def prompts_in_order(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Returns the prompts of a run: one shuffled epoch after another."""
    rng = random.Random(seed)
    order: list[Item] = []
    while len(order) < count:
        order += rng.sample(items, len(items))
    return order[:count]


def _dataset(config: Config) -> Any:
    datasets: Any = importlib.import_module("datasets")
    items = load_train(config.data, Tokenizer(Path(config.model)), config.sampling.max_tokens).items
    chosen = prompts_in_order(items, config.step.count * config.step.prompts, config.seed)
    return datasets.Dataset.from_list([{"prompt": i.prompt, "answer": i.answer} for i in chosen])


def _reward(eos: int) -> Any:
    """Wraps the configuration's reward in TRL's signature."""
    exact = Exact()

    def reward(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        answer: list[str],
        **columns: Any,
    ) -> list[float]:
        del columns
        return [
            exact.score(
                Sampled(
                    prompt=prompt,
                    response=text,
                    finish="stop" if ids and ids[-1] == eos else "length",
                    tokens=len(ids),
                    answer=wanted,
                    columns={},
                )
            )
            for prompt, text, ids, wanted in zip(
                prompts, completions, completion_ids, answer, strict=True
            )
        ]

    return reward


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="one_batch")
    parser.add_argument("--every", type=int, default=0, help="steps between evaluations; 0: none")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    config = load(given.config, given.overrides)
    found = train_with_trl(config, SETTINGS[given.setting], given.every)
    given.out.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
