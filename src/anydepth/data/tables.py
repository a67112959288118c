"""Read a data file of any kind as tables of pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anydepth.data.columns import GivenColumns
from anydepth.data.decoding import lines_of, read_text
from anydepth.data.delimited import read_delimited
from anydepth.data.json_rows import read_json_rows
from anydepth.errors import DataError
from anydepth.storage.file_kinds import COMPRESSIONS, KINDS, kind_of

Tables = tuple[Mapping[str, Any], tuple[str, ...]]
"""Tables of pyarrow by the name of their split, and notes."""


def _delimited(path: Path, given: GivenColumns, *, separator: str) -> Tables:
    text, notes = read_text(path)
    table, more = read_delimited(text, path, separator, given)
    return {"file": table}, (*notes, *more)


def _json(path: Path, given: GivenColumns, *, lines: bool) -> Tables:
    text, notes = read_text(path)
    parts, more = read_json_rows(text, path, lines=lines)
    return parts, (*notes, *more)


def _lines(path: Path, given: GivenColumns) -> Tables:
    import pyarrow as pa

    text, notes = read_text(path)
    return {"file": pa.table({"text": pa.array(lines_of(text), pa.large_string())})}, notes


def _parquet(path: Path, given: GivenColumns) -> Tables:
    from pyarrow import parquet

    with path.open("rb") as file:  # pyarrow might take a path for an address
        return {"file": parquet.read_table(file)}, ()


def _arrow(path: Path, given: GivenColumns) -> Tables:
    import pyarrow as pa

    source = pa.memory_map(str(path.absolute()))
    try:
        return {"file": pa.ipc.open_file(source).read_all()}, ()
    except pa.ArrowInvalid:  # written row by row, as `datasets` does
        source.seek(0)
        return {"file": pa.ipc.open_stream(source).read_all()}, ()


_READERS: dict[str, Callable[[Path, GivenColumns], Tables]] = {
    ".csv": partial(_delimited, separator=","),
    ".tsv": partial(_delimited, separator="\t"),
    ".json": partial(_json, lines=False),
    ".jsonl": partial(_json, lines=True),
    ".ndjson": partial(_json, lines=True),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".txt": _lines,
}


def read_tables(path: Path, given: GivenColumns) -> Tables:
    """The tables in a file, and notes on what was assumed to read them; raises a DataError if it cannot be read."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"'{path}' is no kind of file that can be read here: expected {', '.join(KINDS)} "
            f"(those of text also as {', '.join(COMPRESSIONS)})"
        )
    if not path.stat().st_size:
        raise DataError(f"'{path}' is empty: expected at least one row")
    return _READERS[kind](path, given)
