"""How far a job is: bars where they are asked for or someone looks, a function, or nothing."""

import sys

import pytest
import tiny_models

import anydepth as ad
from anydepth.progress import reporting


def trace(**settings):
    model, batch = tiny_models.build("vit")
    return ad.trace(model, [batch, batch], measures=["cosine"], labels=False, **settings)


def test_bars_are_drawn_where_they_are_asked_for(capsys):
    trace(progress=True)
    drawn = capsys.readouterr().err
    assert "batches" in drawn
    assert "2/2" in drawn


@pytest.mark.parametrize("progress", [False, None])  # a pipe, as here, is no terminal
def test_nothing_is_printed_where_nobody_looks(progress, capsys):
    trace(progress=progress)
    assert capsys.readouterr() == ("", "")


def test_bars_are_drawn_at_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trace()
    assert "2/2" in capsys.readouterr().err


def test_a_function_is_called_instead(capsys):
    calls = []
    trace(progress=lambda *call: calls.append(call))
    assert calls[1][:2] == (2, 2)
    assert calls[-1] == (6, 6, "cosine")
    assert capsys.readouterr().err == ""


def test_one_bar_for_each_kind_of_work(capsys):
    with reporting(True) as report:
        assert report is not None
        report(1, 4, "rows, of depth 1")
        report(2, None, "batches")
        report(3, 4, "rows, of depth 2")
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    last = {kind: next(line for line in reversed(lines) if kind in line) for kind in ("rows", "batches")}
    assert "rows, of depth 2:" in last["rows"]
    assert "3/4" in last["rows"]
    assert "batches: 2it" in last["batches"]
