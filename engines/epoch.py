"""What a worker keeps of the legs that the stage has asked it for since one welcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engines.chunker import Chunker, Key
from engines.text_search import FirstMarker
from pipeline.wire.messages import LegTimes

LegStart = tuple[float, float]  # when a leg began, and its first token came (0.0: none yet)


@dataclass(slots=True)
class Epoch:
    """State that belongs to one welcome; a later welcome discards it."""

    incarnation: int
    number: int
    flusher: Chunker
    sequence: int = 0
    legs: dict[Key, str] = field(default_factory=dict[Key, str])  # -> id of the engine's request
    aborted: set[Key] = field(default_factory=set[Key])
    times: dict[Key, LegStart] = field(default_factory=dict[Key, LegStart])
    ended: dict[Key, LegTimes] = field(default_factory=dict[Key, LegTimes])  # not sent yet
    markers: dict[Key, FirstMarker] = field(default_factory=dict[Key, FirstMarker])
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    flush_planned: bool = False
    current: bool = True
