"""Prints the levels of the package, and ends with 1 where it has outgrown its bounds: part of `make check`.

A package counts as one room; a module of the root is a room, too. Imports inside functions and for types count like any
other. Which room may import which is said, and checked, by the contracts in pyproject.toml (`lint-imports`).
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp
import numpy as np

SOURCE = Path(__file__).parents[1] / "src" / "anydepth"
BOUNDS = {
    "levels": 14,
    "modules in the root": 12,
    "lines of the longest file": 450,
    "lines of a function, 95th percentile": 40,
}


def rooms() -> dict[str, set[str]]:
    """Every room, and the rooms that it imports."""
    graph = grimp.build_graph("anydepth", cache_dir=None)
    imports: dict[str, set[str]] = {name: set() for name in graph.find_children("anydepth")}
    for module in graph.modules - {"anydepth", "anydepth.__main__"}:
        room = ".".join(module.split(".")[:2])
        found = {".".join(other.split(".")[:2]) for other in graph.find_modules_directly_imported_by(module)}
        imports[room] |= found - {room, "anydepth"}
    return imports


def levels(imports: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Rooms by level, the lowest first: each imports only what stands below it.

    Raises:
        SystemExit: some go in a circle.
    """
    left = set(imports) - {"anydepth.__main__"}
    while left:
        level = sorted(room for room in left if not imports[room] & left)
        if not level:
            raise SystemExit(f"rooms in a circle: {', '.join(sorted(left))}")
        yield level
        left -= set(level)


def lengths_of_functions(files: list[Path]) -> list[int]:
    """How many lines each function has, its docstring with it."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    return [(node.end_lineno or 0) - node.lineno + 1 for node in nodes if isinstance(node, kinds)]


def main() -> int:
    """Print what there is; the exit status."""
    files = sorted(SOURCE.rglob("*.py"))
    by_level = list(levels(rooms()))
    for number, level in enumerate(by_level, start=1):
        print(f"{number:2}  {'  '.join(room.removeprefix('anydepth.') for room in level)}")
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in files}
    longest = max(lengths, key=lambda file: lengths[file])
    found = {
        "levels": len(by_level),
        "modules in the root": len(list(SOURCE.glob("*.py"))),
        "lines of the longest file": lengths[longest],
        "lines of a function, 95th percentile": int(np.percentile(lengths_of_functions(files), 95)),
    }
    for what, value in found.items():
        print(f"{value:5} {what} (at most {BOUNDS[what]})")
    print(f"{sum(lengths.values()):5} lines in {len(files)} files; the longest is {longest.relative_to(SOURCE)}")
    return int(any(value > BOUNDS[what] for what, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
