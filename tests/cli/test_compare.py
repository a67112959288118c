"""`anydepth compare` end to end, and its page in a browser."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from image_traces import COUNT, traced
from run_cli import Command, in_folder

import anydepth as ad


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three traces of the same images, the last of a deeper model, and some that went wrong; read only."""
    root = tmp_path_factory.mktemp("traces")
    order = list(range(COUNT))
    traced(root / "one", 0, order)
    traced(root / "two", 1, order)
    traced(root / "deep", 2, order, blocks=5)
    for name in ("turned", "cut", "mixed", "future"):
        shutil.copytree(root / "two", root / name)
    os.truncate(root / "cut" / "states" / "states.npy", 1000)
    shutil.copy(root / "one" / "states" / "states.npy", root / "mixed" / "states" / "states.npy")
    content = json.loads((root / "future" / "trace.json").read_text())
    (root / "future" / "trace.json").write_text(json.dumps(content | {"format": 99}))
    turned = ad.Trace.load(root / "turned")
    replace(turned, ids=turned.ids[::-1]).save(root / "turned")
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """The command line in this process, in an empty folder; `~name` stands for an asset."""
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def test_an_interrupt_says_that_the_command_starts_over(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anydepth.jobs.compare.compare", stop)
    done = command("compare", "~one", "~two", "--out", "both")
    assert (done.status, done.err) == (130, "anydepth: interrupted; the same command starts over\n")
    assert list(Path().iterdir()) == []


def test_what_people_see(command: Command) -> None:
    done = command("compare", "~one", "~two", "--out", "both")
    assert done.status == 0, done.err
    assert "two minus one: 60 samples" in done.out
    assert "not significant" in done.out
    assert "most alike by cka" in done.out
    assert "Report: both/report.html" in done.out
    assert {path.name for path in Path("both").iterdir()} == {"compare.json", "report.html", "settings.yaml"}
    assert command("compare", "~one", "~two", "--out", "both").status == 0, "once more"


def test_for_machines(command: Command) -> None:
    done = command("compare", "~one", "~two", "~deep", "--measures", "knn,cka", "--out", "three", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)["comparisons"]
    assert [one["names"] for one in found] == [["one", "two"], ["one", "deep"]]
    assert list(found[0]["similarity"]) == ["knn", "cka"]
    assert len(found[1]["similarity"]["cka"]) == 4
    assert len(found[1]["similarity"]["cka"][0]) == 6
    assert {row["statistic"] for row in found[0]["differences"]} >= {"accuracy", "settled", "cosine_to_last"}
    assert json.loads(Path("three/compare.json").read_text())["comparisons"] == found
    tested = command("compare", "~one", "~two", "--permutations", "19", "--out", "three", "--json")
    chance = json.loads(tested.out)["comparisons"][0]["chance"]
    assert (chance["permutations"], chance["samples"], chance["p"][3][3]) == (19, COUNT, 0.05)
    assert found[0]["chance"] is None
    bare = json.loads(command("compare", "~one", "~two", "--measures", "none", "--json").out)["comparisons"][0]
    assert bare["similarity"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("~one",), "1 trace came, expected two or more: anydepth compare A B"),
        (("~one", "nowhere"), "nowhere/trace.json does not exist"),
        (("~one", "~two", "--despite", "luck"), "traces can be compared despite data, tokens, not despite 'luck'"),
        (("~one", "~two", "--measures", "likeness"), "unknown measure 'likeness', expected one of cosine"),
        (("~one", "~two", "--permutations", "5"), "5 permutations can show nothing at 5 %: expected at least 19"),
        (
            ("~one", "~two", "--measures", "none", "--permutations", "99"),
            "permutations are to test cka, and what is measured is nothing",
        ),
        (("~one", "~turned"), "sample 'image 0' is not the same in the two traces, nor are 59 more of 60: other data,"),
        (("~one", "~cut"), "{assets}/cut/states/states.npy cannot be read as kept states"),
        (("~one", "~mixed"), "{assets}/mixed/states is stale: its states are not those this trace was made of"),
        (("~one", "~future"), "{assets}/future is of format 99, and this anydepth reads up to 2: upgrade anydepth"),
    ],
)
def test_bad_input(command: Command, assets: Path, arguments: tuple[str, ...], message: str) -> None:
    done = command("compare", *arguments, "--out", "both")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"anydepth: {message.format(assets=assets)}")
    assert done.err.count("\n") == 1
    assert not Path("both").exists()


def test_content_may_differ_if_the_user_knows_better_and_labels_may_not(command: Command) -> None:
    done = command("compare", "~one", "~turned", "--despite", "data", "--measures", "none")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(
        "anydepth: sample 'image 0' has label 0 in the first trace and 1 in the second: ids or cl"
    )


def test_what_is_there_is_not_overwritten(command: Command) -> None:
    Path("both").mkdir()
    Path("both/diary.txt").write_text("dear")
    done = command("compare", "~one", "~two", "--out", "both")
    assert done.err == "anydepth: 'both' holds something else already: give another folder with --out\n"
    assert Path("both/diary.txt").read_text() == "dear"


def test_the_page_in_a_browser(command: Command, chromium: str) -> None:
    assert command("compare", "~one", "~two", "~deep", "--out", "three").status == 0
    page = Path("three/report.html").resolve()
    with Browser(chromium) as browser:
        browser.open(page)
        # six differences, two maps for the first pair and two for the second, and the trend
        assert browser.evaluate("document.querySelectorAll('svg.marks').length") == 6 + 4 + 1
        marks = "[...document.querySelectorAll('svg.marks')].filter(s => !s.querySelector('[class*=mark-] path[d]'))"
        assert browser.evaluate(f"{marks}.length") == 0
        cells = "document.querySelectorAll('.map')[%d].querySelectorAll('.mark-rect.role-mark path').length"
        assert browser.evaluate(cells % 0) == 4 * 4
        assert browser.evaluate(cells % 2) == 4 * 6
        assert "Accuracy" in browser.evaluate("document.querySelector('.findings').innerText")
        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
        browser.open(page, width=390, height=844)
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
