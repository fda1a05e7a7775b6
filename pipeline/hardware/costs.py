"""Costs of engines and learners, and the hardware that presets are made from.

A decode step of an engine with `b` running sequences that hold `K` cached tokens takes
`base(b) + kv_s * K` seconds: reading the weights (or computing, whichever is longer) and
reading the cache. A learner takes so many seconds a token. Formulas from bandwidth and
peak rate only; their constants are assumptions and stand here. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import msgspec

from pipeline.hardware.latency_model import LatencyModel

_STEP_S = 6e-3
"""Launch, sampling and scheduling of a decode step on a GPU."""
_REDUCE_S = 12e-6
"""One all-reduce of a decode step between the GPUs of an engine; two a layer."""
_SEEN_CONTEXT = 1500
"""Cached tokens of a sequence that the profile handed to the coordinator assumes."""
PROFILE_PROMPT = 16
"""Tokens of the prompts with which engines are measured."""
_RUNNING = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Numbers of running sequences at which a formula is evaluated."""


@cache
def _curve(points: tuple[tuple[int, float], ...]) -> LatencyModel:
    """The line through these; kept, since a paced engine asks it in every step."""
    return LatencyModel(points)


class EngineCost(msgspec.Struct, frozen=True, kw_only=True):
    """One engine."""

    points: tuple[tuple[int, float], ...]  # (running, seconds of a decode step), cache reads apart
    kv_s: float = 0.0  # seconds a decode step takes longer for each cached token
    prefill_s: float = 0.0  # seconds a prompt token (or one computed again) holds the engine up
    load_s: float = 0.0  # seconds from a request for weights to their proof
    beside: float = 1.0  # a decode step takes so many times as long while a learner works

    def faster(self, times: float) -> EngineCost:
        """Return the cost of an engine that is so many times as fast."""
        return msgspec.structs.replace(
            self,
            points=tuple((running, seconds / times) for running, seconds in self.points),
            kv_s=self.kv_s / times,
            prefill_s=self.prefill_s / times,
        )

    def table(self, slots: int) -> tuple[float, ...]:
        """`base(b)` for b = 0..slots, seconds."""
        curve = _curve(self.points)
        return (0.0, *(curve.seconds(b) for b in range(1, slots + 1)))

    def step_s(self, running: int, cached: int, prefilled: int) -> float:
        """Seconds of one step of `running` sequences that hold `cached` tokens, `prefilled` of
        which are computed in it."""
        base_s = _curve(self.points).seconds(running) if running else 0.0
        return base_s + self.kv_s * cached + self.prefill_s * prefilled

    def profile(self, slots: int) -> tuple[tuple[int, float], ...]:
        """(running, seconds per token) as an engine measures it at its start."""
        curve = _curve(self.points)
        running = sorted({1 << n for n in range(slots.bit_length())} | {slots})
        return tuple((b, curve.seconds(b) + self.kv_s * b * _SEEN_CONTEXT) for b in running)


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What `python -m launch.bench.engine_profile` measured of one engine, alone on its core."""

    latency: tuple[tuple[int, float], ...]  # (running sequences, seconds for a token)
    request_s: float  # seconds that a request delays the engine, prefill included
    beside: float  # factor by which a token is slower while a learner works

    def cost(self) -> EngineCost:
        """Return the cost of this engine without a learner beside it."""
        return EngineCost(points=self.latency, prefill_s=self.request_s / PROFILE_PROMPT)


class LearnerCost(msgspec.Struct, frozen=True, kw_only=True):
    """One learner rank."""

    train_s: float  # forward and backward of one token
    forward_s: float = 0.0  # old and reference logprobs of one token, where a loss wants them
    group_s: float = 0.0  # whatever a group costs besides its tokens
    step_s: float = 0.0  # optimizer
    publish_s: float = 0.0  # from the optimizer's end to weights that engines can load


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU: what a vendor states, and the share of it that is assumed to be reached."""

    flops: float  # bf16, dense
    bandwidth: float  # bytes a second
    decode_flops_share: float = 0.7
    bandwidth_share: float = 0.8
    train_flops_share: float = 0.45


DEVICES = {
    "h20": Device(flops=148e12, bandwidth=4.0e12),
    "h800": Device(flops=989e12, bandwidth=3.35e12),
    "h200": Device(flops=989e12, bandwidth=4.8e12),
}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A language model, as far as it costs time."""

    parameters: float
    layers: int
    kv_bytes: int  # of the cache, a token: 2 x layers x heads of the cache x their size x 2 bytes
    active: float = 0.0  # parameters that a token passes through; 0: all
    experts: int = 0  # of a layer; a token takes `of_token`
    of_token: int = 0

    @property
    def used(self) -> float:
        return self.active or self.parameters

    def read_bytes(self, running: int) -> float:
        """Weights that a decode step reads, bf16: every expert that some sequence takes."""
        if not self.experts:
            return 2.0 * self.parameters
        dense = self.active - (self.parameters - self.active) * self.of_token / (
            self.experts - self.of_token
        )
        touched = 1.0 - (1.0 - self.of_token / self.experts) ** running
        return 2.0 * (dense + (self.parameters - dense) * touched)


SHAPES = {
    "qwen2.5-3b": Shape(parameters=3.09e9, layers=36, kv_bytes=36_864),
    "qwen2.5-7b": Shape(parameters=7.62e9, layers=28, kv_bytes=57_344),
    "qwen2.5-14b": Shape(parameters=14.8e9, layers=48, kv_bytes=196_608),
    "qwen2.5-32b": Shape(parameters=32.8e9, layers=64, kv_bytes=262_144),
    "qwen3-30b-a3b": Shape(
        parameters=30.5e9, layers=48, kv_bytes=98_304, active=3.3e9, experts=128, of_token=8
    ),
}


def engine_cost(
    shape: Shape,
    device: Device,
    gpus: int = 1,
    load_s: float = 2.0,
    *,
    fixed_s: float | None = None,
    least_s: float | None = None,
    each_s: float | None = None,
) -> EngineCost:
    """An engine on `gpus` of a kind, tensor parallel; `roofline_cost` has the further arguments,
    which replace what follows from the device.

    >>> cost = engine_cost(SHAPES["qwen2.5-7b"], DEVICES["h20"])
    >>> [round(1e3 * s, 1) for b, s in cost.profile(64) if b in (1, 32, 64)]
    [10.8, 11.6, 17.1]
    """
    bandwidth = device.bandwidth * device.bandwidth_share * gpus
    flops = device.flops * device.decode_flops_share * gpus
    reduce_s = 2 * shape.layers * _REDUCE_S if gpus > 1 else 0.0
    return roofline_cost(
        _STEP_S + reduce_s if fixed_s is None else fixed_s,
        lambda b: shape.read_bytes(b) / bandwidth if least_s is None else least_s,
        2 * shape.used / flops if each_s is None else each_s,
        kv_s=shape.kv_bytes / bandwidth,
        load_s=load_s,
    )


def roofline_cost(
    fixed_s: float,
    least_s: Callable[[int], float],
    each_s: float,
    *,
    kv_s: float = 0.0,
    load_s: float = 0.0,
) -> EngineCost:
    """An engine whose decode step with b sequences takes fixed + max(least(b), each x b) seconds.

    Args:
        fixed_s: whatever a step costs besides the model.
        least_s: seconds to read the weights, by running sequences.
        each_s: seconds to compute one token, of a prompt as well.
        kv_s: seconds to read the cache of one token.
        load_s: seconds to take new weights.
    """
    points = tuple((b, fixed_s + max(least_s(b), each_s * b)) for b in _RUNNING)
    return EngineCost(points=points, kv_s=kv_s, prefill_s=each_s, load_s=load_s)


def learner_cost(
    shape: Shape, device: Device, gpus: float, forwards: int = 1, publish_s: float = 1.0
) -> LearnerCost:
    """A rank on `gpus` of a kind, with `forwards` passes (old, reference) beside training.

    6 x parameters operations a token for forward and backward, 2 for a forward alone.
    """
    rate = device.flops * device.train_flops_share * gpus
    return LearnerCost(
        train_s=6 * shape.used / rate,
        forward_s=2 * forwards * shape.used / rate,
        step_s=1.0,
        publish_s=publish_s,
    )


class TokenCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a learner rank takes for one token."""

    logprob_s: float = 0.0  # a forward pass without gradient
    forward_s: float = 0.0  # of training
    backward_s: float = 0.0

    @property
    def train_s(self) -> float:
        return self.forward_s + self.backward_s


def token_cost(shape: Shape, device: Device, gpus: float = 1.0) -> TokenCost:
    """A rank on `gpus` of a kind: 2 x parameters operations a token forward, 4 backward.

    >>> round(1e6 * token_cost(SHAPES["qwen2.5-7b"], DEVICES["h20"]).train_s)
    686
    """
    pass_s = 2 * shape.used / (device.flops * device.train_flops_share * gpus)
    return TokenCost(logprob_s=pass_s, forward_s=pass_s, backward_s=2 * pass_s)


def hardware_named(name: str) -> tuple[Device, Shape]:
    """Find a device and a model's shape by a name such as `h20-7b`. Raises ValueError.

    >>> hardware_named("h20-7b") == hardware_named("h20-qwen2.5-7b")
    True
    """
    device, _, model = name.partition("-")
    for known, shape in SHAPES.items():
        if device in DEVICES and model in (known, known.partition("-")[2]):
            return DEVICES[device], shape
    raise ValueError(f"expected a GPU and a model, such as {', '.join(hardware_names()[:3])}")


def hardware_names() -> list[str]:
    """Return every short name that `hardware_named` takes.

    >>> hardware_names()[:2]
    ['h20-3b', 'h20-7b']
    """
    return [f"{device}-{model.partition('-')[2]}" for device in DEVICES for model in SHAPES]


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """The engines and learner ranks that the coordinator works with."""

    engines: int
    slots: int
    engine: EngineCost
    learner: LearnerCost
    ranks: int = 1
    chunk_tokens: int = 0  # 0: engines speak only when a response ends
    delay_s: float = 5e-4  # of every message
    reward_s: float = 0.0  # from the end of a response to its reward
    save_s: float = 0.0  # from a cut to its checkpoint
    tick_s: float = 1.0
    remaining: bool = False  # engines say how many tokens are to come
