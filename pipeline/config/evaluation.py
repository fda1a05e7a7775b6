"""The section `eval`: what is evaluated, how often, and how its responses are sampled."""

from __future__ import annotations

from pipeline.config import setting_types as allowed
from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PositiveShare,
)


class EvalFileConfig(Section, frozen=True, kw_only=True):
    """A set of `eval.sets`."""

    path: str
    """File, folder, pattern or task, as for `data.held_out`."""
    prompts: NonNegativeInt = 0
    """Prompts used at most, the first ones; 0: all, of a task 256."""
    samples: NonNegativeInt = 0
    """Responses for each of its prompts; 0: as `eval.samples` says."""
    k: tuple[PositiveInt, ...] = ()
    """Values of k for its pass@k; empty: those of `eval.k` if so many are sampled, or `samples`."""


class EvalConfig(Section, frozen=True, kw_only=True):
    every: NonNegativeInt = 20
    """Steps between evaluations; also before the first and after the last. 0: never."""
    samples: PositiveInt = 4
    """Responses for each held-out prompt."""
    temperature: NonNegativeFloat | None = None
    """Temperature of these responses; 0: the likeliest token (with `samples` 1, for all would be
    the same). Null: that of training."""
    top_p: PositiveShare = 1.0
    """Sample from the likeliest tokens that have this probability together, after `min_p` and
    `top_k`. 1: from all."""
    top_k: NonNegativeInt = 0
    """Sample from so many likeliest tokens. 0: from all."""
    min_p: allowed.BelowOne = 0.0
    """Sample from tokens at least this times as probable as the likeliest. 0: from all."""
    max_tokens: NonNegativeInt = 0
    """Longest response, tokens. 0: as in training, `sampling.max_tokens`."""
    k: tuple[PositiveInt, ...] = ()
    """Values of k for pass@k, at most `samples`; empty: `samples` alone."""
    greedy: bool = False
    """One more response for each prompt, at temperature 0: its mean reward is `greedy`."""
    correct: float = 1.0
    """Reward from which on a response counts as correct, for pass@k."""
    sets: dict[str, str | EvalFileConfig] = {}  # noqa: RUF012  copied by msgspec
    """More to evaluate on: a name and its file, as in `{aime: aime.jsonl}`, or its keys, as in
    `{aime: {path: aime.jsonl, samples: 16, k: [1, 16]}}`. Each has figures of its own."""
    best: str = ""
    """Figure whose best step keeps its checkpoint for good: `accuracy`, `greedy` or `pass@4` of
    `data.held_out`, or `aime/accuracy` of a set. Higher is better. Empty: none."""
