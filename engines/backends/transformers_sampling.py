"""Samples tokens inside transformers' continuous batching: seeds, truncation, probes.

Turns the scores of a batch into one token and its logprob per request, that of the distribution
which was drawn from: of the tokens that min_p, top_k and top_p leave, as vLLM applies them
(`v1/sample`). A draw depends on
the request's seed and the position only, so the same request gives the same tokens
whatever runs beside it; the library's own multinomial has one generator for all requests.
The arguments of a request are passed as rows of the library's int32 tensor, one logits
processor per row, so that captured graphs see them too.

Axes: N requests with a new token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTemperatureLogitsWarper,
)

from pipeline.wire.fields import Drawing

_ROWS = 64  # requests whose float64 sums are held at once: V may be 150,000
_HALF = 31  # bits of a row of the int32 tensor; its sign stays free
_MASK = (1 << 64) - 1
NOT_FORCED, LIKELIEST = -1, -2
_FROM_ALL = Drawing()


@dataclass(slots=True)
class Draw:
    """The random numbers of one request: one in [0, 1) of 62 bits for each position.

    >>> one, again = Draw(7), Draw(7)
    >>> [one.next_bits(), one.low] == [again.next_bits(), again.low]
    True
    """

    seed: int
    position: int = 0
    """Response tokens before the next one."""
    forced: int = NOT_FORCED
    """Take this token whatever is drawn: a probe needs its logprob. `LIKELIEST`: the likeliest."""
    low: int = 0
    """The lower half of the newest number."""
    drawing: Drawing = _FROM_ALL
    """The part of the distribution that is drawn from; its temperature is applied elsewhere."""

    def next_bits(self) -> int:
        """Return the upper half of the next position's number."""
        bits = _mixed(_mixed(self.seed & _MASK) ^ self.position) >> 2
        self.position += 1
        self.low = bits & ((1 << _HALF) - 1)
        return bits >> _HALF


def _mixed(state: int) -> int:
    """Compute the output function of splitmix64 (Steele, Lea and Flood 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


class _Row(ContinuousBatchingLogitsProcessor):
    """Carries one number per request to the sampling; does not change the scores."""

    supported_kwargs = {"draw": Draw}  # noqa: RUF012 - as the library declares it
    ignored_kwargs = ()

    def __init__(self, of: Callable[[Draw], int], default: int = 0) -> None:
        self._of, self._default = of, default
        self.values_N: Tensor = torch.empty(0, dtype=torch.int32)
        self.differs = False
        """Whether a request of this step has another number than the default."""

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.fill_(self._default)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        draws = [r.state.logit_processor_kwargs.get("draw") for r in requests_with_new_token]
        values = [self._default if draw is None else self._of(draw) for draw in draws]
        self.differs = any(value != self._default for value in values)
        return torch.tensor(values, dtype=torch.int32)

    def __call__(self, scores: Any, tensor_arg: Tensor) -> Any:
        self.values_N = tensor_arg[: scores.size(0)]
        return scores


def _bits_of(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(np.float32(value).view(np.int32))


class TokenSampling:
    """Makes the logits processors of an engine, and samples its tokens.

    Args:
        always_truncates: apply min_p, top_k and top_p in every step, not only in those in which a
            request asks for it.
    """

    def __init__(self, *, always_truncates: bool = False) -> None:
        self._always_truncates = always_truncates
        self._high = _Row(Draw.next_bits)  # first: the others read what it has made
        self._low = _Row(lambda draw: draw.low)
        self._forced = _Row(lambda draw: draw.forced, NOT_FORCED)
        self._top_k = _Row(lambda draw: draw.drawing.top_k)
        self._top_p = _Row(lambda draw: _bits_of(draw.drawing.top_p), _bits_of(1.0))
        self._min_p = _Row(lambda draw: _bits_of(draw.drawing.min_p))

    def processors(self) -> ContinuousBatchingLogitsProcessorList:
        """Return the processors of `add_request(temperature=, draw=)` for the manager."""
        temperature = ContinuousBatchingTemperatureLogitsWarper(TemperatureLogitsWarper(1.0))
        own = (self._high, self._low, self._forced, self._top_k, self._top_p, self._min_p)
        rows: list[Any] = [temperature, *own]
        made = ContinuousBatchingLogitsProcessorList(LogitsProcessorList(rows))
        made.tensors_required = len(rows)  # it counts only those that it has converted itself
        return made

    def sample_tokens(self, scores: Tensor, output_ids: Tensor) -> None:
        """Replace `ModelRunner._sample`: write tokens and, as float32 bits, logprobs.

        Args:
            scores: shape (1, N, V), float32, divided by the temperature.
            output_ids: int32, shape (2, at least N); written.
        """
        scores_NV = scores[0]
        if self._always_truncates or self._asks_for_a_part():
            scores_NV = likely_tokens(
                scores_NV,
                self._min_p.values_N.view(torch.float32),
                self._top_k.values_N,
                self._top_p.values_N.view(torch.float32),
            )
        tokens_N, logprobs_N = draw_tokens(
            scores_NV, self._high.values_N, self._low.values_N, self._forced.values_N
        )
        count = len(tokens_N)
        output_ids[0, :count].copy_(tokens_N)
        output_ids[1, :count].copy_(logprobs_N.view(dtype=torch.int32))

    def _asks_for_a_part(self) -> bool:
        return any(row.differs for row in (self._top_k, self._top_p, self._min_p))


def likely_tokens(scores_NV: Tensor, min_p_N: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Set the scores of tokens that may not be drawn to -inf; the likeliest may always be.

    Args:
        scores_NV: logits, float32.
        min_p_N: least probability over that of the likeliest token; 0: all.
        top_k_N: number of likeliest tokens; 0: all. Tokens equal to the last one stay.
        top_p_N: probability, of what the others leave, that the likeliest tokens left have together
            at least; 1: all.

    >>> even = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    >>> none, all_k, all_p = torch.zeros(1), torch.zeros(1, dtype=torch.int32), torch.ones(1)
    >>> likely_tokens(even, none + 0.2, all_k, all_p).isfinite().sum().item()
    3
    >>> likely_tokens(even, none, all_k + 1, all_p).isfinite().sum().item()
    1
    >>> likely_tokens(even, none, all_k, all_p * 0.7).isfinite().sum().item()
    2
    """
    vocabulary = scores_NV.size(-1)
    sorted_NV, order_NV = scores_NV.sort(dim=-1, descending=True)
    probs_NV = sorted_NV.softmax(-1)
    # In the order of likelihood each of the three leaves a beginning.
    sorted_NV = sorted_NV.masked_fill(
        probs_NV < min_p_N.unsqueeze(-1) * probs_NV[:, :1], -torch.inf
    )
    last_N = torch.where(top_k_N > 0, top_k_N, vocabulary).clamp(max=vocabulary).long() - 1
    sorted_NV = sorted_NV.masked_fill(
        sorted_NV < sorted_NV.gather(-1, last_N.unsqueeze(-1)), -torch.inf
    )
    probs_NV = sorted_NV.softmax(-1)
    before_NV = probs_NV.cumsum(-1) - probs_NV
    beyond_NV = (before_NV >= top_p_N.unsqueeze(-1)) & (top_p_N < 1).unsqueeze(-1)
    beyond_NV[:, 0] = False
    sorted_NV = sorted_NV.masked_fill(beyond_NV, -torch.inf)
    return torch.full_like(scores_NV, -torch.inf).scatter(-1, order_NV, sorted_NV)


def draw_tokens(
    scores_NV: Tensor, high_N: Tensor, low_N: Tensor, forced_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw tokens by inverting the cumulative distribution; returns them and their logprobs (nats).

    In float64: a float32 sum over a large vocabulary would shift the rare tokens.

    Args:
        scores_NV: logits, float32.
        high_N, low_N: halves of the 62 random bits of each request.
        forced_N: a token to take instead, or `NOT_FORCED`, or `LIKELIEST`.

    >>> even = torch.zeros(3, 4)
    >>> half, end = torch.tensor([0, 1 << 30, (1 << 31) - 1], dtype=torch.int32), torch.zeros(3)
    >>> draw_tokens(even, half, end.int(), torch.tensor([-1, -1, 0]))[0].tolist()
    [0, 2, 0]
    >>> draw_tokens(torch.eye(3), end.int(), end.int(), torch.full((3,), LIKELIEST))[0].tolist()
    [0, 1, 2]
    """
    logprobs_NV = scores_NV.log_softmax(-1)
    unit_N1 = ((high_N.double() * 2**_HALF + low_N.double()) * 2.0 ** (-2 * _HALF)).unsqueeze(-1)
    found: list[Tensor] = []
    for part_NV, unit_part_N1 in zip(logprobs_NV.split(_ROWS), unit_N1.split(_ROWS), strict=True):
        sums_NV = part_NV.double().exp_().cumsum(-1)
        # Scaled by the computed sum, so that rounding never points past the last token.
        found.append(torch.searchsorted(sums_NV, unit_part_N1 * sums_NV[:, -1:], right=True))
    tokens_N = torch.cat(found).squeeze(-1).clamp_(max=scores_NV.size(-1) - 1)
    tokens_N = torch.where(forced_N == LIKELIEST, logprobs_NV.argmax(-1), tokens_N)
    tokens_N = torch.where(forced_N >= 0, forced_N.to(tokens_N.dtype), tokens_N)
    return tokens_N, logprobs_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)
