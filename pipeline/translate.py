"""Messages become events, commands become messages: pure, one way each."""

from __future__ import annotations

from pipeline.events import (
    AnyEvent,
    EngineJoined,
    Place,
    StepApplied,
    StepRejected,
    Tokens,
    Trained,
    TrainingFailed,
    VersionPublished,
    WeightsRefused,
    WeightsServed,
)
from pipeline.messages import (
    Floats,
    FromPeer,
    GroupFailed,
    GroupTrained,
    Ints,
    Join,
    LegTimes,
    Published,
    Request,
    Span,
    StepDone,
    StepSkipped,
    TokenBatch,
    WeightsFailed,
    WeightsLoaded,
    WireError,
)


def engine_joined(join: Join, epoch: int) -> EngineJoined:
    return EngineJoined(engine=join.name, epoch=epoch, slots=join.slots, latency=join.latency)


def event_of(name: str, rank: int, message: FromPeer) -> AnyEvent:
    """What a peer's message means to the coordinator.

    Raises WireError for one that means nothing to it (joins, heartbeats).
    """
    match message:
        case WeightsLoaded(version=version, gaps=gaps):
            return WeightsServed(engine=name, version=version, gap=max(gaps.values(), default=0.0))
        case WeightsFailed(version=version, why=why):
            return WeightsRefused(engine=name, version=version, why=why)
        case GroupTrained(group=group, tokens=tokens, metrics=metrics):
            return Trained(rank=rank, group=group, tokens=tokens, metrics=metrics)
        case GroupFailed(group=group, why=why):
            return TrainingFailed(rank=rank, group=group, why=why)
        case StepDone(step=step, version=version, metrics=metrics):
            return StepApplied(rank=rank, step=step, version=version, metrics=metrics)
        case StepSkipped(step=step, why=why):
            return StepRejected(rank=rank, step=step, why=why)
        case Published(manifest=manifest):
            return VersionPublished(version=manifest.version)
        case _:
            raise WireError(f"{name}: {type(message).__name__} is nothing to decide about")


def tokens_event(
    header: TokenBatch, tokens: Ints, logprobs: Floats, offset_s: float = 0.0
) -> Tokens:
    """One data-plane frame; `offset_s` makes the stage's clock of the engine's."""
    return Tokens(
        engine=header.engine,
        epoch=header.epoch,
        sequence=header.sequence,
        sampled=header.sampled,
        chunks=header.chunks,
        tokens=tokens.tobytes(),
        logprobs=logprobs.tobytes(),
        sent_s=header.sent_at_s + offset_s,
        times=tuple(times_here(times, offset_s) for times in header.times),
    )


def times_here(times: LegTimes, offset_s: float) -> LegTimes:
    """A leg's times in the stage's clock."""
    if not offset_s:
        return times
    begun, first, last = times.begun_s, times.first_s, times.last_s
    first = first and first + offset_s
    return LegTimes(times.trajectory, times.leg, begun + offset_s, first, last + offset_s)


def span_here(span: Span, offset_s: float) -> Span:
    """A peer's work in the stage's clock."""
    asked = tuple(moment + offset_s for moment in span.asked_s)
    return Span(span.what, span.start_s + offset_s, span.end_s + offset_s, span.of, asked)


def request_of(command: Place, prompt: bytes, temperature: float) -> Request:
    """A leg with its prompt's tokens."""
    return Request(
        trajectory=command.trajectory,
        leg=command.leg,
        prompt=prompt,
        prefix=command.prefix,
        max_tokens=command.max_tokens,
        temperature=temperature,
        seed=command.seed,
    )
