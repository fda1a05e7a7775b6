"""Compares packed, prefix-shared passes with padded batches.

    python -m launch.bench.developer.packed

Measures two ways on one thread: the learner's packed path, and a reference that pads length-sorted
sequences as plain trainers do. First it checks that both give the same logprobs and gradients.
Runs are interleaved; the table shows medians.

Axes: B sequences, L tokens of the longest, V vocabulary.
"""

# torch and transformers leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from learner.forward.lm_head import token_logprobs
from learner.forward.micro_batches import micro_batches, response_logprobs
from pipeline.tasks import chain_sums
from pipeline.wire.messages import TrainGroup, TrainMember, ints

MODEL = Path(__file__).resolve().parents[3] / "models" / "chain-sums"
MEMBERS = 8
MAX_TOKENS = 128
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A model and the groups that it is trained on together."""

    name: str
    model: Any
    packs: list[list[TrainGroup]]  # each is one call of the learner
    cap: int  # tokens of a micro-batch


def group_of(number: int, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> TrainGroup:
    def member(index: int, response: Sequence[int]) -> TrainMember:
        tokens = np.array(response, dtype="<i4")
        return TrainMember(
            trajectory=number * MEMBERS + index,
            response=tokens.tobytes(),
            behaviour=np.zeros(len(tokens), dtype="<f4").tobytes(),
            reward=0.0,
            advantage=0.0,
        )

    return TrainGroup(
        step=0,
        group=number,
        prompt=np.array(prompt, dtype="<i4").tobytes(),
        members=tuple(member(index, response) for index, response in enumerate(responses)),
    )


def chain_sums_groups(count: int, rng: random.Random) -> list[TrainGroup]:
    """Makes prompts and traces of the built-in task: on average 8 and 40 tokens, long-tailed."""
    groups: list[TrainGroup] = []
    for number in range(count):
        item = chain_sums.item("train", number)
        terms = [int(term) for term in item["prompt"][:-1].split("+")]
        traces = [chain_sums.trace(terms, rng)[0] + chain_sums.EOS for _ in range(MEMBERS)]
        prompt, *responses = (
            [chain_sums.ALPHABET.index(character) for character in text][:MAX_TOKENS]
            for text in (item["prompt"], *traces)
        )
        groups.append(group_of(number, prompt, responses))
    return groups


def random_groups(count: int, prompt: int, mean: float, rng: random.Random) -> list[TrainGroup]:
    """Makes groups of random tokens; lengths are log-normal (deviation 0.7 of the logarithm)."""

    def length() -> int:
        drawn = rng.lognormvariate(0.0, 0.7) * mean / 1.28  # 1.28: mean of that log-normal
        return min(MAX_TOKENS, max(2, round(drawn)))

    def tokens(count: int) -> list[int]:
        return [rng.randrange(8192) for _ in range(count)]

    return [
        group_of(number, tokens(prompt), [tokens(length()) for _ in range(MEMBERS)])
        for number in range(count)
    ]


def shipped_model() -> Any:
    loaded: Any = cast(Any, AutoModelForCausalLM).from_pretrained(
        MODEL, dtype=torch.float32, trust_remote_code=False
    )
    return loaded.eval()


def middle_model() -> Any:
    """Makes a Qwen3 of 29 M parameters with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


# --- the two ways ---------------------------------------------------------------------------


def packed(case: Case) -> Iterator[Tensor]:
    """Yields the logprobs of each micro-batch's response tokens, by the learner's own path."""
    for groups in case.packs:
        for batch in micro_batches(groups, case.cap, CPU):
            yield response_logprobs(case.model, batch.packed, 1.0)


def padded(case: Case, price: int = 128) -> Iterator[Tensor]:
    """Yields the same by right-padded batches of similar length, with stock attention.

    The cuts minimise padded tokens plus `price` per batch: the cheapest possible padding.
    """
    for groups in case.packs:
        rows = [(ints(g.prompt), ints(m.response)) for g in groups for m in g.members]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        lengths = [len(prompt) + len(response) for prompt, response in rows]
        cost, cuts = [0], [0]
        for end in range(1, len(rows) + 1):
            found = [
                (cost[begin] + lengths[end - 1] * (end - begin) + price, begin)
                for begin in range(end)
                if lengths[end - 1] * (end - begin) <= case.cap or begin == end - 1
            ]
            best, begin = min(found)
            cost.append(best)
            cuts.append(begin)
        end = len(rows)
        while end:
            yield _padded_batch(case.model, rows[cuts[end] : end])
            end = cuts[end]


def _padded_batch(model: Any, rows: Sequence[tuple[Any, Any]]) -> Tensor:
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    first = min(len(prompt) for prompt, _ in rows) - 1
    tokens_BL = torch.zeros((len(rows), longest), dtype=torch.long)
    mask_BT = torch.zeros((len(rows), longest - 1 - first), dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens_BL[row, :end] = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        mask_BT[row, len(prompt) - 1 - first : end - 1 - first] = True
    keep_T = torch.arange(first, longest - 1)
    logits_BTV = model(input_ids=tokens_BL, use_cache=False, logits_to_keep=keep_T).logits
    return token_logprobs(logits_BTV, tokens_BL[:, first + 1 :], 1.0)[mask_BT]


Way = Callable[[Case], Iterator[Tensor]]


@torch.no_grad()
def logprob_sum(way: Way, case: Case) -> float:
    """Returns the sum of all logprobs."""
    return sum(float(found.double().sum()) for found in way(case))


def squared_gradient(way: Way, case: Case) -> Tensor:
    """Returns the gradient of the sum of squared logprobs, which differs between tokens."""
    case.model.zero_grad()
    for found in way(case):
        found.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in case.model.parameters()])


# --- the table ------------------------------------------------------------------------------


def milliseconds(work: Callable[[Way, Case], Any], case: Case, repeats: int) -> tuple[float, float]:
    """Returns the medians of the padded and the packed way, run in turns."""
    ways: tuple[Way, Way] = (padded, packed)
    times: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            begun = time.process_time()  # one thread: other processes matter little
            work(way, case)
            times[way].append(1e3 * (time.process_time() - begun))
    first, second = (statistics.median(times[way]) for way in ways)
    return first, second


def relative_gaps(case: Case) -> tuple[float, float]:
    """Returns relative differences of the ways: sum of logprobs, and gradient."""
    expected, found = logprob_sum(padded, case), logprob_sum(packed, case)
    gradient = squared_gradient(padded, case)
    gap = float((squared_gradient(packed, case) - gradient).norm() / gradient.norm())
    if abs(found / expected - 1) > 1e-5 or gap > 1e-5:
        raise ValueError(f"{case.name}: logprobs {found} and {expected}, gradients {gap} apart")
    return abs(found / expected - 1), gap


@torch.no_grad()
def tokens_fed(way: Way, case: Case) -> int:
    """Counts tokens that go through the model's linear layers, padding included."""
    counts: list[int] = []

    def count(_module: Any, _given: Any, named: dict[str, Any]) -> None:
        counts.append(named["input_ids"].numel())

    handle = case.model.register_forward_pre_hook(count, with_kwargs=True)
    for _ in way(case):
        pass
    handle.remove()
    return sum(counts)


def cases(cap: int) -> Iterator[Case]:
    shipped = shipped_model()
    groups = chain_sums_groups(16, random.Random(1))
    yield Case("chain-sums, 16 groups together", shipped, [groups], cap)
    yield Case("chain-sums, group by group", shipped, [[group] for group in groups], cap)
    wide = random_groups(16, 32, 34, random.Random(2))
    small = [
        group_of(
            g.group,
            (ints(g.prompt) % 24).tolist(),
            [(ints(m.response) % 24).tolist() for m in g.members],
        )
        for g in wide
    ]
    yield Case("chain-sums model, prompts of 32", shipped, [small], cap)
    middle = middle_model()
    yield Case("29 M, prompts of 32, 4 groups together", middle, [wide[:4]], cap)
    yield Case("29 M, prompts of 32, group by group", middle, [[g] for g in wide[:4]], cap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each way")
    parser.add_argument("--cap", type=int, default=4096, help="tokens of a micro-batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    print(f"{'padded -> packed (ratio)':40} {'tokens fed':>22} {'forward ms':>26}", end="")
    print(f" {'forward + backward ms':>26}   equal to")
    for case in cases(options.cap):
        gap = max(relative_gaps(case))
        fed = cell_text(tokens_fed(padded, case), tokens_fed(packed, case), 0)
        print(f"{case.name:40} {fed:>22}", end="")
        for work in (logprob_sum, squared_gradient):
            print(
                f" {cell_text(*milliseconds(work, case, options.repeats)):>26}", end="", flush=True
            )
        print(f"   {gap:.0e}")


def cell_text(before: float, after: float, digits: int = 1) -> str:
    return f"{before:.{digits}f} -> {after:.{digits}f} ({after / before:.2f})"


if __name__ == "__main__":
    main()
