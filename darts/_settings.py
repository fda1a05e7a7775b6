"""Python values -> settings: keyword arguments and rows of data.

Settings become the `key=value` overrides of the command line, so that both mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline.config.load import dump, load
from pipeline.config.schema import Config
from pipeline.config.yaml_tree import Branch, parse, plain
from pipeline.data import plain_values

Settings = str | Path | Mapping[str, Any] | Config | None
"""A YAML file, settings as in such a file, a loaded configuration, or nothing: all defaults."""
Rows = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]
"""Rows (dicts: a list, a `datasets.Dataset`, a DataFrame), the path of a file or folder of them, or
the settings of the section `data`."""


def loaded(settings: Settings, overrides: Iterable[str]) -> Config:
    """The checked configuration. Raises ConfigError with all problems."""
    if isinstance(settings, str | Path):
        return load(Path(settings), list(overrides))
    given = as_mapping(settings) if isinstance(settings, Config) else settings or {}
    return load(None, [*as_overrides(given), *overrides])


def as_mapping(config: Config) -> dict[str, Any]:
    """A loaded configuration as the values of its YAML file."""
    tree = parse(dump(config), str, [])
    assert isinstance(tree, Branch)
    return cast(dict[str, Any], plain(tree))


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """`{"step.count": 10}` -> `["step.count=10"]`."""
    return [f"{key}={_text(value)}" for key, value in settings.items()]


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return _quoted(value) if value[:1] in ("[", "{", '"', "'") or "\n" in value else value
    return _quoted(msgspec.to_builtins(value, enc_hook=_path_as_text, str_keys=True))


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{value!r} is no setting: expected numbers, text, lists and dicts; functions are "
        "reward=, on_step= and on_eval="
    )


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- rows -------------------------------------------------------------------------------------


def rows_of(data: object) -> Iterable[Mapping[str, Any]] | None:
    """Returns the rows of a list, a `datasets.Dataset`, a pandas DataFrame or another iterable;
    None if `data` is none of these: nothing, a path, or the settings of the section `data`.

    Raises ValueError for a DatasetDict, which has several splits.
    """
    if data is None or isinstance(data, str | Path):
        return None
    if isinstance(data, Mapping):
        splits = cast(Mapping[str, Any], data)
        if hasattr(data, "column_names"):  # of `datasets`
            names = list(splits)
            raise ValueError(
                f"the data is a DatasetDict with the splits {', '.join(names)}; pass one of them: "
                f"data=splits[{names[0]!r}], held_out=splits[{names[-1]!r}]"
            )
        return None
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # a DataFrame, whose items are names
        return cast(Any, data).to_dict("records")
    return cast(Iterable[Mapping[str, Any]], data)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Writes rows as JSONL; dates, decimals and arrays become JSON's as they do in parquet files
    (docs/data.md). Raises TypeError or ValueError that names the row."""
    with path.open("w", encoding="utf-8") as file:
        count = 0
        for count, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise TypeError(f"row {count - 1} of the data is {row!r:.60}, expected a dict")
            line = json.dumps(_plain_row(row, count - 1), ensure_ascii=False, allow_nan=False)
            file.write(line + "\n")
    if not count:
        raise ValueError("the data has no rows")
    return path


def _plain_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        try:
            if isinstance(value, bytes):
                raise ValueError("is bytes; decode it")
            found[str(name)] = plain_values.plain(value)
        except ValueError as error:
            raise ValueError(
                f"row {number} of the data: {name} {error}; expected what JSON can hold: text, "
                "numbers, lists and dicts"
            ) from error
    return found
