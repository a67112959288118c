"""Write JSON files and folders atomically, and read them back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.errors import TraceFileError
from anydepth.storage.checksums import load_json
from anydepth.storage.disk import atomic_write
from anydepth.storage.output_folder import PARTIAL, OutputKind, output, settle
from anydepth.storage.sizes import in_words

_WHOLE = OutputKind(job="part")


@contextmanager
def replacing_folder(folder: Path, kind: OutputKind = _WHOLE) -> Iterator[Path]:
    """Context manager: a new folder to fill, whose files replace those in `folder` on success.

    By default everything in the folder is replaced; see `anydepth.storage.output_folder.output`.
    """
    with output(folder, kind) as opened, opened.publish() as beside:
        yield beside


def is_filled(folder: Path) -> bool:
    """Whether `replacing_folder` has completed a result in a folder."""
    settle(folder)
    return folder.is_dir() and any(entry.name != PARTIAL for entry in folder.iterdir())


def write_json(path: Path, content: Any) -> None:
    """Write JSON to `path` atomically, and raise for NaN, which is not JSON."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")


def plain(value: Any) -> Any:
    """A value converted for JSON: without NaN, tuples, dataclasses, and numbers or arrays of numpy.

    Example:
        >>> plain({1: (np.float64(0.5), math.nan), "x": np.arange(2)})
        {'1': [0.5, None], 'x': [0, 1]}
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises a TraceFileError if it is missing, cannot be read, or is not JSON."""
    return load_json(path, again="expected a folder written by anydepth")


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise a TraceFileError if fewer than `needed` bytes are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TraceFileError(
            f"{what} takes {in_words(needed)}, and {folder} has {in_words(free)} free; "
            "use a smaller limit, fewer positions (tokens), or another folder"
        )
