"""Read CSV and other delimited tables: detect the separator, the header, and the type of each column."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from anydepth.data.columns import IMAGES, LABELS, PAIRS, TEXTS, GivenColumns
from anydepth.errors import DataError, one_line

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
KNOWN = frozenset((*TEXTS, *LABELS, *IMAGES, *(name for pair in PAIRS for name in pair), "id", "idx", "file_name"))
"""Names that a column is likely to have, in lower case."""

# Numbers that are the same when written again: "007", "+1" and whole numbers of 19 digits and more stay text.
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^[+-]?(0|[1-9][0-9]{0,14})?(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?$"
_TRUTH = ({"True", "False"}, {"true", "false"}, {"TRUE", "FALSE"})
_SAMPLE, _ROWS = 100_000, 200  # characters and rows that are looked at to find out


def read_delimited(
    text: str, path: Path, separator: str, given: GivenColumns
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A `pyarrow.Table` of delimited values, called "file", and notes on what was assumed to read it.

    Only an empty cell is missing: "NA", "null" and "nan" are words. A column whose cells are all whole numbers,
    numbers, or True and False is read as such, unless its name is that of a text, or it was asked for as one.

    `separator` is the usual one for the name of the file; another is taken where the rows say so. In a file without a
    header, `given` names of columns count from 1.

    Raises:
        DataError: no rows, two columns of one name, rows of different lengths, or it is unclear if there is a header.
    """
    detected = _detect_separator(text, separator)
    rows = _first_rows(text, detected)
    if not rows:
        raise DataError(f"'{path}' is empty: expected at least one row")
    notes = [] if detected == separator else [f"'{path.name}' is separated by {SEPARATORS[detected]}"]
    header = _has_header(rows, path, given)
    columns = _parse(text, path, detected)
    if header:
        names = [cell.strip() or f"Unnamed: {index}" for index, cell in enumerate(rows[0])]
        columns = [column[1:] for column in columns]
    else:
        names = _column_names(rows, given)
        notes.append(f"'{path.name}' has no header: its columns are called {', '.join(names)}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"'{path}' has two columns called {repeated[0]!r}: rename one")
    if not len(columns[0]):
        raise DataError(f"'{path}' is empty: expected at least one row")
    return {"file": _table(names, columns, given)}, tuple(notes)


def _first_rows(text: str, separator: str) -> list[list[str]]:
    """The first rows, without the last of them where it may have been cut."""
    rows = [row for row in islice(csv.reader(io.StringIO(text[:_SAMPLE]), delimiter=separator), _ROWS) if row]
    return rows[:-1] if len(text) > _SAMPLE and 1 < len(rows) < _ROWS else rows


def _detect_separator(text: str, usual: str) -> str:
    """The separator that splits off a known name, or all rows into equally many cells; the usual one comes first."""
    candidates = [usual, *(other for other in SEPARATORS if other != usual)]
    sampled = {separator: _first_rows(text, separator) for separator in candidates}
    several = {separator: rows for separator, rows in sampled.items() if rows and len(rows[0]) > 1}
    named = (separator for separator, rows in several.items() if any(cell.strip().lower() in KNOWN for cell in rows[0]))
    alike = (separator for separator, rows in several.items() if len({len(row) for row in rows}) == 1)
    return next(named, None) or next(alike, None) or usual


def _has_header(rows: Sequence[Sequence[str]], path: Path, given: GivenColumns) -> bool:
    """Whether the first row names the columns; raises where it may as well be a sample."""
    first = [cell.strip() for cell in rows[0]]
    wanted = set(given.names)
    if wanted and wanted <= set(_numbers(first)) and not wanted <= set(first):
        return False
    if wanted & set(first):
        return True
    known = sum(cell.lower() in KNOWN for cell in first)
    if known > 1 or first == [str(index) for index in range(len(first))] or (len(first) > 1 and not first[0]):
        return True
    below = [[row[index].strip() for row in rows[1:] if len(row) > index] for index in range(len(first))]
    sample = any(
        (cell and cell in cells) or (_is_number(cell) and all(map(_is_number, cells)))
        for cell, cells in zip(first, below, strict=True)
    )
    if known and sample and len(first) > 1:
        raise DataError(
            f"the first row of '{path}' ({', '.join(first)}) may name the columns, or be a sample: say which column is "
            "which by its name, or by its number from 1 if there is no header (text, label)"
        )
    return bool(known) or not sample


def _numbers(row: Sequence[str]) -> list[str]:
    """Names of columns without a header: numbers from 1."""
    return [str(index + 1) for index in range(len(row))]


def _is_number(cell: str) -> bool:
    return bool(re.search("[0-9]", cell) and re.match(_NUMBER, cell))


def _column_names(rows: Sequence[Sequence[str]], given: GivenColumns) -> list[str]:
    """Names for columns without a header: "text" and "label" where it is clear which is which, else numbers from 1."""
    count, numbers = len(rows[0]), _numbers(rows[0])
    if set(given.names) & set(numbers):
        return numbers
    columns = [[row[index] for row in rows if len(row) > index] for index in range(count)]
    classes = [all(map(_is_number, cells)) or 5 * len(set(cells)) <= 2 * len(cells) for cells in columns]
    if count == 1 and not classes[0]:
        return ["text"]
    if count == 2 and sum(classes) == 1:
        return ["label", "text"] if classes[0] else ["text", "label"]
    return numbers


def _parse(text: str, path: Path, separator: str) -> list[Any]:
    """The cells of each column as text, including the first row."""
    import pandas

    settings: dict[str, Any] = {"sep": separator, "header": None, "dtype": str, "na_filter": False}
    try:
        try:
            frame = pandas.read_csv(io.StringIO(text), **settings)
        except pandas.errors.ParserError:
            if separator != "\t":
                raise
            # between tabs a quotation mark often is no more than that
            frame = pandas.read_csv(io.StringIO(text), quoting=csv.QUOTE_NONE, **settings)
    except pandas.errors.ParserError as error:
        why = one_line(error).removeprefix("Error tokenizing data. C error: ")
        raise DataError(f"'{path}' cannot be read as columns separated by {SEPARATORS[separator]}: {why}") from error
    return [frame[name] for name in frame]


def _table(names: Sequence[str], columns: Sequence[Any], given: GivenColumns) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays = []
    for name, column in zip(names, columns, strict=True):
        cells = pa.chunked_array([pa.array(column.tolist(), pa.large_string())])
        cells = pc.if_else(pc.equal(cells, ""), None, cells)
        arrays.append(cells if name in given.texts or name.lower() in TEXTS else _typed(cells))
    return pa.table(arrays, names=list(names))


def _typed(cells: Any) -> Any:
    """Cells as integers, floats or booleans, if all that are not empty are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.unique(cells.drop_null())
    if not len(values):
        return cells
    for pattern, kind in ((_WHOLE, pa.int64()), (_NUMBER, pa.float64())):
        # a regular expression of the second kind also takes "." and "e5"
        if all(pc.all(pc.match_substring_regex(values, each)).as_py() for each in (pattern, "^[+-]?[.]?[0-9]")):
            return cells.cast(kind)
    if len(values) <= 2 and any(set(values.to_pylist()) <= words for words in _TRUTH):
        return pc.equal(pc.utf8_lower(cells), "true")
    return cells
