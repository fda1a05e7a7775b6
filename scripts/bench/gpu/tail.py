"""Gives a model with random weights responses whose lengths are heavy-tailed within a prompt.

Random weights give all tokens nearly the same probability, so that a set of stop tokens makes
lengths geometric, whatever the prompt: the longest of 8 is 2.7 times their mean on average. Here
every token has one of two kinds, and the model itself draws the lengths from a mixture:

- a token is followed by one of its own kind, almost always; the first is drawn evenly from the
  vocabulary, a quarter of which is of the kind `long`;
- after a token of the kind `short` a stop token is more likely than after one of the kind `long`.

So a response decides with its first token, and lengths are a mixture of two geometric ones, three
parts with the mean `short` and one with the mean `long`. It takes two coordinates of the residual
stream: embeddings hold a token's kind in the first and 1 in the second, no layer writes to them,
and the output layer, which is the embedding, reads them through the last norm's scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

LONG_SHARE = 0.25
"""Share of the vocabulary that is of the kind `long`, and so of the responses."""
_STAY = 4.0  # logit by which a token of the same kind is likelier, and one of the other less so
_KIND, _ONE = 0, 1  # coordinates of the residual stream


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """Mean lengths of the two kinds of responses, tokens."""

    short: int
    long: int

    @property
    def mixed(self) -> float:
        """The mean of all responses.

        >>> Means(short=12, long=144).mixed
        45.0
        """
        return (1.0 - LONG_SHARE) * self.short + LONG_SHARE * self.long


def kinds_of(vocabulary: int, neutral: int, stops: Sequence[int]) -> torch.Tensor:
    """Returns -1 for tokens of the kind `short`, 1 for `long`, and 0 for the others.

    Args:
        vocabulary: number of tokens.
        neutral: the first tokens, of which prompts consist.
        stops: they are of no kind.
    """
    kinds_V = torch.full((vocabulary,), -1.0)
    kinds_V[:: round(1.0 / LONG_SHARE)] = 1.0
    kinds_V[:neutral] = 0.0
    kinds_V[list(stops)] = 0.0
    return kinds_V


@torch.no_grad()
def add_tail(model: Any, neutral: int, stops: Sequence[int], means: Means) -> None:
    """Changes a Qwen2 model with random weights and a tied output layer.

    Args:
        model: the causal LM.
        neutral: number of the first tokens, of which prompts consist.
        stops: tokens that end a response.
        means: of the lengths to draw.
    """
    embedding_VH = model.get_input_embeddings().weight
    kinds_V = kinds_of(len(embedding_VH), neutral, stops).to(embedding_VH)
    short, long = int((kinds_V < 0).sum()), int((kinds_V > 0).sum())
    # odds of a stop after either kind: len(stops) * exp(more + tilt) / (short * exp(_STAY)) = odds
    # of `short`, and with -tilt those of `long`
    of_short, of_long = (1.0 / (mean - 1.0) for mean in (means.short, means.long))
    tilt = 0.5 * math.log(of_short * short / (of_long * long))
    more = math.log(of_short * short / len(stops)) + _STAY - tilt
    size = float(embedding_VH.float().norm(dim=-1).mean())  # of a coordinate
    embedding_VH[:, _KIND] = size * kinds_V
    embedding_VH[:, _ONE] = size * (kinds_V != 0)
    embedding_VH[list(stops), _KIND] = -size * tilt / _STAY
    embedding_VH[list(stops), _ONE] = 2.0 * size  # a difference of 1 to the tokens of either kind
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[[_KIND, _ONE]] = 0.0
        layer.mlp.down_proj.weight[[_KIND, _ONE]] = 0.0
    scale = _last_scale(model, kinds_V.nonzero().squeeze(-1))
    model.model.norm.weight[_KIND] = _STAY / (scale * size**2)
    model.model.norm.weight[_ONE] = more / (scale * size**2)


def _last_scale(model: Any, tokens: torch.Tensor) -> float:
    """Returns by what the last norm multiplies its input on average, its weight left out."""
    seen: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_hook(
        lambda _module, given, _out: seen.append(given[0].float())
    )
    try:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(tokens), (4, 64), generator=generator).to(tokens.device)
        model(input_ids=tokens[drawn], use_cache=False)
    finally:
        hook.remove()
    return float(seen[0].pow(2).mean(-1).rsqrt().mean())
