"""Read folders of data: tables named after their splits, or images with one sub-folder for each class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from anydepth.data.columns import GivenColumns
from anydepth.data.tables import read_tables
from anydepth.errors import DataError
from anydepth.storage.file_kinds import kind_of

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")  # as the hub names the parts of a split
_METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)")
_SPARE = ("readme", "license", "licence", "citation", "requirements")  # texts beside the data


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: "2" before "10".

    Example:
        >>> in_natural_order(["10", "2", "class 10", "class 9"])
        ['2', '10', 'class 9', 'class 10']
    """

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name

    return sorted(names, key=key)


def read_folder(folder: Path, given: GivenColumns) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The data sets in a folder by the names of their splits, and notes on what was assumed to read them.

    The names of files or of their folders state the split: `train.csv`, `test/cat/1.png`. Nothing that can be read, or
    as many tables as images, raise a `DataError`.
    """
    files = sorted(_files_below(folder, set()), key=lambda file: file.relative_to(folder).as_posix())
    endings = _image_endings()
    images = [file for file in files if file.suffix.lower() in endings]
    metadata = [file for file in files if images and _METADATA.fullmatch(file.name)]
    tables = [
        file for file in files if kind_of(file) and file not in metadata and not file.name.lower().startswith(_SPARE)
    ]
    note: tuple[str, ...] = ()
    if tables and images and len(tables) != len(images):
        fewer = min(tables, images, key=len)
        note = (f"left out of '{folder}': {len(fewer):,} files of another kind, such as {fewer[0].name}",)
        tables, images = (tables, []) if fewer is images else ([], images)
    if tables and images:
        raise DataError(f"'{folder}' holds tables ({tables[0].name}) and images ({images[0].name}): name one table")
    if tables:
        parts, notes = _read_tables(folder, tables, given)
    elif images:
        parts, notes = _read_images(folder, images, metadata, given)
    else:
        raise DataError(f"'{folder}' doesn't contain any data files: expected tables, or images in a folder a class")
    return parts, (*note, *notes)


def _files_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """All files below a folder except hidden ones; links are followed once."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise DataError(f"'{folder}' cannot be looked into: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            yield from _files_below(entry, seen)
        elif entry.is_file():
            yield entry


def _image_endings() -> set[str]:
    from PIL import Image

    endings = Image.registered_extensions()
    return {ending for ending, kind in endings.items() if kind in Image.OPEN} - {".pdf", ".mpg", ".mpeg"}


def _by_split(folder: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files by their split, and those without: by the folder they lie in, else by name, else all are `train`."""
    names = {file: _SPLITS.get(_top(file, folder)) for file in files}
    if not all(names.values()):  # a class may be called "test": folders are splits if all of them are
        names = {file: _split_in_name(file) for file in files}
    parts: dict[str, list[Path]] = {}
    for file, name in names.items():
        if name:
            parts.setdefault(name, []).append(file)
    return (parts, [file for file in files if not names[file]]) if parts else ({"train": list(files)}, [])


def _top(file: Path, folder: Path) -> str:
    """The first part of a file's path within the folder, in lower case."""
    return file.relative_to(folder).parts[0].lower()


def _split_in_name(file: Path) -> str | None:
    stem = file.name.split(".")[0]
    if shard := _SHARD.fullmatch(stem):
        stem = shard[1]
        return _SPLITS.get(stem.lower(), stem)
    word = _WORD.search(stem.lower())
    return None if word is None else _SPLITS[word[1]]


def _read_tables(folder: Path, files: Sequence[Path], given: GivenColumns) -> tuple[dict[str, Any], tuple[str, ...]]:
    import datasets
    import pyarrow as pa

    chosen, others = _by_split(folder, files)
    notes = [f"left out of '{folder}': {', '.join(file.name for file in others[:3])}, of no split"] if others else []
    parts = {}
    for split, paths in chosen.items():
        tables = []
        for path in paths:
            content, more = read_tables(path, given)
            if list(content) != ["file"]:
                raise DataError(f"'{path}' holds splits of its own ({', '.join(content)}): name that file")
            tables.append(content["file"])
            notes += more
        _require_alike(split, paths, tables)
        try:
            parts[split] = datasets.Dataset(
                tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")
            )
        except pa.ArrowException as error:
            names = ", ".join(path.name for path in paths[:3])
            raise DataError(f"the tables of split '{split}' in '{folder}' ({names}) do not fit: {error}") from error
    return parts, tuple(dict.fromkeys(notes))


def _require_alike(split: str, paths: Sequence[Path], tables: Sequence[Any]) -> None:
    """Raise for tables of one split with different columns, of which some are something else than the data."""
    for path, table in zip(paths, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            first, other = ", ".join(tables[0].column_names), ", ".join(table.column_names)
            raise DataError(
                f"tables of split '{split}' have different columns, {paths[0].name}: {first}; {path.name}: {other}: "
                "name one of them"
            )


def _read_images(
    folder: Path, files: Sequence[Path], metadata: Sequence[Path], given: GivenColumns
) -> tuple[dict[str, Any], tuple[str, ...]]:
    import datasets

    by_folder = {file: _SPLITS.get(_top(file, folder)) for file in files}
    nested = all(by_folder.values()) and all(len(file.relative_to(folder).parts) > 1 for file in files)
    chosen: dict[str, list[Path]] = {}
    for file in files:
        chosen.setdefault(str(by_folder[file]) if nested else "train", []).append(file)
    if metadata:
        return _with_metadata(folder, chosen, metadata, given), ()
    depths = {len(file.relative_to(folder).parts) for file in files}
    names = in_natural_order({file.parent.name for file in files})
    classes = len(depths) == 1 and depths.pop() > 1 + nested and len(names) > 1
    notes = () if classes else (f"no classes: expected the images of '{folder}' in a folder each for two or more",)
    parts = {}
    for split, paths in chosen.items():
        columns: dict[str, list[Any]] = {"image": [str(path.absolute()) for path in paths]}
        features: dict[str, Any] = {"image": datasets.Image()}
        if classes:
            columns["label"] = [names.index(path.parent.name) for path in paths]
            features["label"] = datasets.ClassLabel(names=names)
        parts[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return parts, notes


def _with_metadata(
    folder: Path, chosen: dict[str, list[Path]], metadata: Sequence[Path], given: GivenColumns
) -> dict[str, Any]:
    """Images with the columns of a metadata table beside them, joined by its `file_name`."""
    import datasets

    parts: dict[str, list[Any]] = {}
    for path in metadata:
        table = datasets.Dataset(read_tables(path, given)[0]["file"])
        if "file_name" not in table.column_names:
            raise DataError(f"'{path}' has no column 'file_name', expected the image of each row there")
        images = [str((path.parent / str(name)).absolute()) for name in table["file_name"]]
        table = table.remove_columns("file_name").add_column("image", images).cast_column("image", datasets.Image())
        top = _top(path, folder)
        parts.setdefault(_SPLITS.get(top, "train") if len(chosen) > 1 or top in _SPLITS else "train", []).append(table)
    return {split: datasets.concatenate_datasets(tables) for split, tables in parts.items()}
