"""Reads the rows of a parquet file without unfolding more than a file of its size may hold.

A few kilobytes of parquet can stand for terabytes: one long text to which every row refers, runs
of equal values, prefixes, compression. So texts are read as they are stored, a dictionary and
places in it, and what they unfold to is counted before it is done. Must not know which fields are
prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pipeline.data.plain_values import Unreadable

LEAST_BYTES = 512 << 20
"""What a file of any size may unfold to."""
MOST_TIMES = 100
"""What a file may unfold to, in its own sizes: text that is compressed well has 20."""
_ROWS = 1024  # unfolded at once
_FEW_ROWS = 16  # where texts come unfolded
_OF_A_VALUE, _OF_A_ROW = 64, 256  # bytes of Python's objects, about


class TooLarge(Exception):
    """The file unfolds to more than its size allows; `row` is the first that does not fit."""

    def __init__(self, row: int, size: int, most: int) -> None:
        super().__init__(
            f"unpacks to more than {most} bytes, from {size} on the disk; expected text of prompts,"
            " which cannot be packed so small: write it again from its source"
        )
        self.row = row


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows. Raises TooLarge, OSError and pyarrow's errors. A cell that Python cannot
    hold (text that is no UTF-8, the year 10,000) is `Unreadable`."""
    from pyarrow import parquet

    size = path.stat().st_size
    left = most = max(LEAST_BYTES, MOST_TIMES * size)
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(parquet.ParquetFile(path))
        if _stored_bytes(file.metadata) > most:
            raise TooLarge(0, size, most)
        names: list[str] = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two columns are named {twice[0]!r}")
        flat, texts = _texts(file)
        ways = [
            (opened.enter_context(parquet.ParquetFile(path, read_dictionary=columns)), rows)
            for columns, rows in ((texts, _ROWS), (flat, _FEW_ROWS))
        ]
        row = 0
        for group in range(file.metadata.num_row_groups):
            for batch in _batches(ways, group):
                left -= _unfolded_bytes(batch)
                if left < 0:
                    raise TooLarge(row, size, most)
                for found in _rows(batch):
                    yield found
                    row += 1


def _batches(ways: list[tuple[Any, int]], group: int) -> Iterator[Any]:
    """Yields the batches of a row group; where texts in lists cannot be had as they are stored,
    which pyarrow says of some, the rest comes unfolded, a few rows at a time."""
    import pyarrow

    done = 0
    for last, (file, rows) in enumerate(ways, start=1):
        skip = done
        try:
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                fresh = batch.slice(min(skip, batch.num_rows))
                skip -= batch.num_rows - fresh.num_rows
                done += fresh.num_rows
                if fresh.num_rows:
                    yield fresh
        except pyarrow.ArrowNotImplementedError:
            if last == len(ways):
                raise
        else:
            return


def _rows(batch: Any) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # also UnicodeDecodeError
        names: list[str] = batch.schema.names
        columns = [_cells(batch.column(name)) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _cells(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))


class Budget:
    """How much the rows of these files may still hold, where each row comes unfolded.

    Raises TooLarge from `spend`.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._size = sum(file.stat().st_size for file in files)
        self._most = self._left = max(LEAST_BYTES, MOST_TIMES * self._size)
        self._row = 0

    def spend(self, row: dict[str, Any]) -> None:
        self._left -= _bytes_of_value(row)
        if self._left < 0:
            raise TooLarge(self._row, self._size, self._most)
        self._row += 1


def _bytes_of_value(value: Any) -> int:
    if isinstance(value, str | bytes):
        return _OF_A_VALUE + len(value)
    if isinstance(value, dict):
        return _OF_A_ROW + sum(map(_bytes_of_value, cast(dict[str, Any], value).values()))
    if isinstance(value, list):
        return _OF_A_VALUE + sum(map(_bytes_of_value, cast(list[Any], value)))
    return _OF_A_VALUE


def _texts(file: Any) -> tuple[list[str], list[str]]:
    """(columns of text that are no part of another, all columns of text) that can be read as they
    are stored."""
    schema, metadata = file.schema, file.metadata
    texts = [
        (i, schema.column(i))
        for i in range(len(schema))
        if schema.column(i).physical_type == "BYTE_ARRAY"
        and schema.column(i).logical_type.type in ("STRING", "NONE", "JSON", "ENUM")
    ]
    whole = [column.path for i, column in texts if not _differences(metadata, i)]
    return [path for path in whole if path in schema.names], whole


def _differences(metadata: Any, column: int) -> bool:
    """Whether values are stored as what differs from the one before."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return any("DELTA_BYTE_ARRAY" in group.column(column).encodings for group in groups)


def _stored_bytes(metadata: Any) -> int:
    """Of all pages without compression, and a place for each value and row, as the file says."""
    return _OF_A_ROW * metadata.num_rows + sum(
        column.total_uncompressed_size + 4 * column.num_values
        for group in range(metadata.num_row_groups)
        for column in map(metadata.row_group(group).column, range(metadata.num_columns))
    )


def _unfolded_bytes(batch: Any) -> int:
    return sum(_bytes_of(column) for column in batch.columns) + _OF_A_ROW * batch.num_rows


def _bytes_of(array: Any) -> int:
    """Of an array once each value is an object of its own."""
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made when it is imported

    own = _OF_A_VALUE * len(array)
    if isinstance(array, pyarrow.DictionaryArray):
        kind, types = array.type.value_type, pyarrow.types
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)):
            return own  # numbers
        lengths = compute.binary_length(array.dictionary)
        return own + (compute.sum(lengths.take(array.indices)).as_py() or 0)
    if isinstance(array, pyarrow.StructArray):
        return own + sum(_bytes_of(part) for part in array.flatten())
    if isinstance(array, pyarrow.MapArray):
        return own + _bytes_of(array.keys) + _bytes_of(array.items)
    if isinstance(array, pyarrow.ListArray | pyarrow.LargeListArray | pyarrow.FixedSizeListArray):
        return own + _bytes_of(array.flatten())
    return own + array.nbytes
