"""Tables that fit a width: no number is cut, whatever the width, and what is left out is named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.results.tables import Column, Table, bounds, number

_WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=9), min_size=1, max_size=4).map(" ".join)
_NUMBERS = st.floats(-9999, 9999).map(lambda value: f"{value:.3f}")


@st.composite
def _columns(draw: st.DrawFn, rows: int, most: int = 4) -> Column:
    kind = draw(st.sampled_from(["number", "number", "text", "sentence"]))
    cell = _NUMBERS if kind == "number" else _WORDS
    cells = tuple(draw(st.lists(cell, min_size=rows, max_size=rows)))
    details = tuple(f"{value}–{value}" for value in cells) if kind == "number" and draw(st.booleans()) else ()
    rank = draw(st.integers(0, most))
    return Column(head=draw(_WORDS), cells=cells, details=details, rank=rank, details_rank=rank + 1, kind=kind)


@st.composite
def _tables(draw: st.DrawFn) -> Table:
    rows = draw(st.integers(1, 4))
    columns = (draw(_columns(rows, most=0)), *draw(st.lists(_columns(rows), max_size=6)))
    return Table(title=draw(st.just("") | _WORDS), columns=columns)


def _missing(text: str) -> set[str]:
    """What a table says that it left out."""
    _, _, named = " ".join(text.split()).partition("Left out for want of width: ")
    return set(named.removesuffix(".").split(", "))


@given(_tables(), st.integers(24, 200))
def test_a_table_is_as_wide_as_it_may_be_or_nothing_more_can_be_left_out(table: Table, width: int) -> None:
    text = table.text(width)
    if max(map(len, text.splitlines())) > width:
        missing = _missing(text)
        assert {column.head for column in table.columns if column.rank} <= missing
        assert ("intervals" in missing) or not any(column.details for column in table.columns if not column.rank)
    never = [cell for column in table.columns if not column.rank and column.kind == "number" for cell in column.cells]
    for cell in never:
        assert re.search(rf"(?<![\d.–-]){re.escape(cell)}(?![\d.])", text), cell
    assert "…" not in text


@given(_tables())
def test_with_enough_room_all_is_there_and_each_head_has_one_line(table: Table) -> None:
    text = table.text(1000)
    assert "Left out" not in text
    lines = text.splitlines()
    heads = lines[bool(table.title)]
    for column in table.columns:
        assert column.head in heads
        for cell, detail in zip(column.cells, column.details or column.cells, strict=True):
            assert cell in text
            assert detail in text
    assert len(lines) == bool(table.title) + 2 + len(table.columns[0].cells)


@given(_tables(), st.integers(24, 60))
def test_what_is_left_out_is_named(table: Table, width: int) -> None:
    text = table.text(width)
    for column in table.columns:
        if column.kind == "number" and column.cells[0] not in text.partition("Left out")[0]:
            assert column.head in _missing(text)
    assert ("intervals" in _missing(text)) <= any(column.details for column in table.columns)


def test_the_highest_rank_goes_first() -> None:
    columns = [Column(head=f"c{rank}", cells=("0.123",), rank=rank) for rank in (0, 2, 1)]
    table = Table(title="", columns=tuple(columns))
    assert table.text(24).splitlines()[0].split() == ["c0", "c2", "c1"]
    assert table.text(16).splitlines()[0].split() == ["c0", "c1"]
    assert " ".join(table.text(16).split()).endswith("Left out for want of width: c2.")
    assert table.text(6).splitlines()[0].split() == ["c0"]


def test_sentences_are_broken_where_others_are_not() -> None:
    sentence = "a sentence of several words that needs more than one line"
    columns = (Column(head="name", cells=("x",), kind="text"), Column(head="what", cells=(sentence,), kind="sentence"))
    lines = Table(title="", columns=columns).text(40).splitlines()
    assert [line[:4] for line in lines[2:]] == ["x   ", "    "]
    assert " ".join(line[4:].strip() for line in lines[2:]) == sentence


def test_control_characters_and_markup_of_names_are_text() -> None:
    table = Table(title="a\x1b[31m\nb", columns=(Column(head="<b>", cells=("</td><script>", "\u202e")),))
    assert table.text().splitlines()[0] == r"a\x1b[31m b"
    assert "\x1b" not in table.text() + table.html()
    assert "<script>" not in table.html()
    assert "&lt;b&gt;" in table.html()
    assert r"\u202e" in table.html()


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (1234.5, "1,234.500"), (float("nan"), ""), (None, ""), (-0.5, "-0.500")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_bounds() -> None:
    assert (bounds(0.1, 0.25), bounds(float("nan"), 1.0)) == ("0.100–0.250", "")
