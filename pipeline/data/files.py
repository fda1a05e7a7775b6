"""Reads rows from files, folders and patterns, each with its place.

JSONL and parquet are recognized by content; a folder was written by `datasets`'
`save_to_disk`, or holds such files, of which those of the wanted split are read where their
names say one (`pipeline.data.splits`). Rows are read in the order of the files' names and
never all at once. A place is `train.jsonl:17`, lines from 1, or `train.parquet[17]`,
rows from 0. Must not know which fields are prompts.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline.config.hub import DATA_ENDINGS, NO_DATA
from pipeline.config.paths import is_pattern
from pipeline.data import dataset_card, splits
from pipeline.data.parquet_rows import Budget, TooLarge, parquet_rows
from pipeline.system.terminal_text import counted
from pipeline.system.untrusted_files import UnreadableFile, check_depth, open_regular, read_json

Row = tuple[str, dict[str, Any]]  # place, fields

_LINE_BYTES = 64 << 20  # a longer line is not a prompt
_PARQUET = b"PAR1"
_ARROW = "an Arrow file; name the folder that datasets' save_to_disk wrote, not a file in it"
_FOREIGN = {
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"ARROW1": _ARROW,
    b"\xff\xff\xff\xff": _ARROW,
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"version ": "a pointer of git-lfs; fetch the file with `git lfs pull`",
    b"<!DOCTYP": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x80\x04": "a pickle, which darts never reads; save it with to_parquet",
    b"\x80\x05": "a pickle, which darts never reads; save it with to_parquet",
    b"\x89HDF": "an HDF5 file; save it with to_parquet",
    b"SQLite f": "an SQLite database; save the table as JSONL or parquet",
    b"ORC": "an ORC file; save it as parquet",
}
_TABLES = {".csv": "CSV", ".tsv": "a table with tabs", ".txt": "plain text", ".xlsx": "a sheet"}
"""Endings of what is not told by its first bytes."""
_BOM = b"\xef\xbb\xbf"  # UTF-8; some editors write it


class DataError(Exception):
    """Prompts cannot be used; the text names every bad line, up to twenty."""


def files_of(source: str, split: str = "train") -> list[Path]:
    """List the files that `rows_of` reads, in its order. Raises DataError if there is none.

    Args:
        source: a file, a folder, or a pattern.
        split: "train" or "held_out"; selects a split of a saved folder with several.
    """
    path = Path(source)
    if is_pattern(source) and not path.exists():
        found = _fitting(source)
    elif path.is_dir():
        saved = _saved(path, split)
        found = _inside(saved, (".arrow",)) if saved else _of_split(path, split)[0]
    elif path.is_file():
        found = [path]
    else:
        raise DataError(f"{source}: no such file, folder or pattern")
    if not found:
        raise DataError(
            f"{source}: found no file, expected {', '.join(DATA_ENDINGS)} in it; name another"
            f"{_folders(path)}"
        )
    return found


def has_held_out(source: str) -> bool:
    """Whether a folder that is trained on also has prompts of a split `test` or `validation`."""
    path = Path(source)
    if not path.is_dir():
        return False
    try:
        if saved := _saved(path, "held_out"):
            return saved != path and saved != _saved(path, "train")
        return bool(_of_split(path, "held_out")[1])
    except DataError:  # the split that is trained on is its only one
        return False


def split_note(source: str, use: str) -> str:
    """Say what a folder's or a pattern's files are of other splits; "" if there are none."""
    path = Path(source)
    if path.is_dir() and _saved(path, use) is None:
        chosen, others = _of_split(path, use)
        if not others:
            kinds = sorted({file.suffix.lower() for file in chosen})
            return f"files of two kinds, {' and '.join(kinds)}" if {*kinds} > {".parquet"} else ""
        named = dataset_card.named_splits(path).get(chosen[0], "")
        named = named or splits.split_of(chosen[0].relative_to(path).as_posix())
        few = ", ".join(file.name for file in others[:3])
        return f"split {named}, without {counted(len(others), 'other file')} ({few})"
    if use == "train" and is_pattern(source) and not path.exists():
        held = [file for file in _fitting(source) if splits.split_of(file.name) not in ("", use)]
        return (
            f"{counted(len(held), 'file')} of other splits, such as {held[0].name}" if held else ""
        )
    return ""


def rows_of(source: str, split: str, problem: Callable[[str], None]) -> Iterator[Row]:
    """Yield the rows of a source. Raises DataError if a file cannot be read at all.

    Args:
        problem: called with a message for each line that is not a row.
    """
    for where, row in _rows_of(source, split, problem):
        try:
            check_depth(row, where)
        except UnreadableFile as error:
            problem(f"{error}; expected a prompt and its columns")
            continue
        yield where, row


def _rows_of(source: str, split: str, problem: Callable[[str], None]) -> Iterator[Row]:
    path = Path(source)
    saved = _saved(path, split) if path.is_dir() else None
    if saved is not None:
        yield from _saved_rows(saved)
        return
    for file in files_of(source, split):
        try:
            with open_regular(file) as opened:
                start = opened.read(8)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from error
        for magic, what in _FOREIGN.items():
            if start.startswith(magic):
                raise DataError(f"{file}: found {what}; expected JSONL or parquet")
        if (kind := _TABLES.get(file.suffix.lower())) and not start.lstrip(_BOM).startswith(b"{"):
            cure = "save it with pandas' to_parquet, or to_json(..., orient='records', lines=True)"
            raise DataError(f"{file}: found {kind}; expected JSONL or parquet: {cure}")
        yield from _parquet(file) if start.startswith(_PARQUET) else _jsonl(file, problem)


def _jsonl(path: Path, problem: Callable[[str], None]) -> Iterator[Row]:
    decoder = msgspec.json.Decoder()
    try:
        with open_regular(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE_BYTES), b""), start=1):
                if len(line) == _LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: a line of more than {_LINE_BYTES} bytes; expected one "
                        "prompt a line"
                    )
                line = line.removeprefix(_BOM) if number == 1 else line
                if not line.strip():
                    continue
                try:
                    row = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    if number == 1 and line.lstrip().startswith(b"["):
                        raise DataError(_list_of_all(path)) from None
                    why = _nan(line) or f"{error}; expected one object a line"
                    problem(f"{path}:{number}: not JSON: {why}")
                    continue
                if not isinstance(row, dict):
                    if (
                        number == 1
                        and isinstance(row, list)
                        and any(isinstance(item, dict) for item in cast(list[Any], row))
                    ):
                        raise DataError(_list_of_all(path))
                    problem(f"{path}:{number}: found {kind_of(row)}, expected an object")
                    continue
                yield f"{path}:{number}", cast(dict[str, Any], row)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _nan(line: bytes) -> str:
    """What Python's json writes and JSON does not have; "" for another fault."""
    found = re.search(rb":\s*(NaN|-?Infinity)\s*[,}]", line)
    return f"found {found[1].decode()}, which JSON does not have; write null" if found else ""


def _list_of_all(path: Path) -> str:
    cure = f"jq -c '.[]' {path.name} > {path.stem}.jsonl"
    return f"{path}:1: found one list of everything, expected one object a line: {cure}"


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow

    index = 0  # of the next row
    try:
        for row in parquet_rows(path):
            yield f"{path}[{index}]", row
            index += 1
    except TooLarge as error:
        raise DataError(f"{path}[{error.row}]: {error}") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        where = f"{path}[{index}]" if index else str(path)
        raise DataError(
            f"{where}: cannot be read as parquet: {error}; expected a complete file, write it again"
        ) from error


# --- folders -------------------------------------------------------------------------------------


def _inside(folder: Path, endings: tuple[str, ...] = DATA_ENDINGS) -> list[Path]:
    """Data files of a folder, by name."""
    return sorted(item for item in folder.iterdir() if _is_data(item, endings) and item.is_file())


def _is_data(file: Path, endings: tuple[str, ...] = DATA_ENDINGS) -> bool:
    name = file.name
    return file.suffix.lower() in endings and name not in NO_DATA and not name.startswith(".")


def _of_split(folder: Path, use: str) -> tuple[list[Path], list[Path]]:
    """Files of a folder that are read for a use, and those of other splits. Where it holds none
    itself, those in its folder `data`, or in folders with the names of splits, as on hubs."""
    named = {
        file: split for file, split in dataset_card.named_splits(folder).items() if _is_data(file)
    }
    found = _inside(folder)
    if not found:
        below = sorted(item for item in folder.iterdir() if item.is_dir())
        of_splits = [item for item in below if splits.split_of(item.name)]
        within = [item for item in below if item.name == "data"] or of_splits
        found = [file for item in within for file in _inside(item)]
    try:
        return splits.of_split(folder, sorted({*found, *named}), use, named)
    except ValueError as error:
        raise DataError(f"{folder}: {error}") from None


def _folders(path: Path) -> str:
    """What a folder without data files has instead, for a message."""
    if not path.is_dir():
        return ""
    inside = sorted(item for item in path.iterdir() if not item.name.startswith("."))
    with_files = [item.name for item in inside if item.is_dir() and _has_data(item)]
    others = [item.name for item in inside if item.is_file()]
    if with_files:
        return f": {', '.join(with_files[:9])} in it have some"
    return f"; it has {', '.join(others[:9])}" if others else ""


def _has_data(folder: Path) -> bool:
    below = (item for item in folder.iterdir() if item.is_dir())
    return bool(_inside(folder)) or any(_inside(item) for item in below)


def _fitting(pattern: str) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    return [path for path in found if path.is_file()]


# --- folders of save_to_disk ---------------------------------------------------------------------


def _saved(path: Path, split: str) -> Path | None:
    """Find the folder of a split that `save_to_disk` wrote; None if this is no such folder."""
    if (path / "state.json").is_file():
        return path
    listed = path / "dataset_dict.json"
    if not listed.is_file():
        return None
    try:
        there = read_json(listed, dict[str, list[str]])["splits"]
    except (UnreadableFile, KeyError) as error:
        why = f"not written by save_to_disk: {error}; save it again"
        raise DataError(f"{listed}: {why}") from error
    wanted = splits.WANTED[split]
    if len(there) == 1 and (split != "train" or splits.split_of(there[0]) in ("", "train")):
        wanted = tuple(there)
    chosen = next((name for name in wanted if name in there), "")
    if not chosen:
        raise DataError(
            f"{path}: has the splits {', '.join(there)}, but no {wanted[0]!r}; name one, for "
            f"example {path / there[0] if there else path / 'train'}"
        )
    return path / chosen


def _saved_rows(folder: Path) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{folder}: written by datasets' save_to_disk, but the package datasets is missing: "
            "pip install 'darts-rl[datasets]', or save it with to_parquet"
        ) from None
    try:
        saved: Any = datasets.load_from_disk(str(folder))
        for name, feature in saved.features.items():
            if hasattr(feature, "decode"):  # images and sounds stay as they are in the file
                saved = saved.cast_column(name, type(feature)(decode=False))
        budget = Budget(folder.glob("*.arrow"))
        for index, row in enumerate(saved.with_format(None)):
            budget.spend(row)
            yield f"{folder}[{index}]", cast(dict[str, Any], row)
    except DataError:
        raise
    except TooLarge as error:
        raise DataError(f"{folder}[{error.row}]: {error}") from error
    except Exception as error:  # from Arrow, the file system, or a decoder
        raise DataError(
            f"{folder}: datasets cannot read it: {type(error).__name__}: {error}; save it again"
        ) from error


# --- values --------------------------------------------------------------------------------------

_KINDS: dict[type[Any], str] = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def kind_of(value: object) -> str:
    """Name the type of a value in the user's words."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def field_of(row: dict[str, Any], name: str) -> tuple[bool, Any]:
    """Return (True if the field exists, its value); `a.b` is b inside a, or a field of that name.

    >>> field_of({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")
    (True, '4')
    """
    if name in row:
        return True, row[name]
    first, dot, rest = name.partition(".")
    inner = row.get(first)
    return (
        field_of(cast(dict[str, Any], inner), rest)
        if dot and isinstance(inner, dict)
        else (
            False,
            None,
        )
    )
