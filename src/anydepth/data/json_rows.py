"""Read tables in JSON: one object per line, a list of objects, one list per column, or any of these in an object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from anydepth.data.decoding import lines_of
from anydepth.errors import DataError
from anydepth.storage.schema import json_type

Table = Any  # of pyarrow
_AT_ONCE = 20_000  # rows that are plain values before they become columns


def read_json_rows(text: str, path: Path, *, lines: bool) -> tuple[dict[str, Table], tuple[str, ...]]:
    """The tables in a JSON file by the names of their splits, and notes on what was assumed to read them.

    Nested objects become columns named by their path: `{"data": {"text": ...}}` is `data.text`.
    `lines` says that the name of the file is that of JSON Lines; it may hold another layout all the same.

    Returns:
        One table called "file"; or one for each split, where the file is an object of lists of rows.

    Raises:
        DataError: no JSON, no rows in it, or another value in place of a row.
    """
    if not text.strip():
        raise DataError(f"'{path}' is empty: expected at least one row")
    notes: list[str] = []
    if (lines and _begins_with_row(text)) or (content := _parse_whole(text, path)) is None:
        return {"file": _table(_parse_lines(text, path), path, notes)}, tuple(notes)
    parts = {name: _table(rows, path, notes) for name, rows in _split_rows(content, path).items()}
    return parts, tuple(dict.fromkeys(notes))


def _parse_whole(text: str, path: Path) -> Any:
    """The content of the file as one JSON value; None where each line holds one."""
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        if _begins_with_row(text):
            return None
        raise _broken(path, error.lineno, error) from error
    except (RecursionError, ValueError) as error:
        raise _broken(path, 1, error) from error


def _begins_with_row(text: str) -> bool:
    """Whether the first line, blank ones aside, is an object by itself."""
    try:
        return isinstance(_loads(next(line for line in lines_of(text) if line.strip())), dict)
    except (ValueError, RecursionError):
        return False


def _parse_lines(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            try:
                row = _loads(line)
            except (ValueError, RecursionError) as error:
                raise _broken(path, number, error) from error
            if not isinstance(row, dict):
                raise DataError(f"line {number} of '{path}' is {json_type(row)}, expected an object: a row")
            yield row


def _broken(path: Path, line: int, error: Exception) -> DataError:
    why = "it is nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return DataError(f"'{path}' is no JSON that can be read, in line {line}: {why}")


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_names)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has two values called {next(n for n in fields if names.count(n) > 1)!r}")
    return fields


def _split_rows(content: Any, path: Path) -> dict[str, Sequence[Any]]:
    """Rows by the name of their split, from any layout."""
    if isinstance(content, list):
        return {"file": content}
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {json_type(content)}, expected rows: a list of objects, or an object a line")
    lists = {name: value for name, value in content.items() if _are_rows(value)}
    if len(lists) == 1:
        return {"file": next(iter(lists.values()))}
    if lists and len(lists) == len(content):
        return lists
    if lists:
        raise DataError(f"'{path}' holds rows under {' and '.join(lists)} beside other values: keep one of them")
    if len(content) == 1 and isinstance(next(iter(content.values())), dict):
        inner = next(iter(content.values()))
        if any(isinstance(value, list) for value in inner.values()):
            return _split_rows(inner, path)
    return {"file": _rows_of_columns(content)}


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _rows_of_columns(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object with one list per column, as `Dataset.to_dict` or pandas write it; or a single row."""
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):  # pandas, orient="split"
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    if _is_indexed(content) and all(isinstance(value, dict) for value in content.values()):  # orient="index"
        return list(content.values())
    if content and all(isinstance(value, dict) and _is_indexed(value) for value in content.values()):  # "columns"
        content = {name: list(value.values()) for name, value in content.items()}
    values = list(content.values())
    if values and all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]
    return [dict(content)]


def _is_indexed(content: Mapping[str, Any]) -> bool:
    return bool(content) and list(content) == [str(index) for index in range(len(content))]


def _table(rows: Any, path: Path, notes: list[str]) -> Table:
    """A table of rows; a column that mixes types becomes text, as JSON writes it, with a note."""
    import pyarrow as pa

    chunks: dict[str, list[Any]] = {}
    rows, count = iter(rows), 0
    while block := list(islice(rows, _AT_ONCE)):
        count += _append_block(chunks, block, count, path)
    if not count or not chunks:
        raise DataError(f"'{path}' is empty: expected at least one row")
    columns = {}
    for name, parts in chunks.items():
        missing = count - sum(map(len, parts))  # columns that no row of the last blocks has
        columns[name] = _join_chunks(name, [*parts, pa.nulls(missing)] if missing else parts, path, notes)
    return pa.table(columns)


def _append_block(chunks: dict[str, list[Any]], rows: list[Any], before: int, path: Path) -> int:
    """Append a block of rows to the columns; returns how many."""
    import pyarrow as pa

    if all(isinstance(row, str) for row in rows):
        rows = [{"text": row} for row in rows]
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"row {before + index} of '{path}' is {json_type(row)}, expected an object")
    flat = [dict(_flat(row)) for row in rows]
    for name in dict.fromkeys(name for row in flat for name in row):
        have = chunks.setdefault(name, [])
        if (missing := before - sum(map(len, have))) > 0:
            have.append(pa.nulls(missing))
        have.append(_array([row.get(name) for row in flat], name, path))
    return len(rows)


def _flat(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, None if value == {} else value


def _array(values: list[Any], name: str, path: Path) -> Any:
    """An array of pyarrow, or a list where the values are of several types."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except UnicodeEncodeError as error:
        raise DataError(f"column '{name}' of '{path}' holds half a character (a lone surrogate): mend it") from error
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return values


def _join_chunks(name: str, parts: list[Any], path: Path, notes: list[str]) -> Any:
    import pyarrow as pa

    if all(isinstance(part, pa.Array) for part in parts):
        tables = [pa.table({"": part}) for part in parts]
        try:
            column = pa.concat_tables(tables, promote_options="permissive").column(0)
            return column.cast(pa.string()) if column.type == pa.null() else column
        except pa.ArrowException:
            pass  # types differ between blocks, which is the same as within one
    values = [value for part in parts for value in (part if isinstance(part, list) else part.to_pylist())]
    notes.append(f"column '{name}' of '{path.name}' holds values of several kinds, and was read as text")
    return pa.chunked_array([pa.array([_as_text(value) for value in values], pa.large_string())])


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
