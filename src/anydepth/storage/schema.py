"""Check the fields of JSON objects that were read back, and their types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.errors import TraceFileError

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def require_fields(
    content: Any, path: Path, *, again: str, fields: Mapping[str, type], optional: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """The content of a JSON file, if it is an object whose required and optional fields have these types.

    The message says with `again` what to do if it is damaged.

    Raises:
        TraceFileError: it is no object, or a field is missing or of another type.

    Example:
        >>> require_fields({"settings": None}, Path("align.json"), again="train again", fields={"settings": dict})
        Traceback (most recent call last):
        anydepth.errors.TraceFileError: align.json is damaged: 'settings' is null, expected an object; train again
    """
    if not isinstance(content, dict):
        raise TraceFileError(f"{path} is damaged: it holds {json_type(content)}, expected an object; {again}")
    present = {name: kind for name, kind in (optional or {}).items() if name in content}
    for name, kind in {**fields, **present}.items():
        if name not in content:
            raise TraceFileError(f"{path} is damaged: it lacks '{name}'; {again}")
        if not isinstance(content[name], kind) or (kind is not bool and isinstance(content[name], bool)):
            raise TraceFileError(
                f"{path} is damaged: '{name}' is {json_type(content[name])}, expected {_NAMES[kind]}; {again}"
            )
    return content


def json_type(value: Any) -> str:
    """The type of a JSON value, in words."""
    return "null" if value is None else _NAMES[type(value)]
