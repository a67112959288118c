"""The verdict page and the figures of recipes, from results that were made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_recipe import DEPTH, OTHER, RECIPE, RECIPES, only_made_up, put, results
from PIL import Image

from anydepth.errors import AnydepthError, ReproduceError
from anydepth.reproduce.claims import ABSTRACT, Claim
from anydepth.reproduce.figures import draw, figure
from anydepth.reproduce.listing import cost, list_recipes, load_results
from anydepth.reproduce.recipe import Panel, Recipe
from anydepth.reproduce.results import RecipeResults, Seed
from anydepth.reproduce.verdict import render, write


@pytest.fixture(autouse=True)
def _recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    only_made_up(monkeypatch)


# --- what decides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "bound", "verdict"),
    [
        ([0.2, 0.3, 0.25], {}, "holds"),
        ([-0.2, -0.3, -0.25], {}, "does not hold"),
        ([-0.2, 0.3, 0.25], {}, "undecided"),
        ([0.2, 0.3, 0.25], {"below": 0.0}, "does not hold"),
        ([0.2, 0.3, 0.25], {"below": 1.0}, "holds"),
        ([0.2, 0.3, 0.25], {"above": 0.25}, "undecided"),
        ([0.2], {}, "undecided"),
        ([0.2], {"certain": True}, "holds"),
        ([0.0, 0.0, 0.0], {}, "undecided"),
        ([0.5, 0.5, 0.5], {}, "holds"),
        ([0.5, float("nan"), 0.5], {}, "undecided"),
    ],
)
def test_the_whole_interval_must_be_on_one_side(values: list[float], bound: dict[str, Any], verdict: str) -> None:
    claim = Claim(where="Fig. 1", paper="it rises", measured="by how much", values=values, **bound)
    assert claim.verdict == verdict


# --- the page --------------------------------------------------------------------------------------------------------


def section(page: str, name: str) -> str:
    """The part of a page under a heading."""
    return page.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_all_claims_are_told_with_their_intervals(tmp_path: Path) -> None:
    put(tmp_path, results())
    page = render(tmp_path)
    assert "of 4 claims, 2 hold, 1 does not hold, 1 undecided" in page
    assert "3 of them by an interval" in page
    assert "at most 0.075 of their verdicts wrong" in page
    told = section(page, "made-up")
    assert "(Fig. 1, Table 2). That something rises." in told
    assert "plain: accuracy at 0<br>**0.102 (0.097 to 0.107)**, asked: above 0 | **holds** |" in told
    assert "asked: below 0 | **does not hold** |" in told
    assert "asked: above 0.103 | **undecided** |" in told
    assert "| how many<br>**4**, asked: above 3 | **holds** |" in told
    assert "A model | B data. 3 seeds, 2.0 CPU minutes a seed as measured (40 CPU minutes stated)" in told
    assert "anydepth 0.1.0. Small." in told
    assert "![What was made up](figures/made-up.png)" in told
    assert "2020" not in page
    assert "runs/" not in page
    assert str(tmp_path) not in page


def test_the_abstract_has_a_row_for_each_claim(tmp_path: Path) -> None:
    put(tmp_path, results())
    rows = section(render(tmp_path), "The claims of the abstract").strip().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ABSTRACT.values())
    saturation = rows[list(ABSTRACT).index("saturation")]
    assert "**holds**: 0.102 (0.097 to 0.107), plain: accuracy at 0 ([made-up](#made-up), Fig. 1)<br>" in saturation
    assert saturation.endswith("| 1 holds, 1 does not hold |")
    assert rows[list(ABSTRACT).index("last-layer")].endswith("| 1 undecided |")
    assert rows[0].endswith("| none so far | no results |")


def test_a_recipe_without_results_says_how_to_get_them(tmp_path: Path) -> None:
    put(tmp_path, results())
    page = render(tmp_path)
    assert page.index("## made-up") < page.index("## other")
    assert "`anydepth reproduce other` does, in about 2 CPU hours for 3 seeds." in section(page, "other")
    full = "`anydepth reproduce made-up --scale full` does, in about 15 GPU hours for 3 seeds, estimated and not tried."
    assert full in section(page, "made-up")
    assert "0 of 2 experiments" in render(tmp_path / "nothing")


def test_both_scales_share_a_section(tmp_path: Path) -> None:
    put(tmp_path, results(2))
    put(tmp_path, results(3, scale="full"))
    told = section(render(tmp_path), "made-up")
    assert told.index("Run at the small scale") < told.index("figures/made-up.png") < told.index("at the full scale")
    assert "figures/made-up-full.png" in told
    assert "Not run" not in told
    assert "Fig. 1, full scale)" in render(tmp_path)


def test_what_the_paper_gets_wrong_is_collected(tmp_path: Path) -> None:
    page = render(tmp_path)
    wrong = section(page, "What the paper gets wrong or leaves open")
    assert "- [made-up](#made-up): It prints a | b." in wrong
    assert "| `learning_rate` | 0.1 | 0.001 | [made-up](#made-up), [other](#other) |" in wrong
    assert "| `warmup_steps` | 0 | the library's default | [made-up](#made-up), [other](#other) |" in wrong
    assert "One seed, no intervals" in wrong


def test_numbers_without_a_figure_are_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "other", replace(OTHER, claims=lambda found: ()))
    values = {"BERT": {"single": 109483778, "share": 0.25, "curve": [0.1, 0.2]}, "none": {"single": 7}}
    found = replace(results(1), recipe="other", seeds={0: Seed(values, 1.0, {})})
    found.save(tmp_path / "results" / "other.json")
    told = section(render(tmp_path), "other")
    assert "|  | single | share |\n| --- | --- | --- |\n| BERT | 109,483,778 | 0.25 |\n| none | 7 |  |\n" in told


def test_tables_stay_tables(tmp_path: Path) -> None:
    put(tmp_path, results())
    page = render(tmp_path)
    assert r"it rises \|x\| twice" in page
    columns = 0
    for line in page.splitlines():
        bars = line.replace(r"\|", "").count("|") if line.startswith("| ") else 0
        assert bars in (0, columns) or columns == 0, line
        columns = bars


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    put(tmp_path, results())
    first = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == first
    loaded = RecipeResults.load(tmp_path / "results/made-up.json")
    put(tmp_path, loaded)
    assert write(tmp_path).read_bytes() == first
    assert first.decode() == render(tmp_path)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            results(version=2),
            r"is of version 2 of 'made-up', and this anydepth runs 1: remove it, and run `anydepth reproduce made-up`",
        ),
        (
            replace(results(), settings={**RECIPE.settings("cpu"), "subjects": {}}),
            r"was started with one unset, and is now asked for|was started with",
        ),
        (results(steps=2), r"is a trial of 2 steps, expected whole trainings"),
        (replace(results(), recipe="gone"), r"holds results of 'gone', expected one of made-up, other"),
        (results(0), r"holds no seed, expected at least one"),
    ],
)
def test_other_results_are_refused(tmp_path: Path, found: RecipeResults, message: str) -> None:
    put(tmp_path, found)
    with pytest.raises(ReproduceError, match=message):
        render(tmp_path)


def test_a_copy_is_not_counted_twice(tmp_path: Path) -> None:
    path = put(tmp_path, results())
    path.with_name("copy.json").write_bytes(path.read_bytes())
    with pytest.raises(ReproduceError, match=r"copy.json' holds .* expected in 'made-up.json'"):
        load_results(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_corrupt_results_are_refused(tmp_path: Path, content: str) -> None:
    path = put(tmp_path, results())
    path.write_text(content)
    with pytest.raises(AnydepthError, match=r"made-up.json"):
        render(tmp_path)
    assert list_recipes(tmp_path, 3)[0].scales["cpu"].state == "unreadable"


def test_trials_are_not_rendered(tmp_path: Path) -> None:
    results(steps=2).save(tmp_path / "trial/results/made-up.json")
    assert "0 of 2 experiments" in render(tmp_path)


# --- how far it is ---------------------------------------------------------------------------------------------------


def test_the_list_tells_how_far_a_recipe_is(tmp_path: Path) -> None:
    def state() -> str:
        return list_recipes(tmp_path, 3)[0].scales["cpu"].state

    assert state() == "not run"
    put(tmp_path, results(1))
    assert state() == "1 of 3 seeds"
    put(tmp_path, results(4))
    assert state() == "done"
    put(tmp_path, results(version=2))
    assert state() == "other version"
    put(tmp_path, replace(results(), settings={"subjects": {}}))
    assert state() == "other settings"
    put(tmp_path, replace(results(), settings=RECIPE.settings("cpu", as_printed=True)))
    assert state() == "done"
    assert list_recipes(tmp_path, 3)[0].scales["full"].state == "not run"


def test_costs_are_told_in_hours_where_minutes_are_many() -> None:
    assert cost(RECIPE, "cpu", 2) == "80 CPU minutes"
    assert cost(RECIPE, "cpu", 3) == "2 CPU hours"
    assert cost(RECIPE, "full", 3) == "15 GPU hours"
    assert cost(replace(RECIPE, seeded=False), "cpu", 3) == "40 CPU minutes"


# --- the figure ------------------------------------------------------------------------------------------------------


def drawn(recipe: Recipe, found: RecipeResults) -> dict[str, Any]:
    chart = figure(recipe, found)
    assert chart is not None
    return dict(chart.to_dict())


def marks(panel: dict[str, Any]) -> list[str]:
    return [layer["mark"]["type"] for layer in panel["layer"]]


def test_a_figure_shows_what_was_measured() -> None:
    chart = drawn(RECIPE, results())
    panels = chart["concat"]
    assert [one["title"]["text"][0] for one in panels] == ["Accuracy", "Exits", "Nats", "Accuracy"]
    assert [marks(one)[0] for one in panels] == ["area", "area", "area", "line"], "no band around what is printed"
    assert panels[3]["layer"][0]["mark"]["strokeDash"]
    rows = panels[0]["data"]["values"]
    assert len(rows) == 2 * (DEPTH + 1)
    gap = next(row for row in rows if row["variant"] == "aligned" and row["place"] == 3)
    assert gap["value"] is gap["low"] is None
    assert [row["x"] for row in panels[3]["data"]["values"]] == [1, 2, 3], "the paper counts from 1"
    assert {row["variant"] for row in panels[2]["data"]["values"]} == {"plain"}, "the other has none"
    assert chart["title"]["subtitle"][0] == "A model | B data"
    assert chart["title"]["subtitle"][1].startswith("Means over 3 seeds")


def test_bands_stay_within_the_axis_and_one_seed_has_none() -> None:
    for one in drawn(RECIPE, results(2))["concat"][:2]:
        assert all(0 <= row["low"] <= row["high"] <= 1 for row in one["data"]["values"] if row["low"] is not None)
    alone = drawn(RECIPE, results(1))
    assert all("area" not in marks(one) for one in alone["concat"])
    assert alone["title"]["subtitle"][1].startswith("One seed.")


def test_a_variant_has_one_colour_in_all_panels() -> None:
    panels = (Panel("accuracy", "A", variants=("plain", "aligned")), Panel("nats", "B", variants=("plain",)))
    strangers = (*panels, Panel("accuracy", "C", printed={"theirs": (0.1, 0.2), "aligned": (0.2, 0.3)}))
    for chosen in (panels, strangers):
        colours: dict[str, str] = {}
        for one in drawn(replace(RECIPE, panels=lambda found, chosen=chosen: chosen), results())["concat"]:
            scale = one["layer"][-1]["encoding"]["color"]["scale"]
            assert len(set(scale["range"])) == len(scale["domain"])
            for name, colour in zip(scale["domain"], scale["range"], strict=True):
                assert colours.setdefault(name, colour) == colour


def test_pictures_are_saved(tmp_path: Path) -> None:
    paths = draw(RECIPE, results(), tmp_path)
    assert [path.name for path in paths] == ["made-up.png", "made-up.svg"]
    with Image.open(paths[0]) as picture:
        assert picture.mode in ("RGB", "RGBA")
        assert min(picture.size) > 500
        colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 50
    assert "Accuracy" in paths[1].read_text()


def test_a_trial_and_the_full_scale_have_figures_of_their_own(tmp_path: Path) -> None:
    small = replace(RECIPE, panels=lambda found: RECIPE.panels(found)[:1])
    assert draw(small, results(1, steps=2), tmp_path)[1] == tmp_path / "trial/figures/made-up.svg"
    assert draw(small, results(1, scale="full"), tmp_path)[1] == tmp_path / "figures/made-up-full.svg"
    assert draw(OTHER, results(), tmp_path) == (), "no panels, no figure"
    assert not (tmp_path / "figures/other.svg").exists()


def test_the_file_of_results_is_plain_json(tmp_path: Path) -> None:
    path = put(tmp_path, results(1))
    assert json.loads(path.read_text())["seeds"]["0"]["values"]["aligned"]["accuracy"][3] is None
