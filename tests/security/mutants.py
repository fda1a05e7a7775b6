"""Valid frames of every message, and what a broken or hostile peer makes of them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline.wire.codec import encode_message
from tests.pipeline.wire.test_messages import FROM_PEER, GOOD, TO_PEER

VOCABULARY = 24
REPORTS = [encode_message(message) for message in FROM_PEER]
COMMANDS = [encode_message(message) for message in TO_PEER]
TOKENS = GOOD
NASTY: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 1e308, 0.5,
    "", "e1", "l0", "../x", "\0", "x" * 1000, b"\xff" * 9, None, True, [], {}, [[]],
    {"type": "Join"},
    msgspec.msgpack.Ext(1, b"cos\nsystem\n"), msgspec.Raw(b"\xdd\xff\xff\xff\xff"),
    msgspec.Raw(b"\xdf\xff\xff\xff\xff"), msgspec.Raw(b"\xc6\xff\xff\xff\xff"),
    msgspec.Raw(b"\x91" * 5000 + b"\xc0"), msgspec.Raw(b"\xc1"), msgspec.Raw(b""),
)  # fmt: skip


def of_bytes(frame: bytes, rng: random.Random) -> bytes:
    """Bits flipped, pieces cut out, doubled, swapped, or written over."""
    found = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randrange(len(found) + 1), rng.randrange(len(found) + 1)))
        match rng.randrange(6):
            case 0 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end][:200]
            case 3:
                found[at:end] = rng.randbytes(min(9, end - at))
            case 4:
                middle = (at + end) // 2
                found[at:end] = found[middle:end] + found[at:middle]
            case _:
                found[at:at] = rng.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x91" * 2000, b"\xcb")
                )
    return bytes(found)


def of_values(frame: bytes, rng: random.Random) -> bytes:
    """The message with values that it must not have, in a place of any depth."""
    tree = msgspec.msgpack.decode(frame)
    for _ in range(rng.randint(1, 3)):
        holders = list(_holders(tree))
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                holder[rng.choice(("type", "engine", "extra", "chunks"))] = rng.choice(NASTY)
            case 1:
                holder[key] = rng.choice(holders) if rng.random() < 0.1 else [holder[key]] * 3
            case _:
                holder[key] = rng.choice(NASTY)
        if not _finite_depth(tree):
            return b""
    return msgspec.msgpack.encode(tree)


def _holders(tree: Any) -> Iterator[Any]:
    """Every list and map in it that holds something."""
    todo = [tree]
    while todo:
        at = todo.pop()
        if isinstance(at, dict | list) and at:
            yield at
            todo += at.values() if isinstance(at, dict) else at


def _finite_depth(tree: Any, depth: int = 0) -> bool:
    """Whether nothing contains itself."""
    if depth > 30:
        return False
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return all(_finite_depth(item, depth + 1) for item in inner)


def mutant(frame: bytes, rng: random.Random) -> bytes:
    try:
        return (of_bytes if rng.random() < 0.5 else of_values)(frame, rng)
    except (TypeError, IndexError, OverflowError):  # this change cannot be written down
        return of_bytes(frame, rng)


def mutant_parts(rng: random.Random) -> list[bytes]:
    """A token frame with a wrong header, wrong numbers, or a wrong number of parts."""
    parts = list(TOKENS)
    match rng.randrange(8):
        case 0:
            del parts[rng.randrange(3)]
        case 1:
            parts.insert(rng.randrange(4), rng.choice(parts))
        case 2:
            rng.shuffle(parts)
        case 3:
            parts[1 + rng.randrange(2)] = of_bytes(parts[1], rng)
        case _:
            parts[0] = mutant(parts[0], rng)
    return parts
