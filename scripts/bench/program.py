"""Shared by the measurements: command lines, runs of every way in turn, and JSON files."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def options_parser(
    description: str | None, *, steps: int = 0, repeats: int = 0, overrides: str = ""
) -> argparse.ArgumentParser:
    """Makes a parser with `--out`, and with the other options that get a default or a meaning."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file for all results as JSON")
    if steps:
        parser.add_argument("--steps", type=int, default=steps, help="steps of a run; at least 2")
    if repeats:
        parser.add_argument("--repeats", type=int, default=repeats, help="measurements of each way")
    if overrides:
        parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)
    return parser


def ways_in_turn(ways: Iterable[str], repeats: int) -> Iterator[tuple[str, Path]]:
    """Yields every way `repeats` times, interleaved, each with a path for its run."""
    with tempfile.TemporaryDirectory(prefix="darts-bench-") as folder:
        for repeat in range(repeats):
            for way in ways:
                yield way, Path(folder) / f"{way}-{repeat}"


def write_json(path: Path | None, document: object) -> None:
    """Writes a document, if there is a path for it."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n")
