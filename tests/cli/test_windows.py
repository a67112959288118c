"""`anydepth trace` of a language model: long texts in windows, texts joined, and what the report says by position."""

from __future__ import annotations

import re
from pathlib import Path

import checkpoints
import pytest
from run_cli import Command, in_folder

from anydepth.tracing.trace import Trace


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("assets")
    checkpoints.to_train(root)
    return root


@pytest.fixture
def anydepth(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


ARGUMENTS = ("trace", "~gpt2", "--data", "~corpus.txt", "--measures", "cka", "--max-length", "4", "--out", "t")


@pytest.mark.parametrize(
    ("way", "note"),
    [
        (("--stride", "2"), "60 texts are longer than 4 tokens"),
        (("--pack",), "60 texts, each ended by [SEP], are joined"),
    ],
)
def test_texts_are_read_to_their_end(anydepth: Command, assets: Path, way: tuple[str, ...], note: str) -> None:
    done = anydepth(*ARGUMENTS, *way)
    assert done.status == 0, done.err
    found = Trace.load("t")
    tokens = [len(line.split()) for line in (assets / "corpus.txt").read_text().splitlines()]
    counted = sum(tokens) + 60 - 1 if "--pack" in way else sum(tokens) - 60
    assert len(found.rows) == counted
    assert note in " ".join(found.notes)
    page = Path("t/report.html").read_text()
    assert "By position, and by token" in page
    assert re.search(r"At depth 2, (accuracy|perplexity) is [\d.,]+%? \(", page)


@pytest.mark.parametrize(
    ("way", "says"),
    [
        (("--stride", "0"), "stride is 0 tokens, expected 1 to 3"),
        (("--stride", "4"), "stride is 4 tokens, expected 1 to 3"),
        (("--stride", "2", "--no-labels"), "expected --labels"),
    ],
)
def test_what_cannot_be_is_one_line(anydepth: Command, way: tuple[str, ...], says: str) -> None:
    done = anydepth(*ARGUMENTS, *way)
    assert (done.status, done.out) == (2, "")
    assert says in done.err.replace("\n", " ")
    assert not Path("t").exists()
