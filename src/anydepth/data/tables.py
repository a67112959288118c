"""Read a data file of any kind as tables of pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _lines(text: str) -> Any:
    import pyarrow as pa

    return pa.table({"text": pa.array(lines_of(text), pa.large_string())})


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    with path.open("rb") as file:  # pyarrow might take a path for an address
        return parquet.read_table(file)


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    source = pa.memory_map(str(path.absolute()))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:  # written row by row, as `datasets` does
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


_TEXT_READERS: dict[str, Callable[[str, Path, GivenColumns], Tables]] = {
    ".csv": lambda text, path, given: read_delimited(text, path, ",", given),
    ".tsv": lambda text, path, given: read_delimited(text, path, "\t", given),
    ".json": lambda text, path, _: read_json_rows(text, path, lines=False),
    ".jsonl": lambda text, path, _: read_json_rows(text, path, lines=True),
    ".ndjson": lambda text, path, _: read_json_rows(text, path, lines=True),
    ".txt": lambda text, path, _: ({"file": _lines(text)}, ()),
}
_READERS: dict[str, Callable[[Path], Any]] = {".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow}


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
    if kind in _READERS:
        return {"file": _READERS[kind](path)}, ()
    text, notes = read_text(path)
    tables, more = _TEXT_READERS[kind](text, path, given)
    return tables, (*notes, *more)
