"""Consoles of rich that are safe against control characters, narrow terminals and closed pipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.control import Control
from rich.segment import Segment

from anydepth.safe_text import printable


class _Printable:
    """A renderable with control characters of names and data spelled out."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._content, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class SafeConsole(Console):
    """A rich console that prints markup, emoji names and escape sequences of data as plain text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print, as rich does."""
        super().print(
            *(content if isinstance(content, Control) else _Printable(content) for content in objects), **settings
        )

    def on_broken_pipe(self) -> None:
        """Raise the error, which the command line handles: rich would end the process by itself, with status 1."""
        raise BrokenPipeError


stderr = SafeConsole(stderr=True)


def output() -> Console:
    """Standard output, as wide as the terminal; 120 columns where there is none."""
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=120)
