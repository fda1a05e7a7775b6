"""The settings of an emulated pace: how long engines, learner and weights must take at least.

A paced run computes everything for real, and then waits until the hardware that is named would
have been done: tokens, logprobs, gradients, sockets and selection are real, and time is that of
the hardware, as far as its cost model holds (docs/performance.md).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.config.setting_types import Section
from pipeline.hardware.costs import (
    Device,
    EngineCost,
    EngineProfile,
    Shape,
    TokenCost,
    engine_cost,
    hardware_named,
    hardware_names,
    roofline_cost,
    token_cost,
)
from pipeline.plugins.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, did_you_mean
from pipeline.system import untrusted_files


class EnginePace(Section, frozen=True, kw_only=True):
    """Options of `engine.pace`: a step of b sequences takes fixed + max(least, each x b)."""

    name: str = ""
    """A GPU and a model, as `h20-7b`, or a file that `python -m launch.bench.engine_profile` wrote.
    Empty: only what the other options say."""
    fixed_ms: NonNegativeFloat | None = None
    """Milliseconds of every step besides the model. Null: those of `name`, or 0."""
    least_ms: NonNegativeFloat | None = None
    """Milliseconds to read the weights in a step. Null: those of `name`, or 0."""
    each_ms: NonNegativeFloat | None = None
    """Milliseconds to compute one token of a step, of a prompt as well. Null: those of `name`, or
    0."""
    faster: PositiveFloat = 1.0
    """Divides all of these: 2 is hardware of twice the speed."""


class LearnerPace(Section, frozen=True, kw_only=True):
    """Options of `learner.pace`."""

    name: str = ""
    """A GPU and a model, as `h20-7b`. Empty: only what the other options say."""
    gpus: PositiveFloat = 1.0
    """GPUs of one rank, for `name`."""
    logprob_us: NonNegativeFloat | None = None
    """Microseconds a token of a forward pass for logprobs. Null: those of `name`, or 0."""
    forward_us: NonNegativeFloat | None = None
    """Microseconds a token of the forward pass of training. Null: those of `name`, or 0."""
    backward_us: NonNegativeFloat | None = None
    """Microseconds a token of the backward pass. Null: those of `name`, or 0."""


class WeightsConfig(Section, frozen=True, kw_only=True):
    """How new weights travel from the learner to the engines."""

    pace: NonNegativeFloat = 0.0
    """Bytes a second at which weights are published, and at which each engine loads them, at most:
    an emulated pace. 0: as fast as here."""
    bytes: NonNegativeInt = 0
    """Bytes that count for `pace`: those of the emulated model. 0: those of the file."""


class PaceError(ValueError):
    """A pace is neither known hardware nor a readable profile; the message says which."""


def pace_name(given: str | EnginePace | LearnerPace) -> str:
    """Return the hardware or the file that a pace names; "" for none."""
    return given if isinstance(given, str) else given.name


def is_profile(name: str) -> bool:
    """Return whether a pace's name is that of a measured profile's file."""
    return name.endswith(".json")


def engine_pace(given: str | EnginePace) -> EngineCost | None:
    """Return the cost that an engine keeps to; None: its own. Raises PaceError."""
    options: EnginePace = EnginePace(name=given) if isinstance(given, str) else given
    name, own_ms = options.name, (options.fixed_ms, options.least_ms, options.each_ms)
    fixed_s, least_s, each_s = (None if ms is None else ms / 1e3 for ms in own_ms)
    if is_profile(name):
        if any(ms is not None for ms in own_ms):
            raise PaceError(f"{name} is a measured curve: the only option beside it is faster")
        cost = _read_profile(Path(name)).cost()
    elif name:
        device, shape = _hardware(name)
        cost = engine_cost(shape, device, fixed_s=fixed_s, least_s=least_s, each_s=each_s)
    elif any(own_ms):
        cost = roofline_cost(fixed_s or 0.0, lambda _: least_s or 0.0, each_s or 0.0)
    elif options.faster != 1.0:
        raise PaceError("faster than what? Name the hardware, as in {name: h20-7b, faster: 2}")
    else:
        return None
    return cost.faster(options.faster)


def learner_pace(given: str | LearnerPace) -> TokenCost | None:
    """Return the cost that a learner rank keeps to; None: its own. Raises PaceError."""
    options: LearnerPace = LearnerPace(name=given) if isinstance(given, str) else given
    cost = TokenCost()
    if options.name:
        device, shape = _hardware(options.name)
        cost = token_cost(shape, device, options.gpus)
    given_us = {
        "logprob_s": options.logprob_us,
        "forward_s": options.forward_us,
        "backward_s": options.backward_us,
    }
    own = {name: us / 1e6 for name, us in given_us.items() if us is not None}
    cost = msgspec.structs.replace(cost, **own)
    return None if cost == TokenCost() else cost


def least_seconds(section: WeightsConfig, size: int) -> float:
    """Return the seconds that weights in a file of so many bytes take at least."""
    return (section.bytes or size) / section.pace if section.pace else 0.0


def paced_text(engine: str | EnginePace, learner: str | LearnerPace, weights: WeightsConfig) -> str:
    """Say in a few words what is emulated, for whatever shows figures; "" for nothing.

    >>> paced_text("h20-7b", "", WeightsConfig())
    'h20-7b'
    >>> paced_text("h20-7b", LearnerPace(backward_us=100), WeightsConfig(pace=1e10))
    'h20-7b, learner backward_us 100, weights 10 GB/s'
    """
    parts = [_words(engine), f"learner {_words(learner)}".removesuffix("learner ")]
    parts += [f"weights {weights.pace / 1e9:g} GB/s"] if weights.pace else []
    return ", ".join(part for part in parts if part)


def _words(pace: str | EnginePace | LearnerPace) -> str:
    """The name, or the file's, and the options that are not at their defaults."""
    if isinstance(pace, str):
        return Path(pace).name if is_profile(pace) else pace
    default = type(pace)()
    options = {
        name: value
        for name, value in msgspec.structs.asdict(pace).items()
        if name != "name" and value != getattr(default, name)
    }
    return " ".join([_words(pace.name), *(f"{n} {v:g}" for n, v in options.items())]).strip()


def _hardware(name: str) -> tuple[Device, Shape]:
    try:
        return hardware_named(name)
    except ValueError as error:
        near = did_you_mean(name, hardware_names())
        raise PaceError(f"{name!r} is no hardware that is known: {error}{near}") from error


def _read_profile(path: Path) -> EngineProfile:
    try:
        return untrusted_files.read_json(path, EngineProfile)
    except untrusted_files.UnreadableFile as error:
        why = "no profile of launch.bench.engine_profile"
        raise PaceError(f"{path}: {why}: {error.why}") from error
