"""Tables in JSON: a line a row, a list of rows, a list a column, or any of these inside an object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anydepth.data.decoding import lines_of
from anydepth.errors import DataError

Table = Any  # of pyarrow
_AT_ONCE = 20_000  # rows that are plain values before they become columns


def read_json_rows(text: str, path: Path, *, lines: bool) -> tuple[dict[str, Table], tuple[str, ...]]:
    """The tables in a file of JSON by the names of their splits, and what was assumed to read them.

    Objects in a row are columns of their own, called as the path to them: `{"data": {"text": ...}}` is `data.text`.

    Args:
        text: of the file.
        path: for messages.
        lines: whether its name promises an object on each line; a file may hold the other all the same.

    Returns:
        One table called "file"; or one for each split, where the file is an object of lists of rows.

    Raises:
        DataError: no JSON, no rows in it, or something else where a row should be.
    """
    if not text.strip():
        raise DataError(f"'{path}' is empty: expected at least one row")
    notes: list[str] = []
    if (lines and _is_row(_first_line(text))) or (content := _whole(text, path)) is None:
        return {"file": _table(_by_line(text, path), path, notes)}, tuple(notes)
    parts = {name: _table(rows, path, notes) for name, rows in _splits(content, path).items()}
    return parts, tuple(dict.fromkeys(notes))


def _whole(text: str, path: Path) -> Any:
    """The file as one value of JSON; None where it is one on each line."""
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        if _is_row(_first_line(text)):
            return None
        raise _broken(path, error.lineno, error) from error
    except (RecursionError, ValueError) as error:
        raise _broken(path, 1, error) from error


def _first_line(text: str) -> str:
    return next(line for line in lines_of(text) if line.strip())


def _is_row(line: str) -> bool:
    try:
        return isinstance(_loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _by_line(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            try:
                row = _loads(line)
            except (ValueError, RecursionError) as error:
                raise _broken(path, number, error) from error
            if not isinstance(row, dict):
                raise DataError(f"line {number} of '{path}' is {_kind(row)}, expected an object: a row")
            yield row


def _broken(path: Path, line: int, error: Exception) -> DataError:
    why = "it is nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return DataError(f"'{path}' is no JSON that can be read, in line {line}: {why}")


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError(
            f"an object has two values called {next(n for n in names if sum(n == k for k, _ in pairs) > 1)!r}"
        )
    return names


def _splits(content: Any, path: Path) -> dict[str, Sequence[Any]]:
    """Rows by the name of their split, from whichever layout."""
    if isinstance(content, list):
        return {"file": content}
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {_kind(content)}, expected rows: a list of objects, or an object a line")
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
            return _splits(inner, path)
    return {"file": _columns(content)}


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _columns(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object that holds a list a column, as `Dataset.to_dict` or pandas write it; or a single row."""
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
    """Rows as columns; one that mixes kinds is text, as JSON writes it, and a note says so."""
    import pyarrow as pa

    chunks: dict[str, list[Any]] = {}
    count, block = 0, []
    for row in rows:
        block.append(row)
        if len(block) == _AT_ONCE:
            count += _add(chunks, block, count, path)
            block = []
    count += _add(chunks, block, count, path)
    if not count or not chunks:
        raise DataError(f"'{path}' is empty: expected at least one row")
    columns = {}
    for name, parts in chunks.items():
        missing = count - sum(map(len, parts))  # columns that no row of the last blocks has
        columns[name] = _joined(name, [*parts, pa.nulls(missing)] if missing else parts, path, notes)
    return pa.table(columns)


def _add(chunks: dict[str, list[Any]], rows: list[Any], before: int, path: Path) -> int:
    """Append a block of rows to the columns; returns how many."""
    import pyarrow as pa

    if rows and all(isinstance(row, str) for row in rows):
        rows = [{"text": row} for row in rows]
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"row {before + index} of '{path}' is {_kind(row)}, expected an object")
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
    """An array of pyarrow, or a list where the values are of several kinds."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except UnicodeEncodeError as error:
        raise DataError(f"column '{name}' of '{path}' holds half a character (a lone surrogate): mend it") from error
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return values


def _joined(name: str, parts: list[Any], path: Path, notes: list[str]) -> Any:
    import pyarrow as pa

    if all(isinstance(part, pa.Array) for part in parts):
        tables = [pa.table({"": part}) for part in parts]
        try:
            column = pa.concat_tables(tables, promote_options="permissive").column(0)
            return column.cast(pa.string()) if column.type == pa.null() else column
        except pa.ArrowException:
            pass  # kinds differ from block to block, which is the same as within one
    values = [value for part in parts for value in (part if isinstance(part, list) else part.to_pylist())]
    notes.append(f"column '{name}' of '{path.name}' holds values of several kinds, and was read as text")
    return pa.chunked_array([pa.array([_as_text(value) for value in values], pa.large_string())])


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    return names.get(type(value), "an object")
