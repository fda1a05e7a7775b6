"""Samples tokens inside transformers' continuous batching: seeds, temperatures, probes.

Turns the scores of a batch into one token and its logprob per request. A draw depends on
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

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTemperatureLogitsWarper,
)

_ROWS = 64  # requests whose float64 sums are held at once: V may be 150,000
_HALF = 31  # bits of a row of the int32 tensor; its sign stays free
_MASK = (1 << 64) - 1
NOT_FORCED, LIKELIEST = -1, -2


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

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.fill_(self._default)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        draws = [r.state.logit_processor_kwargs.get("draw") for r in requests_with_new_token]
        values = [self._default if draw is None else self._of(draw) for draw in draws]
        return torch.tensor(values, dtype=torch.int32)

    def __call__(self, scores: Any, tensor_arg: Tensor) -> Any:
        self.values_N = tensor_arg[: scores.size(0)]
        return scores


class TokenSampling:
    """Makes the logits processors of an engine, and samples its tokens."""

    def __init__(self) -> None:
        self._high = _Row(Draw.next_bits)  # first: the others read what it has made
        self._low = _Row(lambda draw: draw.low)
        self._forced = _Row(lambda draw: draw.forced, NOT_FORCED)

    def processors(self) -> ContinuousBatchingLogitsProcessorList:
        """Return the processors of `add_request(temperature=, draw=)` for the manager."""
        temperature = ContinuousBatchingTemperatureLogitsWarper(TemperatureLogitsWarper(1.0))
        rows: list[Any] = [temperature, self._high, self._low, self._forced]
        made = ContinuousBatchingLogitsProcessorList(LogitsProcessorList(rows))
        made.tensors_required = len(rows)  # it counts only those that it has converted itself
        return made

    def sample_tokens(self, scores: Tensor, output_ids: Tensor) -> None:
        """Replace `ModelRunner._sample`: write tokens and, as float32 bits, logprobs.

        Args:
            scores: shape (1, N, V), float32, divided by the temperature.
            output_ids: int32, shape (2, at least N); written.
        """
        tokens_N, logprobs_N = draw_tokens(
            scores[0], self._high.values_N, self._low.values_N, self._forced.values_N
        )
        count = len(tokens_N)
        output_ids[0, :count].copy_(tokens_N)
        output_ids[1, :count].copy_(logprobs_N.view(dtype=torch.int32))


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
