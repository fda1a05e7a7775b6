"""Compares TRL's GRPOTrainer with darts on the quickstart's model and task, on one machine.

    pip install 'darts-rl[bench]'
    python -m scripts.bench.trl_peer [--steps 60] [--seeds 1] [--target 0.9] [--out FILE]

Both use the quickstart's recipe: group size, learning rate, loss, limits, and the same number of
prompts a step from the same data, shuffled by the seed. TRL samples with transformers' `generate`
(its vLLM mode needs a GPU) on all cores; darts is `darts train`. Each side evaluates at the same
steps, outside the measured time. A row of the table is one seed: seconds a step, and training
seconds until the first evaluation that reaches the target.
"""

# TRL, datasets and parts of torch and transformers have no usable types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

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
import torch

from launch.bench.compare.cells import Cell
from launch.bench.compare.methods import Method
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.data.dataset import load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.rewards.exact import Exact
from pipeline.plugins.views import Sampled
from scripts.bench.plain_loop import HELD_OUT, Policy, evaluate_policy
from scripts.bench.program import options_parser, write_json

CONFIG = Path("configs/quickstart.yaml")


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """One side, one seed."""

    step_seconds: float
    seconds_to_target: float | None
    accuracy_before: float
    accuracy_after: float
    mean_tokens_after: float


def with_darts(steps: int, every: int, seed: int, target: float, folder: Path) -> Training:
    """Trains with darts. Raises CellError if it fails."""
    overrides = (f"step.count={steps}", f"eval.every={every}", "checkpoint.every=0")
    method = Method(name="darts", about="the quickstart", overrides=())
    cell = Cell(method=method, seed=seed, config=CONFIG, overrides=overrides, base=folder)
    cell.carry_out()
    metrics, curve = cell.final_metrics(target), cell.eval_curve()
    return Training(
        step_seconds=metrics.step_seconds,
        seconds_to_target=metrics.seconds_to_target,
        accuracy_before=curve[0].accuracy,
        accuracy_after=metrics.final_accuracy,
        mean_tokens_after=metrics.mean_tokens,
    )


def with_trl(steps: int, every: int, seed: int, target: float, folder: Path) -> Training:
    """Trains with GRPOTrainer. Raises ImportError without TRL."""
    trl: Any = importlib.import_module("trl")
    config = load(CONFIG, [f"seed={seed}"])
    policy = Policy(Path(config.model), torch.get_num_threads())
    generator = torch.Generator().manual_seed(1)
    scores = [(0.0, evaluate_policy(policy, HELD_OUT, generator))]
    spent = begun = 0.0

    class Clock(_callback()):
        """Counts the seconds inside steps; evaluates in between."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal begun
            del args, state, control, kwargs
            begun = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal spent, begun
            del args, control, kwargs
            spent += time.monotonic() - begun
            step = int(state.global_step)
            if step % every == 0 or step == steps:
                policy.model.eval()
                scores.append((spent, evaluate_policy(policy, HELD_OUT, generator)))
                policy.model.train()
            begun = time.monotonic()

    rows = config.step.prompts * config.group.size
    trainer: Any = trl.GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=_reward(policy.eos),
        train_dataset=_dataset(config, steps, seed),
        callbacks=[Clock()],
        args=trl.GRPOConfig(
            output_dir=str(folder / f"trl-{seed}"),
            max_steps=steps,
            per_device_train_batch_size=rows,
            steps_per_generation=1,
            num_generations=config.group.size,
            max_completion_length=config.sampling.max_tokens,
            temperature=config.sampling.temperature,
            learning_rate=config.learner.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=config.learner.warmup_steps,
            adam_beta1=config.learner.betas[0],
            adam_beta2=config.learner.betas[1],
            max_grad_norm=config.learner.clip_norm,
            loss_type="dapo",
            scale_rewards="none",
            epsilon=0.2,
            epsilon_high=0.28,
            beta=0.0,
            gradient_checkpointing=False,
            seed=seed,
            shuffle_dataset=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    reached = [seconds for seconds, score in scores if score.accuracy >= target]
    return Training(
        step_seconds=spent / steps,
        seconds_to_target=reached[0] if reached else None,
        accuracy_before=scores[0][1].accuracy,
        accuracy_after=scores[-1][1].accuracy,
        mean_tokens_after=scores[-1][1].mean,
    )


def _callback() -> Any:
    return importlib.import_module("transformers").TrainerCallback


def _dataset(config: Config, steps: int, seed: int) -> Any:
    """Makes a data set with as many prompts as the run needs."""
    datasets: Any = importlib.import_module("datasets")
    tokenizer = Tokenizer(Path(config.model))
    items = load_train(config.data, tokenizer, config.sampling.max_tokens).items
    chosen = random.Random(seed).sample(items, steps * config.step.prompts)
    return datasets.Dataset.from_list([{"prompt": i.prompt, "answer": i.answer} for i in chosen])


def _reward(eos: int) -> Any:
    """Wraps the quickstart's reward in TRL's signature."""
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


def trl_ratios(darts: Sequence[Training], trl: Sequence[Training]) -> dict[str, float | None]:
    """Returns how many times as long TRL takes: medians over paired seeds.

    None if no seed has the metric on both sides.
    """
    found: dict[str, float | None] = {}
    for figure in ("step_seconds", "seconds_to_target"):
        pairs = [
            (getattr(one, figure), getattr(other, figure))
            for one, other in zip(darts, trl, strict=True)
        ]
        known = [other / one for one, other in pairs if one and other]
        found[figure] = statistics.median(known) if known else None
    return found


def main() -> None:
    parser = options_parser(__doc__, steps=60)
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--target", type=float, default=0.9, help="held-out accuracy")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sides: dict[str, list[Training]] = {"darts": [], "trl": []}
    with tempfile.TemporaryDirectory(prefix="darts-trl-") as folder:
        for seed in range(options.seeds):
            for name, train in (("darts", with_darts), ("trl", with_trl)):
                found = train(options.steps, options.every, seed, options.target, Path(folder))
                sides[name].append(found)
                reached = found.seconds_to_target
                print(
                    f"{name:6} seed {seed}: {found.step_seconds:.2f} s a step, accuracy "
                    f"{found.accuracy_before:.3f} -> {found.accuracy_after:.3f}, "
                    f"mean tokens {found.mean_tokens_after:.1f}, {options.target} "
                    + (f"after {reached:.0f} s" if reached is not None else "not reached"),
                    flush=True,
                )
    compared = trl_ratios(sides["darts"], sides["trl"])
    outcome = {
        **{name: [msgspec.to_builtins(run) for run in runs] for name, runs in sides.items()},
        "ratios": compared,
    }
    for figure, ratio in compared.items():
        print(f"{figure}: TRL takes {'no known' if ratio is None else f'{ratio:.2f}'} times darts'")
    write_json(options.out, outcome)


if __name__ == "__main__":
    main()
