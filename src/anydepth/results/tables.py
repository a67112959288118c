"""Tables of results as text of a given width, in which no number is ever cut, and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import zip_longest
from typing import Literal, NamedTuple

from anydepth.safe_text import printable

WIDTH = 80
_GAP = "  "
_HEADS = 2  # most lines of heads
_NARROWEST = 24  # of a column of sentences

Style = Literal["", "title", "head", "detail", "good", "bad", "open"]


class Part(NamedTuple):
    """A piece of a line, and what it is."""

    text: str
    style: Style = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        head: its name; broken at spaces where its cells are narrower.
        cells: one for each row.
        details: of each cell, beside it: the interval of a number.
        rank: how soon the column is left out of a table that is too wide, the highest first; 0 is never left out.
        details_rank: the same for its details.
        kind: "number" is aligned right, "text" left; "sentence" is broken into lines where the table is too wide.
        styles: of each cell, if they have any.
    """

    head: str
    cells: tuple[str, ...]
    details: tuple[str, ...] = ()
    rank: int = 0
    details_rank: int = 2
    kind: Literal["number", "text", "sentence"] = "number"
    styles: tuple[Style, ...] = ()

    def width(self, heads: int) -> int:
        """Characters that the widest cell with its details needs, and the head in so many lines."""
        words = self.head.split()
        least = max(map(len, words), default=0)
        while len(textwrap.wrap(self.head, max(least, 1), break_on_hyphens=False)) > min(heads, len(words)):
            least += 1
        return max([least, *(self._full(row) for row in range(len(self.cells)))])

    def _full(self, row: int) -> int:
        return len(self.cells[row]) + (len(self._detail(row)) if self.details else 0)

    def _detail(self, row: int) -> str:
        widest = max(map(len, self.details))
        return f" {self.details[row]:<{widest}}"

    def lines(self, row: int, width: int) -> list[list[Part]]:
        """A cell as lines that are exactly so wide."""
        cell, style = self.cells[row], self.styles[row] if self.styles else ""
        if self.kind == "sentence":
            return [[Part(f"{line:<{width}}", style)] for line in textwrap.wrap(cell, max(width, 1)) or [""]]
        space = " " * (width - self._full(row))
        parts = [Part(cell, style), *([Part(self._detail(row), "detail")] if self.details else [])]
        return [[*parts, Part(space)] if self.kind == "text" else [Part(space), *parts]]

    def head_lines(self, width: int) -> list[str]:
        """The head as lines that are exactly so wide."""
        lines = textwrap.wrap(self.head, max(width, 1), break_long_words=False, break_on_hyphens=False) or [""]
        return [f"{line:>{width}}" if self.kind == "number" else f"{line:<{width}}" for line in lines]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a result, of which at least one column is never left out.

    Example:
        >>> depth = Column(head="depth", cells=("0", "12"))
        >>> accuracy = Column(head="accuracy", cells=("0.51", "0.93"), details=("0.48–0.54", "0.91–0.95"))
        >>> table = Table(title="bert on sst2", columns=(depth, accuracy))
        >>> print(table.text(40))
        bert on sst2
        depth        accuracy
        ─────  ──────────────
            0  0.51 0.48–0.54
           12  0.93 0.91–0.95
        >>> print(table.text(20))
        bert on sst2
        depth  accuracy
        ─────  ────────
            0      0.51
           12      0.93
        Left out for want of width: intervals.
    """

    title: str
    columns: tuple[Column, ...]

    def text(self, width: int = WIDTH) -> str:
        """The table as lines of at most `width` characters, if all columns that are never left out fit."""
        return "\n".join("".join(part.text for part in line).rstrip() for line in self.lines(width))

    def lines(self, width: int = WIDTH) -> Iterator[list[Part]]:
        """The lines of `text`, in pieces that say what they are."""
        if self.title:
            yield from ([Part(line, "title")] for line in textwrap.wrap(printable(self.title), width))
        columns, missing = self._fitting(width)
        widths = _widths(columns, width)
        heads = [column.head_lines(size) for column, size in zip(columns, widths, strict=True)]
        tallest = max(map(len, heads), default=0)
        for place in range(tallest):
            shown = (head[place - tallest + len(head)] if place >= tallest - len(head) else "" for head in heads)
            yield [Part(_GAP.join(f"{text:<{size}}" for text, size in zip(shown, widths, strict=True)), "head")]
        yield [Part(_GAP.join("─" * size for size in widths), "detail")]
        for row in range(len(columns[0].cells)):
            cells = [column.lines(row, size) for column, size in zip(columns, widths, strict=True)]
            blank = [[Part(" " * size)] for size in widths]
            for parts in zip_longest(*cells):
                yield _joined([part or space for part, space in zip(parts, blank, strict=True)])
        if missing:
            note = f"Left out for want of width: {', '.join(missing)}."
            yield from ([Part(line, "detail")] for line in textwrap.wrap(note, width))

    def _fitting(self, width: int) -> tuple[list[Column], list[str]]:
        """The columns that fit, and what had to be left out: all of one rank together."""
        columns = [_printable(column) for column in self.columns]
        missing: dict[str, None] = {}
        ranks = {rank for column in columns for rank in (column.rank, column.details_rank)}
        for rank in sorted(ranks - {0}, reverse=True):
            if _least(columns) <= width:
                break
            missing |= dict.fromkeys(column.head for column in columns if column.rank == rank)
            columns = [column for column in columns if column.rank != rank]
            for place, column in enumerate(columns):
                if column.details and column.details_rank == rank:
                    missing["intervals"] = None
                    columns[place] = replace(column, details=())
        return columns, list(missing)

    def html(self) -> str:
        """The table as HTML."""
        columns = [_printable(column) for column in self.columns]
        side = ["left" if column.kind != "number" else "right" for column in columns]
        heads = "".join(
            f'<th style="text-align:{at}">{escape(column.head)}</th>' for at, column in zip(side, columns, strict=True)
        )
        rows = []
        for row in range(len(columns[0].cells)):
            cells = (
                f'<td style="text-align:{at}">{escape(column.cells[row])}'
                + (f" <small>{escape(column.details[row])}</small>" if column.details else "")
                + "</td>"
                for at, column in zip(side, columns, strict=True)
            )
            rows.append(f"<tr>{''.join(cells)}</tr>")
        caption = f'<caption style="text-align:left">{escape(printable(self.title))}</caption>' if self.title else ""
        return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _joined(cells: Sequence[list[Part]]) -> list[Part]:
    line = list(cells[0])
    for cell in cells[1:]:
        line += [Part(_GAP), *cell]
    return line


def _printable(column: Column) -> Column:
    """A column whose cells have one line and no control characters."""
    return replace(column, head=_one_line(column.head), cells=tuple(map(_one_line, column.cells)))


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _least(columns: Sequence[Column], heads: int = _HEADS) -> int:
    """The width of a table with so many lines of heads, whose sentences are as narrow as may be."""
    sizes = [column.width(heads) for column in columns]
    narrow = (
        min(size, _NARROWEST) if column.kind == "sentence" else size
        for column, size in zip(columns, sizes, strict=True)
    )
    return sum(narrow) + len(_GAP) * (len(columns) - 1)


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """The width of each column: heads in one line if they fit, and sentences share what the others leave."""
    heads = next((count for count in range(1, _HEADS) if _least(columns, count) <= width), _HEADS)
    sizes = [column.width(heads) for column in columns]
    sentences = [place for place, column in enumerate(columns) if column.kind == "sentence"]
    rest = width - len(_GAP) * (len(columns) - 1) - sum(size for at, size in enumerate(sizes) if at not in sentences)
    for count, place in zip(range(len(sentences), 0, -1), sentences, strict=True):
        sizes[place] = min(sizes[place], max(_NARROWEST, rest // count))
        rest -= sizes[place]
    return sizes


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point; empty for NaN and None."""
    return "" if value is None or value != value else f"{value:,.{digits}f}"


def bounds(low: float, high: float, digits: int = 3) -> str:
    """An interval; empty where it is undefined."""
    return "" if low != low else f"{low:.{digits}f}–{high:.{digits}f}"


def sentence(text: str) -> str:
    """Text with a capital first letter; `str.capitalize` would lower the rest.

    Example:
        >>> sentence("cosine, not centred"), sentence("CKA, biased")
        ('Cosine, not centred', 'CKA, biased')
    """
    return text[:1].upper() + text[1:]
