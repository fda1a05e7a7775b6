"""Supervised warm start: traces of a task -> a small Qwen3 checkpoint.

Invariant: recipe, seed and number of steps determine the data and the schedule; nothing
depends on the clock. Trains and returns float32; the caller stores it.

Shapes: B traces of a micro-batch, T tokens.
"""

# torch and transformers leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false

import math
import time
from collections.abc import Callable
from itertools import islice
from random import Random

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from launch.warm_start.recipes import Recipe
from pipeline.tasks import chain_sums

VOCABULARY = 24
PAD_ID = chain_sums.ALPHABET.index(chain_sums.PAD)
EOS_ID = chain_sums.ALPHABET.index(chain_sums.EOS)

LR = 3e-3
WARMUP_STEPS = 50
FLAT_UNTIL = 0.3  # of all steps; then linear to zero

IGNORED = -100  # a target without loss

_ID = {character: i for i, character in enumerate(chain_sums.ALPHABET)}


def new_model(seed: int, max_tokens: int) -> Qwen3ForCausalLM:
    """Makes an untrained model of 593,984 parameters in float32."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model = Qwen3ForCausalLM(config).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name:
                parameter.normal_(0, 0.02, generator=generator)
            elif parameter.dim() == 2:
                parameter.normal_(0, 0.7 / math.sqrt(parameter.shape[1]), generator=generator)
    return model


def rate_at(step: int, steps: int) -> float:
    """Learning rate: rises over 50 steps, flat to 30% of the run, then down to zero."""
    flat_until = FLAT_UNTIL * steps
    down = (steps - step) / (steps - flat_until) if step > flat_until else 1.0
    return LR * min((step + 1) / WARMUP_STEPS, down)


def draw_trace(recipe: Recipe, rng: Random) -> tuple[list[int], int]:
    """Draws a training trace: token ids, cut to length, and how many of them are prompt."""
    question, text = recipe.draw(rng)
    cut = recipe.long_cut if rng.random() < recipe.long_share else recipe.short_cut
    return [_ID[c] for c in question + text + chain_sums.EOS][:cut], len(question)


def tensors_of(traces: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`inputs_BT` and `targets_BT`, padded on the right; prompts and padding have no target."""
    width = max(len(ids) for ids, _ in traces) - 1
    inputs_BT = torch.full((len(traces), width), PAD_ID)
    targets_BT = torch.full((len(traces), width), IGNORED)
    for row, (ids, prompt) in enumerate(traces):
        inputs_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets_BT[row, prompt - 1 : len(ids) - 1] = torch.tensor(ids[prompt:])
    return inputs_BT, targets_BT


def train_model(
    recipe: Recipe, steps: int, seed: int, say: Callable[[str], None] = print
) -> Qwen3ForCausalLM:
    """Trains a new model for `steps` steps and reports progress."""
    model = new_model(seed, recipe.max_tokens)
    rng = Random(f"warm_start/{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    begun_s = time.monotonic()
    for step in range(steps):
        drawn = [draw_trace(recipe, rng) for _ in range(sum(recipe.micro_batches))]
        traces = iter(sorted(drawn, key=lambda trace: len(trace[0])))
        tokens = sum(len(ids) - prompt for ids, prompt in drawn)
        loss = 0.0
        for size in recipe.micro_batches:
            inputs_BT, targets_BT = tensors_of(list(islice(traces, size)))
            # Padding is on the right, so the causal mask is enough to hide it.
            logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
            part = torch.nn.functional.cross_entropy(
                logits_BTV.flatten(0, 1),
                targets_BT.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            (part / tokens).backward()
            loss += part.item() / tokens
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            spent_s = time.monotonic() - begun_s
            left_s = spent_s / (step + 1) * (steps - step - 1)
            say(f"step {step:4d}  loss {loss:.3f}  {spent_s:4.0f} s, about {left_s:.0f} s left")
    return model
