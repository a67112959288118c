"""Kinds of data files that can be read, by the endings of their names."""

from __future__ import annotations

from pathlib import Path

TEXT_KINDS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
"""Files of text, which may be compressed."""
BINARY_KINDS = (".parquet", ".arrow", ".feather")
KINDS = (*TEXT_KINDS, *BINARY_KINDS)
COMPRESSIONS = (".gz", ".bz2", ".xz")
"""Endings of compressed files of text, behind that of their kind: `.csv.gz`."""


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name, whatever the case; None for one that cannot be read here.

    Example:
        >>> kind_of(Path("a.CSV")), kind_of(Path("b.jsonl.gz")), kind_of(Path("c.doc"))
        ('.csv', '.jsonl', None)
    """
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in TEXT_KINDS else None
    return suffix if suffix in KINDS else None
