"""Checksums of files and of JSON objects, to detect damaged and changed ones. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.errors import TraceFileError, one_line

_SMALL, _PIECES, _PIECE = 64 << 20, 64, 1 << 20


def file_record(path: Path) -> dict[str, Any]:
    """The entry of a file in a manifest: its size in bytes and its checksum."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "blake2b": hashlib.file_digest(file, _blake2b).hexdigest()}


def imprint(path: Path) -> dict[str, Any]:
    """The size and a checksum of a file, to see quickly whether it was changed since.

    Of a file above 64 MB the checksum is of pieces of it at equal distances: enough to detect another file in its
    place, in a second whatever its size. (`file_record` reads all of it, to find a damaged byte.)
    """
    size = path.stat().st_size
    if size <= _SMALL:
        return file_record(path)
    digest = _blake2b()
    with path.open("rb") as file:
        for index in range(_PIECES):
            file.seek((size - _PIECE) * index // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return {"bytes": size, "pieces": digest.hexdigest()}


def require_intact(path: Path, expected: Mapping[str, Any], *, again: str) -> None:
    """Compare a file with its entry from `file_record`; `again` says what to do if they differ.

    Raises:
        TraceFileError: it is missing, truncated, or was changed.
    """
    if not path.is_file():
        raise TraceFileError(f"{path} is missing: {again}")
    if path.stat().st_size != expected["bytes"]:
        raise TraceFileError(
            f"{path} has {path.stat().st_size} bytes, expected {expected['bytes']}: it is truncated; {again}"
        )
    if file_record(path) != expected:
        raise TraceFileError(f"{path} was changed after it was written: its checksum is another; {again}")


def content_hash(content: Mapping[str, Any]) -> str:
    """A checksum of a JSON object. It detects changes by accident or by hand; it is no signature.

    Example:
        >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its own checksum, for `read_sealed` to check."""
    return {**content, "checksum": content_hash(content)}


def read_sealed(path: Path, *, known: int, again: str) -> dict[str, Any]:
    """Read a JSON object that states the `known` format and has its own "checksum", which is left out.

    The message says with `again` what to do if that fails.

    Raises:
        TraceFileError: it is missing, no such object, of another format, or was changed.
    """
    content = load_json(path, again=again)
    format_ = content.get("format") if isinstance(content, dict) else None
    if format_ != known:
        raise TraceFileError(f"{path} has format {format_}, expected {known}: {again} with this version of anydepth")
    if content.pop("checksum", None) != content_hash(content):
        raise TraceFileError(f"{path} was changed after it was written: {again}")
    return dict(content)


def load_json(path: Path, *, again: str) -> Any:
    """The content of a JSON file; raises a TraceFileError if it is missing or cannot be read, with what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraceFileError(f"{path} does not exist: {again}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise TraceFileError(f"{path} is corrupt or cannot be read ({one_line(problem)}): {again}") from None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_sealed_object(path: Path) -> dict[str, Any] | None:
    """A JSON object without its own checksum; None if it is missing, damaged or was changed."""
    content = read_object(path)
    try:
        return content if content and content.pop("checksum", None) == content_hash(content) else None
    except (ValueError, RecursionError):  # NaN, which is no JSON
        return None


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)
