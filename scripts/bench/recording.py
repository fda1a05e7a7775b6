"""Measures what `debug.record` costs the stage: seconds an event, bytes a token.

    python -m scripts.bench.recording

Frames as an engine with 64 slots sends them: 16 tokens of each of 16 sequences, token ids drawn
from a vocabulary of 150,000 and logprobs at random, which no compression makes small. After eight
frames comes a tick, which brings all to the disk, and the end of a group of eight.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.coordinator.events import AnyCommand, Report, RequestReward, Tick, Tokens
from pipeline.coordinator.state import Settings
from pipeline.recording.frames import Header
from pipeline.recording.writer import RecordingWriter
from pipeline.wire.messages import ChunkHead

CHUNKS, TOKENS, FRAMES, VOCABULARY = 16, 16, 4000, 150_000
SETTINGS = Settings(
    seed=0, steps=1, need=1, reserve=0, tries=2.0, size=8, max_tokens=4096, ranks=1,
    overlap="group", prompts=1, held_out=0, eval_every=0, eval_samples=1, checkpoint_every=0,
    stop_tokens=frozenset({1}), log_wait_s=20.0, gap_limit=1e-3,
)  # fmt: skip


def frames(rng: np.random.Generator) -> list[Tokens]:
    """Frames of one engine, each with all its tokens."""
    count = CHUNKS * TOKENS
    return [
        Tokens(
            engine="e0", epoch=0, sequence=n, sampled=n * count, sent_s=float(n),
            chunks=tuple(ChunkHead(n * CHUNKS + c, 0, 0, TOKENS, 0, "") for c in range(CHUNKS)),
            tokens=rng.integers(0, VOCABULARY, count).astype("<i4").tobytes(),
            logprobs=(-rng.exponential(0.5, count)).astype("<f4").tobytes(),
        )
        for n in range(FRAMES)
    ]  # fmt: skip


def commands() -> list[AnyCommand]:
    """What a group's end is answered with: its report, and the rewards of eight members."""
    table = [[n, "finished", 1000, -0.5, 1.0, True, [0]] for n in range(8)]
    report = Report(what="group", fields={"step": 1, "group": 1, "members": table})
    rewards = [
        RequestReward(
            kind="train", prompt=1, group=1, trajectory=n, tokens=bytes(4000), finish="stop"
        )
        for n in range(8)
    ]
    return [report, *rewards]


def main() -> None:
    """Measure and print."""
    events, answer = frames(np.random.default_rng(0)), commands()
    header = Header(
        darts="", incarnation=1, config={}, settings=SETTINGS, plugins={},
        prompt_tokens=[200], tags=[],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordingWriter(Path(folder) / "stage-0001.darts", header, print)
        before, spent, ticks = writer.size, 0.0, 0
        for number, event in enumerate(events, start=1):
            begun = time.perf_counter()
            writer.record(float(number), event, ())
            if number % 8 == 0:
                writer.record(float(number), Tick(), answer)
                ticks += 1
            spent += time.perf_counter() - begun
        begun = time.perf_counter()
        writer.close()
        spent += time.perf_counter() - begun
        size = writer.size - before
    tokens = FRAMES * CHUNKS * TOKENS
    print(f"{FRAMES} frames of {CHUNKS * TOKENS} tokens, {ticks} ends of groups")
    print(
        f"{1e6 * spent / FRAMES:.0f} us a frame, {1e6 * spent / (FRAMES * CHUNKS):.1f} us a chunk"
    )
    print(f"{size / tokens:.2f} bytes a token, {size / 2**20:.1f} MiB in all")


if __name__ == "__main__":
    main()
