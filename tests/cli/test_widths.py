"""What every command prints, recorded from a pseudo-terminal of 80 and of 40 columns."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import fake_recipe
import numpy as np
import pytest
from pseudo_terminal import on_screen
from run_cli import write_csv

from anydepth.cli import render, render_reproduce
from anydepth.cli.app import run
from anydepth.jobs.demo import DemoResult
from anydepth.onnx.exporter import ExportResult
from anydepth.results.tables import Column, Table
from anydepth.tracing.trace import Trace

TEXT = ["--data", "reviews.csv"]
LOOSE = ["--tolerance", "0.6", "--confidence", "0.6"]
COMMANDS: dict[str, list[str]] = {
    "trace": ["trace", "bert", *TEXT, "--out", "t", "--keep-states"],
    "trace, its theory": ["trace", "bert", *TEXT, "--out", "theory", "--theory"],
    "trace, a language model": ["trace", "gpt2", "--data", "corpus.txt", "--out", "lm"],
    "trace, measures": ["trace", "--list-measures"],
    "align": ["align", "bert", *TEXT, "--max-steps", "1", "--eval-limit", "8", "--use-cpu", "--out", "a"],
    "align, objectives": ["align", "--list-objectives"],
    "compare": ["compare", "t", "theory", "--measures", "none", "--out", "c"],
    "exit": ["exit", "bert", *TEXT, *LOOSE, "--out", "e"],
    "exit, a language model": ["exit", "gpt2", "--data", "corpus.txt", *LOOSE, "--out", "el", "--new-tokens", "4"],
    "predict": ["predict", "e", *TEXT, "--out", "p"],
    "truncate": ["truncate", "bert", "--depth", "auto", *TEXT, *LOOSE, "--out", "cut"],
    "reproduce": ["reproduce", "made-up"],
    "reproduce, the list": ["reproduce", "--list"],
}


EXPORTED = ExportResult(
    folder=Path("x"),
    model="org/a-model",
    policy="Confidence(threshold=0.501002580504612, depths=(1,), temperature=1.0)",
    exits=(1, 4),
    last=4,
    files=("blocks-1-1.onnx", "blocks-2-4.onnx"),
    bytes=(29_200, 1_234_567_890),
    apart=5.2e-7,
    batches=((3, 17), (1, 7)),
    notes=("certified at 60 % confidence: " * 3,),
)
"""Made up: an export takes half a minute, and the demo three."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """What each command printed: tables, sentences, notes, and a last line."""
    here = tmp_path_factory.mktemp("here")
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(checkpoints.WORDS, size=rng.integers(2, 9))) for _ in range(60)]
    checkpoints.bert(here / "bert", num_hidden_layers=4)
    checkpoints.gpt2(here / "gpt2")
    write_csv(here / "reviews.csv", [(text, str(number % 2)) for number, text in enumerate(rows)])
    (here / "corpus.txt").write_text("\n".join(" ".join(rows[place : place + 8]) for place in range(40)))
    printed: dict[str, tuple[Any, ...]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        fake_recipe.only_made_up(patch)
        patch.setattr("anydepth.report.pages.trace.render", lambda *_: "report")
        for page in ("exits", "comparison"):
            patch.setattr(f"anydepth.report.pages.{page}.write", lambda *_: None)
        patch.setattr("anydepth.reproduce.figures.draw", lambda *_: ())
        for module in (render, render_reproduce):
            patch.setattr(module, "print_parts", lambda *parts: printed.update({kind: parts}))
        patch.setattr(render, "print_table", lambda table: printed.update({kind: ((table,), (), (), "")}))
        for kind, arguments in COMMANDS.items():
            assert run(arguments) == 0, kind
        kind = "demo"
        traces = {"standard": Trace.load(here / "t"), "aligned": Trace.load(here / "theory")}
        render.show_demo(DemoResult(folder=Path("demo"), traces=traces), as_json=False)
        kind = "export"
        render.show_exported(EXPORTED, as_json=False)
    return printed


NEEDED = {
    "trace": {"depth", "accuracy", "saturate here", "cka to last"},
    "trace, its theory": {"depth", "accuracy", "saturate here", "cka to last"},
    "trace, a language model": {"depth", "accuracy", "saturate here", "cka to last"},
    "trace, measures": {"measure", "what it is for"},
    "align": {"depth", "accuracy"},
    "align, objectives": {"objective", "what it is for"},
    "compare": {"depth", "difference"},
    "exit": {"mean depth", "accuracy", "speed-up"},
    "exit, a language model": {"threshold", "sequences that fail", "mean depth"},
    "predict": {"depth", "samples", "share"},
    "export": {"blocks", "graph", "size"},
    "reproduce": {"measured", "value", "verdict"},
    "reproduce, the list": {"recipe", "--scale cpu", "--scale full"},
    "demo": {"depth", "standard accuracy", "aligned accuracy"},
}
"""The columns without which the sentences below them, or the command, would make no sense."""
each_command = pytest.mark.parametrize("kind", [*COMMANDS, "demo", "export"])


@pytest.mark.parametrize("width", [80, 40])
@each_command
def test_what_is_printed_fits_and_leaves_out_nothing_in_silence(
    kind: str, width: int, shown: dict[str, tuple[Any, ...]]
) -> None:
    tables, sentences, notes, last = shown[kind]
    lines = on_screen(partial(render.print_parts, *shown[kind]), width)
    # longer are only words that are longer, and what has paths to be copied
    assert [line for line in lines if len(line) > width and " " in line.strip() and line not in last] == []
    assert not any(len(line) > width for line in lines if re.search(r"\d  |─", line))
    screen = " ".join(" ".join(lines).split())
    assert screen.count("…") == "".join([*sentences, *notes]).count("…")
    for text in (*sentences, *notes, last):
        assert " ".join(text.split()) in screen
    for table in tables:
        fields = re.split(r"\s+", screen)
        for column in present(table, screen):
            for cell in column.cells:
                assert set(cell.split()) <= set(fields), f"{cell!r} of {column.head!r}"
    heads = {column.head for table in tables for column in present(table, screen)}
    assert NEEDED.get(kind, set()) <= heads
    if width == 80 and kind not in ("exit", "compare"):
        assert not {"intervals", "accuracy"} & missing(screen)


def missing(screen: str) -> set[str]:
    """What a screen says was left out."""
    lines = re.findall(r"Left out for want of width: (.*?)\.(?: |$)", screen) or [""]
    return {name for names in lines for name in re.split("; " if ";" in names else ", ", names)}


def present(table: Table, screen: str) -> list[Column]:
    """The columns that a screen does not say were left out."""
    return [column for column in table.columns if column.head not in missing(screen) - {""}]


@each_command
def test_nothing_is_cut_where_there_is_room(kind: str, shown: dict[str, tuple[Any, ...]]) -> None:
    tables, *_ = shown[kind]
    lines = on_screen(partial(render.print_parts, *shown[kind]), 240)
    assert not any("want of width" in line for line in lines)
    for table in tables:
        for column in table.columns:
            assert all(any(cell in line for line in lines) for cell in (*column.cells, *column.details))
