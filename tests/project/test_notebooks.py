"""The notebooks in docs/ run from top to bottom, without a download, and show traces as notebooks do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import notebook
import pytest

import anydepth as ad

FOLDER = Path(__file__).parents[2] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_is_one_for_each_newcomer() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["encoder", "language_model", "vit"]


@pytest.mark.usefixtures("operators_listed_once")
@each_notebook
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = notebook.run(path)
    traces = [value for value in shown if isinstance(value, ad.Trace)]
    assert traces
    chance = {"encoder": 0.5, "vit": 0.1, "language_model": 0.15}[path.stem]
    assert all(trace.accuracy[-1] > chance + 0.1 for trace in traces), "it has learnt something"
    if path.stem == "encoder":
        html = traces[0]._repr_html_()
        assert html.count("<table>") == 1
        assert "<svg" in html or "<img" in html
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@each_notebook
def test_it_is_kept_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    assert (content["nbformat"], len({cell["id"] for cell in content["cells"]})) == (4, len(content["cells"]))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in content["cells"])
    for kind, text in notebook.cells(path):
        for link in re.findall(r"\]\(([^)]+)\)", text) if kind == "markdown" else ():
            assert (path.parent / link).is_file(), link
