"""`anydepth reproduce`, with a recipe that trains nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_recipe
import pytest
from fake_recipe import RECIPE, RECIPES, only_made_up, put, results
from run_cli import Command, in_folder

from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.results import RecipeResults, Values

OUT = Path("runs/reproduce")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    only_made_up(monkeypatch)
    return in_folder(tmp_path, tmp_path / "here", monkeypatch, capsys)


def test_a_recipe_ends_with_its_claims_and_where_everything_is(command: Command) -> None:
    done = command("reproduce", "made-up")
    assert done.status == 0, done.err
    assert "seed 2 is measured" in done.err
    for told in ("Fig. 1", "plain: accuracy at 0", "0.102 (0.097 to 0.107)", "holds", "does not hold", "undecided"):
        assert told in done.out
    for place in ("results/made-up.json", "figures/made-up.png", "verdict.md"):
        assert f": {OUT / place}" in done.out
        assert (OUT / place).stat().st_size > 1000
    assert (OUT / "figures/made-up.svg").is_file()
    assert "trial" not in done.out


def test_seeds_that_are_there_stay(command: Command) -> None:
    assert command("reproduce", "other", "--seeds", "1").status == 0
    before = RecipeResults.load(OUT / "results/other.json")
    done = command("reproduce", "other", "--seeds", "2", "--json")
    assert "seed 1 is measured" in done.err
    assert "seed 0 is measured" not in done.err
    after = RecipeResults.load(OUT / "results/other.json")
    assert after.seeds[0] == before.seeds[0]
    assert json.loads(done.out)["seeds"] == [0, 1]


def test_the_settings_of_the_last_run_run_it_again(command: Command) -> None:
    assert command("reproduce", "other", "--seeds", "2").status == 0
    before = (OUT / "results/other.json").read_bytes()
    done = command("reproduce", "--config", str(OUT / "settings.yaml"), "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["seeds"] == [0, 1]
    assert (OUT / "results/other.json").read_bytes() == before
    (OUT / "settings.yaml").write_text("job: trace\n")
    done = command("reproduce", "other", "--seeds", "3")
    assert done.status == 2
    assert "has settings of anydepth trace, expected those of anydepth reproduce" in done.err
    assert (OUT / "settings.yaml").read_text() == "job: trace\n"


def test_json_is_for_machines(command: Command) -> None:
    done = command("reproduce", "other", "--seeds", "1", "--json")
    found = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert done.out.count("\n") == 1
    assert (found["recipe"], found["scale"], found["trial"]) == ("other", "cpu", False)
    assert found["results"] == str(OUT / "results/other.json")
    assert found["verdict"] == str(OUT / "verdict.md")
    first = found["claims"][0]
    assert (first["verdict"], first["mean"], first["low"]) == ("undecided", pytest.approx(0.1), None)


def test_a_trial_is_no_result(command: Command) -> None:
    done = command("reproduce", "made-up", "--steps", "2", "--seeds", "1")
    assert done.status == 0, done.err
    assert "A trial of 2 steps" in done.out
    assert "no result" in done.out
    assert "verdict.md" not in done.out
    assert {path.name for path in OUT.iterdir()} == {"trial"}
    assert (OUT / "trial/results/made-up.json").is_file()
    assert (OUT / "trial/figures/made-up.png").is_file()
    assert json.loads(command("reproduce", "made-up", "--steps", "2", "--seeds", "1", "--json").out)["trial"] is True


def test_after_an_interrupt_the_same_command_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(bench: Experiment) -> Values:
        if bench.seed == 1:
            raise KeyboardInterrupt
        return fake_recipe.measure(bench)

    monkeypatch.setitem(RECIPES, "other", replace(RECIPES["other"], measure=stops))
    stopped = command("reproduce", "other")
    assert stopped.status == 130
    assert stopped.err.endswith("interrupted; the same command goes on where this one stopped\n")
    assert set(RecipeResults.load(OUT / "results/other.json").seeds) == {0}
    monkeypatch.setitem(RECIPES, "other", fake_recipe.OTHER)
    again = command("reproduce", "other")
    assert again.status == 0, again.err
    assert "seed 0 is measured" not in again.err
    assert set(RecipeResults.load(OUT / "results/other.json").seeds) == {0, 1, 2}


def test_the_list(command: Command) -> None:
    put(OUT, results(2))
    done = command("reproduce", "--list")
    assert (done.status, done.err) == (0, "")
    for told in ("made-up", "other", "Fig. 1", "What was made up", "2 CPU hours", "15 GPU hours", "2 of 3 seeds"):
        assert told in done.out
    assert "not run" in done.out
    first, second = json.loads(command("reproduce", "--list", "--json", "--seeds", "2").out)["recipes"]
    assert (first["name"], first["scales"]["cpu"]) == ("made-up", {"cost": "80 CPU minutes", "state": "done"})
    assert second["scales"]["full"]["state"] == "not run"


def test_the_verdict_of_what_is_there(command: Command) -> None:
    put(OUT, results())
    done = command("reproduce", "--verdict")
    assert (done.status, done.err) == (0, "")
    assert f"Verdict: {OUT / 'verdict.md'}" in done.out
    page = (OUT / "verdict.md").read_bytes()
    assert (OUT / "figures/made-up.png").stat().st_size > 1000
    again = json.loads(command("reproduce", "--verdict", "--json").out)
    assert again == {
        "verdict": str(OUT / "verdict.md"),
        "figures": [str(OUT / f"figures/made-up.{kind}") for kind in ("png", "svg")],
    }
    assert (OUT / "verdict.md").read_bytes() == page


def test_local_folders_stand_in_for_names(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("local").mkdir()
    seen = []

    def measure(bench: Experiment) -> Values:
        seen.append((bench.source("org/model"), bench.source("org/data"), bench.as_printed, bench.device))
        return fake_recipe.values(bench.seed)

    monkeypatch.setitem(RECIPES, "other", replace(RECIPES["other"], measure=measure))
    arguments = ("--use", "org/model=local", "--as-printed", "--seeds", "1", "--device", "cpu")
    assert command("reproduce", "other", *arguments).status == 0
    assert seen == [("local", "org/data", True, "cpu")]


BAD = {
    "no name": ([], "no recipe was named, expected one: `anydepth reproduce --list` shows them all"),
    "a name that is none": (["made"], "unknown recipe 'made', expected one of made-up, other: did you mean made-up?"),
    "another scale": (["made-up", "--scale", "huge"], 'Invalid value "huge" for --scale. Choose from: "cpu", "full"'),
    "no seeds": (["made-up", "--seeds", "0"], "--seeds"),
    "no steps": (["made-up", "--steps", "0"], "--steps"),
    "use without a path": (["made-up", "--use", "org/model"], "--use is 'org/model', expected NAME=PATH"),
    "use of nothing": (["made-up", "--use", "org/model=none"], "--use org/model: there is no folder or file 'none'"),
    "use of another name": (
        ["made-up", "--use", "org/other=."],
        "--use names 'org/other', and 'made-up' reads org/model, org/data at scale 'cpu'",
    ),
    "a list of one": (["made-up", "--list"], "--list is about all recipes, and 'made-up' came with it"),
    "both": (["--verdict", "--list"], "--list and --verdict came together"),
    "no results": (["--verdict"], "holds no results, expected some"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(command: Command, case: str) -> None:
    arguments, message = BAD[case]
    done = command("reproduce", *arguments)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.out
    assert not OUT.exists()


def test_results_of_another_version_are_refused_before_anything_runs(command: Command) -> None:
    put(OUT, results(version=7))
    for arguments in (["made-up"], ["other"], ["--verdict"]):
        done = command("reproduce", *arguments)
        assert done.status == 2
        assert "is of version 7 of 'made-up', and this anydepth runs 1: remove it" in done.err
        assert len(done.err.strip().splitlines()) == 1
    assert "other version" in command("reproduce", "--list").out


def test_results_with_other_settings_are_not_gone_on_with(command: Command) -> None:
    put(OUT, replace(results(1), settings=RECIPE.settings("cpu", as_printed=True)))
    done = command("reproduce", "made-up")
    assert done.status == 2
    assert "was started with --as-printed true, and is now asked for false: give another --out" in done.err


def test_a_corrupt_file_is_one_line(command: Command) -> None:
    put(OUT, results()).write_text("{")
    for arguments in (["made-up"], ["--verdict"]):
        done = command("reproduce", *arguments)
        assert done.status == 2
        assert len(done.err.strip().splitlines()) == 1
        assert "made-up.json" in done.err
    assert "unreadable" in command("reproduce", "--list").out
