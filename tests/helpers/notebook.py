"""Notebooks run cell by cell, as Jupyter runs them, and what each cell shows at its end."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any


def cells(path: Path) -> Iterator[tuple[str, str]]:
    """The kind (`markdown`, `code`) and the text of each cell."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def run(path: Path) -> list[Any]:
    """Run all code of a notebook; returns what the last line of each cell is, None where it is no expression."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return [_run_cell(text, names, f"{path.name}[{place}]") for place, (_, text) in enumerate(_code(path))]


def as_html(path: Path) -> str:
    """A notebook that was run, as a page to look at."""
    shown = iter(run(path))
    parts = []
    for kind, text in cells(path):
        parts.append(f"<pre style='background:#f4f4f4;padding:8px'>{escape(text)}</pre>" if kind == "code" else text)
        if kind == "code" and (value := next(shown)) is not None:
            html = value._repr_html_() if hasattr(value, "_repr_html_") else f"<pre>{escape(repr(value))}</pre>"
            parts.append(f"<div style='margin:8px'>{html}</div>")
    return f"<!doctype html><meta charset=utf-8><body style='font:14px sans-serif;width:1000px'>{''.join(parts)}"


def _code(path: Path) -> list[tuple[str, str]]:
    return [cell for cell in cells(path) if cell[0] == "code"]


def _run_cell(text: str, names: dict[str, Any], name: str) -> Any:
    tree = ast.parse(text, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names) if last is not None else None
