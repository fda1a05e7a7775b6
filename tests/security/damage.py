"""Damages files as disks, editors and strangers do: cut off, flipped, nested, of another type."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

DEEP = b"[" * 100_000 + b"]" * 100_000
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 2**62, 1e308, "", "\u001b]0;mine\u0007", "\u202e", "x" * 5000, [],
    {}, [None], [[1], {"a": 2}], {"": None}, ["\u001b[2J"] * 3,
)  # fmt: skip


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def flipped(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def not_utf8(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((b"\xff", b"\xed\xa0\x80", b"\xc3")) + content[at:]


def nested(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return rng.choice((DEEP, content[:at] + DEEP + content[at:], b'{"a":' * 50_000))


def other(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0" * 64, b"null", b"3", b'"x"', b"[]", b"{}", content * 2))


def retyped(content: bytes, rng: random.Random) -> bytes:
    """One value of a JSON document, or of a line of a JSONL file, is something else."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines)) if content.count(b"\n{") else -1
    try:
        document = json.loads(content if at < 0 else lines[at])
    except ValueError:
        return flipped(content, rng)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        entries = value.items() if isinstance(value, dict) else (
            list(enumerate(value))[:50] if isinstance(value, list) else ()
        )  # fmt: skip
        for key, inner in entries:
            places.append((value, key))
            walk(inner)

    walk(document)
    if places:
        container, key = rng.choice(places[:400])
        if isinstance(container, dict) and rng.random() < 0.2:
            del container[key]
        else:
            container[key] = rng.choice(STRANGE)
    new = json.dumps(document).encode()
    return new if at < 0 else b"\n".join([*lines[:at], new, *lines[at + 1 :]])


KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut, flipped, flipped, not_utf8, nested, other, retyped, retyped, retyped,
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(KINDS)(content, rng)
