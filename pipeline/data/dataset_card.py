"""The README.md of a data set -> its files by split, where it names them as data sets on hubs do.

Its first part, between lines of three dashes, is YAML: `configs` has `data_files`, whose patterns
are of a split each. Only a data set of one configuration, or with a default one, is told apart so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import yaml

from pipeline.system.untrusted_files import UnreadableFile, read_text

_BYTES = 1 << 20
_NAME = "README.md"


def named_splits(folder: Path) -> dict[Path, str]:
    """File -> the split that the card names for it, in its words; empty: there is no such card."""
    path = folder / _NAME
    if not path.is_file():
        return {}
    try:
        first, found, rest = read_text(path, _BYTES).partition("---\n")
        head = rest.partition("\n---")[0] if found and not first.strip() else ""
        card: Any = yaml.load(head, Loader=yaml.CSafeLoader)
    except (UnreadableFile, yaml.YAMLError, ValueError, RecursionError):  # it is prose, to us
        return {}
    configs = cast(dict[str, Any], card).get("configs") if isinstance(card, dict) else None
    known = [cast(dict[str, Any], one) for one in _list(configs) if isinstance(one, dict)]
    default = [c for c in known if c.get("default") is True or c.get("config_name") == "default"]
    [config] = default if len(default) == 1 else known if len(known) == 1 else [{}]
    return {
        file: split
        for split, pattern in _patterns(config.get("data_files"))
        for file in _fitting(folder, pattern)
    }


def _patterns(given: Any) -> Iterator[tuple[str, str]]:
    """(split, pattern) of each of `data_files`, which has four forms."""
    if isinstance(given, dict):
        pairs = [*cast(dict[Any, Any], given).items()]
    else:
        entries = _list(given)
        pairs = [
            (one.get("split", "train"), one.get("path")) if isinstance(one, dict)
            else ("train", one)
            for one in entries
        ]  # fmt: skip
    for split, paths in pairs:
        yield from ((str(split), one) for one in _list(paths) if isinstance(one, str))


def _list(given: Any) -> list[Any]:
    return cast(list[Any], given) if isinstance(given, list) else [] if given is None else [given]


def _fitting(folder: Path, pattern: str) -> list[Path]:
    parts = PurePosixPath(pattern).parts
    if not parts or PurePosixPath(pattern).is_absolute() or ".." in parts:
        return []
    try:
        return [path for path in sorted(folder.glob(pattern)) if path.is_file()]
    except (ValueError, NotImplementedError, OSError):
        return []
