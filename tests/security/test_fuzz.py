"""Frames that nobody should send: refused as WireError, whatever they are, and nothing grows."""

from __future__ import annotations

import gc
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.wire.codec import decode_from_peer, decode_to_peer, decode_tokens, sender_of
from pipeline.wire.messages import WireError
from tests.security import mutants
from tests.security.mutants import COMMANDS, REPORTS, VOCABULARY, mutant, mutant_parts

FRAMES = 100_000
GROWTH_BYTES = 16 << 20
"""What a decoder may keep; one leaked kilobyte a frame would be 30 MB."""


def at_the_stage(rng: random.Random) -> None:
    decode_from_peer(mutant(rng.choice(REPORTS), rng))


def at_a_peer(rng: random.Random) -> None:
    decode_to_peer(mutant(rng.choice(COMMANDS), rng))


def token_frame(rng: random.Random) -> None:
    parts = mutant_parts(rng)
    sender_of(parts)
    header, tokens, logprobs = decode_tokens(parts, VOCABULARY)
    assert sum(chunk.count for chunk in header.chunks) == len(tokens) == len(logprobs)


@pytest.mark.fault("100,000 mutated frames", part="wire", by="direct")
@pytest.mark.parametrize("decode", [at_the_stage, at_a_peer, token_frame])
def test_mutated_frames_raise_nothing_but_wire_errors_and_memory_stays_flat(
    decode: Callable[[random.Random], None],
) -> None:
    """Promise: nothing but a wire error leaves the decoder, and memory grows by less than 16 MiB.
    Bound: at that frame.
    """
    rng, process = random.Random(7), psutil.Process()
    refused = before = 0
    for number in range(FRAMES // 3):
        if number == 3000:  # what is allocated once is there by now
            gc.collect()
            before = process.memory_info().rss
        try:
            decode(rng)
        except WireError:
            refused += 1
    gc.collect()
    assert process.memory_info().rss - before < GROWTH_BYTES
    assert refused > FRAMES // 6  # the mutations do break frames


class Canary:
    """Unpickled, it leaves a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.fault("a frame that is a pickle", part="wire", by="direct")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_frame_that_is_a_pickle_touches_nothing(tmp_path: Path, protocol: int) -> None:
    """Promise: it is a wire error; what it would do when unpickled does not happen.
    Bound: at that frame.
    """
    trap = tmp_path / "sprung"
    frame = pickle.dumps(Canary(trap), protocol)
    frames = [frame, *(report.replace(b"type", frame) for report in mutants.REPORTS)]
    for bad in frames:
        for decode in (decode_from_peer, decode_to_peer):
            with pytest.raises(WireError):
                decode(bad)
        with pytest.raises(WireError):
            decode_tokens([bad, bad, bad], VOCABULARY)
    assert not trap.exists()
