"""Traces as files: Parquet, so that others can read them. docs/traces.md describes the columns.

Everything is a row, the names of tenants and files too, so a reader needs the table and nothing else. pyarrow does the
work (the extra `lab`); what a file has beside its rows is one line of JSON: the format's version, and `roles`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from controller.lab.events import Events
from controller.lab.outputs import check_replaceable
from sharedfs.common.errors import CallerMistake

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:  # it is optional
    pa = pq = None

VERSION = 1
_METADATA = b"sharedfs.trace"
_COLUMNS = {
    "time_us": np.int64,
    "event": np.uint8,
    "tenant": np.int32,
    "file": np.int32,
    "first_page": np.int64,
    "last_page": np.int64,
    "value": np.int64,
}
_BATCH_ROWS = 1 << 20


def need_pyarrow() -> None:
    """Raises CallerMistake when there is no pyarrow."""
    if pa is None:
        raise CallerMistake(f"traces need pyarrow, install it with: {sys.executable} -m pip install pyarrow")


def _schema(roles: Mapping[str, int]) -> Any:
    kinds = {np.int64: pa.int64(), np.uint8: pa.uint8(), np.int32: pa.int32()}
    fields = [pa.field(name, kinds[kind], nullable=False) for name, kind in _COLUMNS.items()]
    told = json.dumps({"version": VERSION, "roles": dict(roles)}).encode()
    return pa.schema([*fields, pa.field("name", pa.string())], {_METADATA: told})


class TraceWriter:
    """Writes a trace; it is complete, and can be read, when it is closed.

    Raises CallerMistake when something is at `path` that is no trace: it would be lost.
    """

    def __init__(self, path: Path, roles: Mapping[str, int] | None = None) -> None:
        need_pyarrow()
        check_replaceable(path, "trace", _is_trace)
        self._schema = _schema(roles or {})
        self._waiting: list[Any] = []
        self._waiting_rows = 0
        self.rows = 0
        # Times rise, so their differences are small; zstd finds the rest.
        encoding = {"time_us": "DELTA_BINARY_PACKED", "first_page": "DELTA_BINARY_PACKED"}
        plain = [name for name in self._schema.names if name not in encoding]
        self._file = pq.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=plain, column_encoding=encoding
        )

    def write(self, events: Events) -> None:
        """Rows to be in the file when enough have come together."""
        names: list[str | None] = [None] * len(events)
        for row, name in events.names.items():
            names[row] = name
        columns = [pa.array(getattr(events, column)) for column in _COLUMNS]
        text = pa.array(names, pa.string()) if events.names else pa.nulls(len(events), pa.string())
        self._waiting.append(pa.record_batch([*columns, text], schema=self._schema))
        self._waiting_rows += len(events)
        self.rows += len(events)
        if self._waiting_rows >= _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting).combine_chunks()
            self._file.write_table(table, row_group_size=_BATCH_ROWS)
            self._waiting, self._waiting_rows = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """A trace in a file; a million rows of it are in memory at a time."""

    path: Path
    rows: int
    roles: Mapping[str, int]

    def batches(self) -> Iterator[Events]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS}
                yield Events(**columns, names=_names(batch.column("name")))


def open_trace(path: Path) -> StoredTrace:
    """Raises CallerMistake when there is no trace at `path`, or one that we cannot read."""
    need_pyarrow()
    try:
        with pq.ParquetFile(path) as file:
            metadata, rows, names = file.metadata.metadata or {}, file.metadata.num_rows, file.schema_arrow.names
    except FileNotFoundError:
        raise CallerMistake(f"{path}: no such file") from None
    except pa.ArrowInvalid as error:
        raise CallerMistake(f"{path}: no complete Parquet file: {str(error).splitlines()[0]}") from None
    if _METADATA not in metadata or names != [*_COLUMNS, "name"]:
        raise CallerMistake(f"{path}: a Parquet file, but no trace of ours (docs/traces.md)")
    told = json.loads(metadata[_METADATA])
    if told["version"] != VERSION:
        raise CallerMistake(f"{path}: a trace of version {told['version']}; this program reads version {VERSION}")
    return StoredTrace(path, rows, told["roles"])


def _is_trace(path: Path) -> bool:
    try:
        open_trace(path)
    except CallerMistake:
        return False
    return True


def _names(column: Any) -> dict[int, str]:
    if column.null_count == len(column):
        return {}
    there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    return dict(zip(there.tolist(), column.take(pa.array(there)).to_pylist(), strict=True))
