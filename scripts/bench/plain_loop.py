"""Runs GRPO without darts: `python -m scripts.bench.plain_loop [--steps 60] [--seed 0]`.

Trains the warm-start model in one process: sample everything, wait for the slowest, train, repeat.
No streaming, no vLLM, no DeepSpeed. It shows that the recipe learns the task, and is the baseline
for every other way of training. It must not import darts' engines or learner, so that it shares no
bugs with them.

Shapes: B responses of a micro-batch, T tokens, V vocabulary.
"""

# torch and transformers leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pipeline.tasks import chain_sums
from scripts.bench.sampler import Response, sample_batch

MODEL = Path(__file__).resolve().parents[2] / "models" / "chain-sums"

MAX_TOKENS = 128
PROMPTS, GROUP_SIZE = 16, 8
LR, WARMUP_STEPS = 1e-4, 5  # from 2e-4 up, accuracy is unstable late on this task
TOKENS_PER_MICRO_BATCH = 2048  # padding included
EVALUATE_EVERY = 10
HELD_OUT, HELD_OUT_BRIEF = 256, 96  # prompts of the first and last evaluation, and of others
SAMPLES = 4  # of each of them


@dataclass(frozen=True)
class Row:
    """One response to train on."""

    prompt: list[int]
    response: tuple[int, ...]
    advantage: float


@dataclass(frozen=True)
class Score:
    """The result of an evaluation."""

    accuracy: float
    mean: float  # length in tokens, as is the next
    p95: int
    truncated: float  # share of the responses


class Policy:
    """A model and its tokenizer, in float32."""

    def __init__(self, directory: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        disable_progress_bar()
        # transformers' loaders have no usable types.
        loaded: Any = cast(Any, AutoModelForCausalLM).from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False
        )
        self.model = cast(torch.nn.Module, loaded)
        self.tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(
            directory, trust_remote_code=False
        )
        self.eos = cast(int, self.tokenizer.eos_token_id)

    def encode_text(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer.encode(text))

    def sample_responses(
        self, prompts: Sequence[list[int]], generator: torch.Generator
    ) -> list[Response]:
        return sample_batch(
            self.model, prompts, max_tokens=MAX_TOKENS, eos=self.eos, generator=generator
        )

    def is_right(self, response: Response, answer: str) -> bool:
        text = cast(str, self.tokenizer.decode(response.tokens, skip_special_tokens=True))
        _, mark, given = text.rpartition("#")
        return response.ended and bool(mark) and given == answer


def evaluate_policy(policy: Policy, prompts: int, generator: torch.Generator) -> Score:
    """Samples held-out prompts at temperature 1."""
    items = [i for i in chain_sums.generate("held_out", prompts) for _ in range(SAMPLES)]
    responses = policy.sample_responses(
        [policy.encode_text(item["prompt"]) for item in items], generator
    )
    right = [policy.is_right(r, i["answer"]) for r, i in zip(responses, items, strict=True)]
    lengths = sorted(len(response.tokens) for response in responses)
    return Score(
        accuracy=sum(right) / len(right),
        mean=sum(lengths) / len(lengths),
        p95=lengths[int(0.95 * (len(lengths) - 1))],
        truncated=sum(not response.ended for response in responses) / len(responses),
    )


def rollout(policy: Policy, step: int, seed: int, generator: torch.Generator) -> list[Row]:
    """Samples a group for each prompt; keeps those whose rewards differ.

    The advantage is `reward - mean of the group`, not divided by the deviation
    (Dr. GRPO, arXiv 2503.20783); a group of equal rewards has none and is dropped.
    """
    items = [chain_sums.item("train", step * PROMPTS + i, seed) for i in range(PROMPTS)]
    prompts = [policy.encode_text(item["prompt"]) for item in items]
    responses = policy.sample_responses([p for p in prompts for _ in range(GROUP_SIZE)], generator)
    rows: list[Row] = []
    for index, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        group = responses[index * GROUP_SIZE : (index + 1) * GROUP_SIZE]
        rewards = [float(policy.is_right(response, item["answer"])) for response in group]
        mean = sum(rewards) / GROUP_SIZE
        if min(rewards) < max(rewards):
            rows += [
                Row(prompt, response.tokens, reward - mean)
                for response, reward in zip(group, rewards, strict=True)
            ]
    return rows


def micro_batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Cuts rows, the longest first, into batches of bounded size."""
    batch: list[Row] = []
    width = 0
    for row in sorted(rows, key=lambda row: -len(row.prompt) - len(row.response)):
        if batch and (len(batch) + 1) * width > TOKENS_PER_MICRO_BATCH:
            yield batch
            batch = []
        if not batch:
            width = len(row.prompt) + len(row.response)
        batch.append(row)
    if batch:
        yield batch


def loss_sum(model: torch.nn.Module, rows: list[Row]) -> torch.Tensor:
    """Sums the policy-gradient loss over the response tokens of one micro-batch.

    One optimizer step per batch of fresh samples: the ratio to the sampling policy
    is 1 and clipping never acts, so the clipped objective is `-advantage * logprob`.
    """
    width = max(len(row.prompt) + len(row.response) for row in rows)
    tokens_BT = torch.zeros((len(rows), width), dtype=torch.long)
    weight_BT = torch.zeros((len(rows), width))  # advantage on response tokens, 0 elsewhere
    for i, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.response)
        tokens_BT[i, :end] = torch.tensor([*row.prompt, *row.response])
        weight_BT[i, start:end] = row.advantage
    # Padding is on the right, so the causal mask is enough to hide it.
    logits_BTV = cast(torch.Tensor, model(input_ids=tokens_BT[:, :-1], use_cache=False).logits)
    logprobs_BT = logits_BTV.log_softmax(-1).gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    return -(weight_BT[:, 1:] * logprobs_BT).sum()


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: list[Row], step: int
) -> None:
    """Takes an optimizer step on the mean over all tokens (token-level loss, arXiv 2503.14476)."""
    tokens = sum(len(row.response) for row in rows)
    for batch in micro_batches(rows):
        (loss_sum(model, batch) / tokens).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = LR * min(1.0, (step + 1) / WARMUP_STEPS)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    """Trains and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.plain_loop", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="model to train")
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()

    policy = Policy(options.model, options.threads)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(options.seed)
    spent = {"generation": 0.0, "training": 0.0}  # seconds, without evaluation

    def report(step: int) -> None:
        prompts = HELD_OUT if step in (0, options.steps) else HELD_OUT_BRIEF
        score = evaluate_policy(policy, prompts, torch.Generator().manual_seed(1))
        print(
            f"| {step:4d} | {sum(spent.values()):6.1f} | {score.accuracy:8.3f} | {score.mean:6.1f}"
            f" | {score.p95:3d} | {score.truncated:9.3f} |",
            flush=True,
        )

    print("| step |      s | accuracy | length | p95 | truncated |\n|---|---|---|---|---|---|")
    report(0)
    for step in range(options.steps):
        begun_s = time.monotonic()
        rows = rollout(policy, step, options.seed, generator)
        sampled_s = time.monotonic()
        if rows:
            train_step(policy.model, optimizer, rows, step)
        spent["generation"] += sampled_s - begun_s
        spent["training"] += time.monotonic() - sampled_s
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == options.steps:
            report(step + 1)
    print(", ".join(f"{part} {seconds:.1f} s" for part, seconds in spent.items()))


if __name__ == "__main__":
    main()
