"""Runs GRPO without darts: `python -m scripts.bench.plain_loop [--steps 60] [--seed 0]`.

Trains the warm-start model in one process: sample everything, wait for the slowest, train, repeat.
No streaming, no vLLM, no DeepSpeed. It shows that the recipe learns the task, and is the baseline
for every other way of training. It must not import darts' engines or learner, so that it shares no
bugs with them.

The table has held-out accuracy, for all and by number of terms, and lengths. Its last four columns
are the longest response over the mean one: per held-out prompt, and in the training steps since
the row before per group, per step, and in the step where that was least. Another task:
`--task long_sums --model models/long-sums --max-tokens 800 --prompts 4 --samples 16`.

Shapes: B responses of a micro-batch, T tokens, V vocabulary.
"""

# torch and transformers leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Protocol, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pipeline.tasks import chain_sums, deep_sums, long_sums, mixed_sums
from scripts.bench.sampler import Response, sample_batch

MODEL = Path(__file__).resolve().parents[2] / "models" / "chain-sums"

MAX_TOKENS = 128
PROMPTS, GROUP_SIZE = 16, 8
LR, WARMUP_STEPS = 1e-4, 5  # from 2e-4 up, accuracy is unstable late on this task
TOKENS_PER_MICRO_BATCH = 2048  # padding included
EVALUATE_EVERY = 10
HELD_OUT, HELD_OUT_BRIEF = 256, 96  # prompts of the first and last evaluation, and of others
SAMPLES = 4  # of each of them

COLUMNS = (
    *("step", "s", "accuracy", "by terms", "length", "p95", "truncated"),
    *("longest/mean", "of a group", "of a step", "least"),
)


class Task(Protocol):
    """A built-in task."""

    def generate(
        self, split: chain_sums.Split, count: int = ..., seed: int = 0
    ) -> list[chain_sums.Item]: ...


TASKS: dict[str, Task] = {
    "chain_sums": chain_sums,
    "deep_sums": deep_sums,
    "long_sums": long_sums,
    "mixed_sums": mixed_sums,
}


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
    tail: float  # longest of a prompt / mean of the prompt, mean over prompts
    by_terms: dict[int, float]  # accuracy by depth


@dataclass(frozen=True)
class Rollout:
    """The groups of one step."""

    rows: list[Row]  # of the groups whose rewards differ
    lengths: list[list[int]]  # of every group

    @property
    def step_tail(self) -> float:
        return tail_of([length for group in self.lengths for length in group])

    @property
    def group_tail(self) -> float:
        return mean(map(tail_of, self.lengths))


def tail_of(lengths: Sequence[int]) -> float:
    """Returns how many times the mean the longest is."""
    return max(lengths) / mean(lengths)


class Policy:
    """A model and its tokenizer, in float32."""

    def __init__(self, directory: Path, threads: int, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
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
            self.model, prompts, max_tokens=self.max_tokens, eos=self.eos, generator=generator
        )

    def is_right(self, response: Response, answer: str) -> bool:
        text = cast(str, self.tokenizer.decode(response.tokens, skip_special_tokens=True))
        _, mark, given = text.rpartition("#")
        return response.ended and bool(mark) and given == answer


def evaluate_policy(
    policy: Policy,
    prompts: int,
    generator: torch.Generator,
    *,
    task: Task = chain_sums,
    samples: int = SAMPLES,
) -> Score:
    """Samples held-out prompts at temperature 1."""
    items = [item for item in task.generate("held_out", prompts) for _ in range(samples)]
    responses = policy.sample_responses(
        [policy.encode_text(item["prompt"]) for item in items], generator
    )
    right = [policy.is_right(r, i["answer"]) for r, i in zip(responses, items, strict=True)]
    by_terms: dict[int, list[bool]] = {}
    for item, is_right in zip(items, right, strict=True):
        by_terms.setdefault(item["terms"], []).append(is_right)
    lengths = [len(response.tokens) for response in responses]
    return Score(
        accuracy=mean(right),
        mean=mean(lengths),
        p95=sorted(lengths)[int(0.95 * (len(lengths) - 1))],
        truncated=mean(not response.ended for response in responses),
        tail=mean(tail_of(lengths[i : i + samples]) for i in range(0, len(lengths), samples)),
        by_terms={terms: mean(found) for terms, found in sorted(by_terms.items())},
    )


def rollout(
    policy: Policy, items: Sequence[chain_sums.Item], generator: torch.Generator
) -> Rollout:
    """Samples a group for each item; keeps the rows of those whose rewards differ.

    The advantage is `reward - mean of the group`, not divided by the deviation
    (Dr. GRPO, arXiv 2503.20783); a group of equal rewards has none and is dropped.
    """
    prompts = [policy.encode_text(item["prompt"]) for item in items]
    responses = policy.sample_responses([p for p in prompts for _ in range(GROUP_SIZE)], generator)
    rows: list[Row] = []
    lengths: list[list[int]] = []
    for index, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        group = responses[index * GROUP_SIZE : (index + 1) * GROUP_SIZE]
        rewards = [float(policy.is_right(response, item["answer"])) for response in group]
        if min(rewards) < max(rewards):
            rows += [
                Row(prompt, response.tokens, reward - mean(rewards))
                for response, reward in zip(group, rewards, strict=True)
            ]
        lengths.append([len(response.tokens) for response in group])
    return Rollout(rows, lengths)


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
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: list[Row], lr: float
) -> None:
    """Takes an optimizer step on the mean over all tokens (token-level loss, arXiv 2503.14476)."""
    tokens = sum(len(row.response) for row in rows)
    for batch in micro_batches(rows):
        (loss_sum(model, batch) / tokens).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()


def table_row(step: int, seconds: float, score: Score, since: Sequence[Rollout]) -> str:
    """Writes a row of the table: an evaluation, and the lengths of the steps before it."""
    depths = " ".join(f"{accuracy:.2f}" for accuracy in score.by_terms.values())
    tails = [rollout.step_tail for rollout in since]
    trained = (
        (mean(rollout.group_tail for rollout in since), mean(tails), min(tails)) if since else ()
    )
    columns = [f"{step:4d}", f"{seconds:6.1f}", f"{score.accuracy:8.3f}", depths]
    columns += [f"{score.mean:6.1f}", f"{score.p95:3d}", f"{score.truncated:9.3f}"]
    columns += [f"{score.tail:6.2f}", *(f"{tail:5.2f}" for tail in trained)]
    columns += [""] * (len(COLUMNS) - len(columns))
    return f"| {' | '.join(columns)} |"


def main() -> None:
    """Trains and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.plain_loop", description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="chain_sums", help="what to train on")
    parser.add_argument("--model", type=Path, default=MODEL, help="model to train")
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="groups of a step")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate after the warm-up")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="limit of a response")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each held-out prompt")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()

    task = TASKS[options.task]
    items = task.generate("train", options.steps * options.prompts, options.seed)
    policy = Policy(options.model, options.threads, options.max_tokens)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(options.seed)
    spent = {"generation": 0.0, "training": 0.0}  # seconds, without evaluation
    since: list[Rollout] = []  # the steps since the last evaluation
    tails: list[float] = []  # of every step

    def report(step: int) -> None:
        responses = SAMPLES * (HELD_OUT if step in (0, options.steps) else HELD_OUT_BRIEF)
        score = evaluate_policy(
            policy,
            responses // options.samples,
            torch.Generator().manual_seed(1),
            task=task,
            samples=options.samples,
        )
        print(table_row(step, sum(spent.values()), score, since), flush=True)
        since.clear()

    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    report(0)
    for step in range(options.steps):
        begun_s = time.monotonic()
        first = step * options.prompts
        drawn = [items[(first + i) % len(items)] for i in range(options.prompts)]
        sampled = rollout(policy, drawn, generator)
        sampled_s = time.monotonic()
        since.append(sampled)
        tails.append(sampled.step_tail)
        if sampled.rows:
            lr = options.lr * min(1.0, (step + 1) / WARMUP_STEPS)
            train_step(policy.model, optimizer, sampled.rows, lr)
        spent["generation"] += sampled_s - begun_s
        spent["training"] += time.monotonic() - sampled_s
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == options.steps:
            report(step + 1)
    print(", ".join(f"{part} {seconds:.1f} s" for part, seconds in spent.items()))
    print(f"longest/mean of a step is above 3 in {sum(tail > 3 for tail in tails)} of {len(tails)}")


if __name__ == "__main__":
    main()
