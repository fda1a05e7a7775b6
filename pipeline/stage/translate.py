"""Messages become events, and commands become messages. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from pipeline.coordinator import events
from pipeline.coordinator.events import AnyEvent, EngineJoined, Generate, Tokens
from pipeline.data.dataset import Dataset
from pipeline.wire.fields import Drawing
from pipeline.wire.messages import (
    CloseVersion,
    Floats,
    FromPeer,
    GroupFailed,
    GroupTrained,
    Heartbeat,
    Ints,
    Join,
    LegTimes,
    OldLogprobs,
    OutOfMemory,
    Published,
    Request,
    Saved,
    Shutdown,
    Span,
    Spans,
    StepDone,
    StepSkipped,
    TokenBatch,
    TrainGroup,
    VersionClosed,
    WeightsFailed,
    WeightsLoaded,
    WireError,
)

_BOTH = (Heartbeat, Spans)
_SAYS: dict[str, tuple[type, ...]] = {
    "engine": (*_BOTH, WeightsLoaded, WeightsFailed),
    "learner": (
        *(*_BOTH, GroupTrained, GroupFailed, OldLogprobs, VersionClosed, OutOfMemory),
        *(StepDone, StepSkipped, Published, Saved, Shutdown),
    ),
}
"""role -> the messages that it may send once it has joined."""


def role_violation(join: Join, message: FromPeer, weights: Sequence[str], newest: int) -> str:
    """Returns why this peer may not send this message; '' if it may.

    Args:
        weights: the directories that weights may be published in.
        newest: policy version; -1: none yet.
    """
    what = type(message).__name__
    if not isinstance(message, _SAYS[join.role]):
        return f"{what} is no message of role {join.role}"
    if isinstance(message, OldLogprobs) and not all(p.adds_up() for p in message.pieces):
        return f"{what}: logprobs and entropies are float32, as many of each"
    if not isinstance(message, StepDone | Published):
        return ""
    manifest = message.manifest
    version = message.version if isinstance(message, StepDone) else message.manifest.version
    due = newest + isinstance(message, StepDone)
    if newest >= 0 and version != due:
        return f"{what} of version {version}, {due} was due"
    if join.rank == 0 and manifest is None:
        return f"{what} of rank 0 without a manifest"
    if manifest is None:
        return ""
    if join.rank:
        return f"{what} with a manifest of rank {join.rank}: rank 0 publishes"
    if manifest.version != version:
        return f"{what} of version {version} with the manifest of {manifest.version}"
    below, _, name = manifest.directory.rpartition("/")
    if below not in weights or name in ("", ".", ".."):
        return f"{what}: weights in {manifest.directory!r:.200}, not in {' or '.join(weights)}"
    return ""


def engine_joined(join: Join, epoch: int) -> EngineJoined:
    return EngineJoined(engine=join.name, epoch=epoch, slots=join.slots, latency=join.latency)


def event_of(name: str, rank: int, message: FromPeer) -> AnyEvent:
    """Makes the coordinator's event of a peer's message.

    Raises WireError for one that means nothing to it (joins, heartbeats).
    """
    match message:
        case WeightsLoaded(version=version, gaps=gaps):
            # Of several figures `max` may overlook a NaN.
            gap = max((g if g >= 0 else math.inf for g in gaps.values()), default=0.0)
            return events.WeightsLoaded(
                engine=name,
                version=version,
                gap=gap,
                proved=message.proved,
                tensors_checked=message.tensors_checked,
                tensors=message.tensors,
                paced=message.paced,
            )
        case WeightsFailed(version=version, why=why):
            return events.WeightsFailed(engine=name, version=version, why=why)
        case GroupTrained(group=group, tokens=tokens, metrics=metrics):
            return events.GroupTrained(
                rank=rank, group=group, tokens=tokens, metrics=_finite(metrics)
            )
        case GroupFailed(group=group, why=why):
            return events.GroupFailed(rank=rank, group=group, why=why)
        case OldLogprobs(version=version, pieces=pieces):
            return events.OldLogprobs(rank=rank, version=version, pieces=pieces)
        case VersionClosed(version=version):
            return events.VersionClosed(rank=rank, version=version)
        case StepDone(step=step, version=version, metrics=metrics):
            return events.StepDone(rank=rank, step=step, version=version, metrics=_finite(metrics))
        case StepSkipped(step=step, why=why):
            return events.StepSkipped(rank=rank, step=step, why=why)
        case OutOfMemory(why=why):
            return events.LearnerLost(rank=rank, why=why)
        case Published(manifest=manifest):
            return events.Published(version=manifest.version)
        case _:
            raise WireError(f"{name}: {type(message).__name__} is nothing to decide about")


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Leaves out metrics that are no numbers."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def tokens_event(
    header: TokenBatch, tokens: Ints, logprobs: Floats, now: float, offset_s: float = 0.0
) -> Tokens:
    """One data-plane frame that came at `now`; `offset_s` is added to the engine's clock."""
    return Tokens(
        engine=header.engine,
        epoch=header.epoch,
        sequence=header.sequence,
        sampled=header.sampled,
        chunks=header.chunks,
        tokens=tokens.tobytes(),
        logprobs=logprobs.tobytes(),
        sent_s=_past(header.sent_at_s + offset_s, now),
        times=tuple(leg_to_stage_clock(times, now, offset_s) for times in header.times),
    )


def _past(moment: float, now: float) -> float:
    """Clamps a peer's timestamp to [0, now]."""
    return min(max(moment, 0.0), now)


def leg_to_stage_clock(times: LegTimes, now: float, offset_s: float) -> LegTimes:
    """A leg's times in the stage's clock, in their order."""
    last = _past(times.last_s + offset_s, now)
    first = times.first_s and _past(times.first_s + offset_s, last)
    begun = _past(times.begun_s + offset_s, first or last)
    return LegTimes(times.trajectory, times.leg, begun, first, last)


def to_stage_clock(span: Span, now: float, offset_s: float) -> Span:
    """A peer's work in the stage's clock, in its order."""
    end = _past(span.end_s + offset_s, now)
    start = _past(span.start_s + offset_s, end)
    asked = tuple(_past(moment + offset_s, start) for moment in span.asked_s)
    return Span(span.what, start, end, span.of, asked)


def transit_s(sent_s: float, came_s: float, now: float, offset_s: float) -> float:
    """Seconds that streamed tokens took to a peer, by our clock and theirs."""
    return _past(came_s + offset_s, now) - _past(sent_s, now)


def request_of(command: Generate, prompt: bytes, drawing: Drawing) -> Request:
    """A leg with its prompt's tokens."""
    return Request(
        trajectory=command.trajectory,
        leg=command.leg,
        prompt=prompt,
        prefix=command.prefix,
        max_tokens=command.max_tokens,
        drawing=drawing,
        seed=command.seed,
        paced=command.kind == "train",
    )


def with_prompts(
    command: events.TrainGroup | events.CloseVersion, sets: Mapping[str, Dataset]
) -> TrainGroup | CloseVersion:
    """A learner's order with the prompts' tokens, those of variants included."""
    variants, data = command.variants, sets["train"]
    if isinstance(command, events.TrainGroup):
        return TrainGroup(
            step=command.step,
            group=command.group,
            prompt=data.prompt_tokens(command.prompt),
            members=tuple(
                msgspec.structs.replace(m, prompt=data.prompt_tokens(command.prompt, variant))
                if (variant := variants.get(m.trajectory))
                else m
                for m in command.members
            ),
        )
    return CloseVersion(
        version=command.version,
        prompts={group: data.prompt_tokens(p) for group, p in command.prompts.items()},
        chunks=command.chunks,
        own={
            chunk.trajectory: data.prompt_tokens(command.prompts[chunk.group], variant)
            for chunk in command.chunks
            if (variant := variants.get(chunk.trajectory))
        },
    )
