"""Lines of a run's JSONL files, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.system.untrusted_files import BROKEN, MOST_BYTES, open_regular


class _What(msgspec.Struct):
    what: str


def all_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file whose lines are all complete."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def read_lines(path: Path, types: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Any]:
    """Yields the decoded lines of these kinds, in order.

    Args:
        types: `what` of the lines -> type; other kinds are skipped.
        say: called for every line that does not parse, with file and number. A last line without
            an end is still being written, or was when the run died.
    """
    kind = msgspec.json.Decoder(_What)
    decoders = {what: msgspec.json.Decoder(type_) for what, type_ in types.items()}
    try:
        file = open_regular(path)
    except OSError as error:
        say(f"{path}: skipped, cannot be read: {error.strerror}")
        return
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES), b""), start=1):
            if not line.endswith(b"\n"):
                if len(line) == MOST_BYTES:
                    why = f"a line of more than {MOST_BYTES} bytes"
                    say(f"{path}:{number}: skipped from here on, {why}")
                return
            try:
                decoder = decoders.get(kind.decode(line).what)
                found = decoder.decode(line) if decoder is not None else None
            except BROKEN as error:
                say(f"{path}:{number}: skipped, {error}")
                continue
            if found is not None:
                yield found
