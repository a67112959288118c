"""Every recipe at full scale on tiny stand-ins of its models and data: trained two steps, measured and judged."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import recipe_models

from anydepth.errors import AnydepthError
from anydepth.reproduce import experiment as bench
from anydepth.reproduce import runner as running
from anydepth.reproduce.curves import THRESHOLDS, by_depth, exits
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Plan, Recipe
from anydepth.reproduce.recipes import RECIPES
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.reproduce.runner import reproduce, results_path
from anydepth.reproduce.settings import ReproduceSettings
from anydepth.reproduce.subjects import SCALES, Scale, Subject
from anydepth.training.summary import TrainingSummary

pytestmark = pytest.mark.usefixtures("undrawn")

FIGURES = {
    *(f"Fig. {number}" for number in (*range(1, 13), 14, 15, 16, 21, 22, 23)),
    "App. B.4",
    "App. C.1",
    "Table 1",
}
"""What the paper shows that can be reproduced; Fig. 13 and 17 to 20 are of detection and of transfer (App. B.4)."""
ELSEWHERE = ("clip", "skip", "parameters")
"""Recipes whose stand-ins and tests are in test_reproduce_recipes_other.py."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


def order(root: Path, name: str, scale: Scale = "cpu", seeds: int = 1) -> ReproduceSettings:
    use = recipe_models.use(root / "standins", running.RECIPES[name].plans[scale].sources())
    return ReproduceSettings(recipe=name, out=root / scale, scale=scale, seeds=seeds, steps=2, use=pairs(use))


def pairs(use: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{known}={path}" for known, path in use.items())


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ELSEWHERE])
def test_a_recipe_runs_at_full_scale(root: Path, name: str) -> None:
    recipe, asked = RECIPES[name], order(root, name, "full")
    assert set(asked.replacements) == set(recipe.plans["full"].sources()), "nothing is downloaded"

    found = reproduce(asked)

    assert RecipeResults.load(results_path(asked.out, recipe, "full", 2)) == found
    assert found.seeds[0].provenance["versions"]["anydepth"]
    decided = recipe.claims(found)
    assert decided
    for one in decided:
        assert len(one.values) == 1
        assert one.certain or one.verdict == "undecided", "one seed decides nothing that is drawn"
    for panel in recipe.panels(found):
        for variant in panel.variants:
            assert found.has(variant, panel.quantity), (panel.title, variant)


def toy_recipe() -> Recipe:
    """Two small trainings."""
    subject = Subject(
        title="a ViT of 3 blocks",
        model="made:vit-12",
        data="asset:fashion-mnist",
        task="image-classification",
        eval_split="test",
        from_scratch=True,
    )

    def measure(bench: Experiment) -> Values:
        return {
            name: by_depth(bench.traced("vit", bench.trained("vit", name), measures=("cosine",)))
            for name in ("standard", "aligned")
        }

    plan = Plan({"vit": subject}, 1, "CPU minutes")
    return Recipe(
        name="toy",
        title="A toy",
        figures=("Fig. 0",),
        shows="Nothing.",
        cpu=plan,
        full=plan,
        measure=measure,
        claims=lambda found: [],
        panels=lambda found: [],
    )


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Local folders in the place of what the toy reads; read only."""
    root = tmp_path_factory.mktemp("toy")
    use = recipe_models.use(root / "standins", toy_recipe().plans["cpu"].sources())
    recipe_models.deit(root / "vit", blocks=3, channels=1)
    return {**use, "made:vit-12": str(root / "vit")}


@pytest.fixture
def toy(copies: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ReproduceSettings:
    """An order of two seeds of the toy, of which nothing has been made."""
    monkeypatch.setattr(running, "RECIPES", {**RECIPES, "toy": toy_recipe()})
    return ReproduceSettings(recipe="toy", out=tmp_path / "cpu", seeds=2, steps=2, use=pairs(copies))


@pytest.fixture(scope="module")
def finished(copies: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that order leaves; read only."""
    folder = tmp_path_factory.mktemp("finished") / "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "RECIPES", {**RECIPES, "toy": toy_recipe()})
        reproduce(ReproduceSettings(recipe="toy", out=folder, seeds=2, steps=2, use=pairs(copies)))
    return folder


@pytest.fixture
def made(toy: ReproduceSettings, finished: Path) -> ReproduceSettings:
    """The same order where all of it is there already."""
    shutil.copytree(finished, toy.out)
    return toy


def test_all_of_the_paper_is_there() -> None:
    assert {figure for recipe in RECIPES.values() for figure in recipe.figures} == FIGURES - {"Fig. 13"}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_says_what_it_is(recipe) -> None:
    assert set(recipe.plans) == set(SCALES)
    for plan in recipe.plans.values():
        assert plan.cost > 0
    assert recipe.plans["cpu"].unit == "CPU minutes"
    assert recipe.title
    assert all(said.endswith(".") for said in (recipe.shows, *recipe.notes))
    assert Path(__file__).parents[2].joinpath(f"src/anydepth/reproduce/recipes/{recipe.name}.py").is_file()


def path_of(asked: ReproduceSettings) -> Path:
    return results_path(asked.out, running.RECIPES[asked.recipe], "cpu", asked.steps)


def test_what_is_finished_is_not_made_again(made: ReproduceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reproduce(made)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(bench, "align", never)
    monkeypatch.setattr(bench, "trace", never)
    assert reproduce(made) == first
    path_of(made).unlink()
    again = reproduce(made)
    assert {number: seed.values for number, seed in again.seeds.items()} == {
        number: seed.values for number, seed in first.seeds.items()
    }
    assert again.seeds[0].cpu_seconds == first.seeds[0].cpu_seconds > 0, "what the parts took when they were made"


def test_an_interrupted_run_goes_on(toy: ReproduceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, trained = bench.align, []

    def align(*, out: Path, **how: Any) -> TrainingSummary:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(out)
        return whole(out=out, **how)

    monkeypatch.setattr(bench, "align", align)
    with pytest.raises(KeyboardInterrupt):
        reproduce(toy)
    assert set(RecipeResults.load(path_of(toy)).seeds) == {0}, "what is finished is kept"
    monkeypatch.setattr(bench, "align", lambda *, out, **how: (trained.append(out), whole(out=out, **how)))
    found = reproduce(toy)
    assert set(found.seeds) == {0, 1}
    assert len(trained) == len(set(trained)) == 4
    assert found.seeds[0].values != found.seeds[1].values


def test_a_seed_is_the_same_wherever_it_is_run(made: ReproduceSettings, tmp_path: Path) -> None:
    found = reproduce(made)
    again = reproduce(replace(made, out=tmp_path / "elsewhere", seeds=1))
    assert again.seeds[0].values == found.seeds[0].values


def test_a_damaged_curve_is_told(made: ReproduceSettings) -> None:
    reproduce(made)
    path = path_of(made)
    content = json.loads(path.read_text())
    content["seeds"]["1"]["values"]["standard"]["accuracy"].append(0.5)
    path.write_text(json.dumps(content))
    with pytest.raises(AnydepthError, match="'accuracy' of 'standard', of another length in another seed"):
        reproduce(made)
    content["seeds"]["1"]["values"]["standard"]["accuracy"] = "high"
    path.write_text(json.dumps(content))
    with pytest.raises(AnydepthError, match="is corrupt"):
        reproduce(made)


def test_rows_to_train_on_and_rows_held_out(toy: ReproduceSettings) -> None:
    plan = running.RECIPES["toy"].plans["cpu"]
    for seed in (0, 1):
        one = bench.Experiment(out=toy.out, scale="cpu", subjects=plan.subjects, seed=seed, use=toy.replacements)
        assert one.samples(plan.subjects["vit"]).split == "test"
        assert one.samples(plan.subjects["vit"], training=True).split == "train"


def test_another_copy_is_another_part(made: ReproduceSettings, tmp_path: Path) -> None:
    first = reproduce(made)
    recipe_models.deit(tmp_path / "other", blocks=2, channels=1)
    other = replace(made, use=(*made.use, f"made:vit-12={tmp_path / 'other'}"))
    with pytest.raises(AnydepthError, match="was started with made:vit-12 .*, and is now asked for"):
        reproduce(other)
    path_of(made).unlink()
    assert len(reproduce(other).seeds[0].values["standard"]["accuracy"]) == 3
    assert len(first.seeds[0].values["standard"]["accuracy"]) == 4


def test_another_title_is_the_same_subject(made: ReproduceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reproduce(made)
    old = running.RECIPES["toy"]
    subject = replace(old.plans["cpu"].subjects["vit"], title="better words")
    plan = Plan({"vit": subject}, 1, "CPU minutes")
    monkeypatch.setitem(running.RECIPES, "toy", replace(old, cpu=plan, full=plan))
    assert reproduce(made).seeds == first.seeds
    path_of(made).unlink()
    monkeypatch.setattr(bench, "align", None)
    assert reproduce(made).seeds[0].values == first.seeds[0].values


def test_results_of_another_version_are_refused(made: ReproduceSettings) -> None:
    reproduce(made)
    path = path_of(made)
    content = json.loads(path.read_text())
    for change, message in (
        ({"version": 7}, "is of version 7 of 'toy', and this anydepth runs 1: give another --out, or remove the file"),
        ({"settings": {**content["settings"], "as_printed": True}}, "was started with as_printed true, and is now"),
        ({"settings": {}}, "is corrupt: KeyError at 'subjects'"),
        ({"steps": 3}, "was stopped after 3 steps, and is now asked for 2"),
        ({"recipe": "glue"}, "is of 'glue', and was looked for as 'toy'"),
        ({"recipe": []}, "is corrupt"),
        ({"seeds": {"-1": content["seeds"]["0"]}}, "is corrupt"),
        ({"format": 2}, "is of format 2, and this anydepth reads up to 1: upgrade anydepth"),
        ({"seeds": {"0": {}}}, "is corrupt"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(AnydepthError, match=message):
            reproduce(made)


def test_missing_assets_are_told_before_anything_is_trained(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANYDEPTH_ASSETS", str(tmp_path))
    monkeypatch.setattr("anydepth.reproduce.experiment.align", pytest.fail)
    with pytest.raises(AnydepthError, match=r"anydepth\.assets get fashion-mnist"):
        reproduce(ReproduceSettings(recipe="weights", out=tmp_path / "out", steps=2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "wieghts"}, "unknown recipe 'wieghts', expected one of .*: did you mean weights?"),
        ({"recipe": "xyz"}, "unknown recipe 'xyz', expected one of progression, depths"),
        ({"scale": "huge"}, "scale is 'huge', expected cpu or full"),
        ({"seeds": 0}, "seeds is 0, expected at least 1"),
        ({"as_printed": True}, "'weights' has no printed settings that are not plausible at scale 'cpu'"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        (
            {"use": ("asset:mr=.",)},
            "--use names 'asset:mr', and 'weights' reads made:vit-12, asset:fashion-mnist at scale 'cpu'",
        ),
    ],
)
def test_bad_orders(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(AnydepthError, match=message):
        reproduce(ReproduceSettings(**{"recipe": "weights", "out": tmp_path, **wrong}))
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_exit_curve_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(size=(50, 5)).astype(np.float32), rng.integers(0, 2, size=(50, 5)).astype(float)
    rows = SimpleNamespace(confidence=confidence, prediction=right.astype(np.int32), label=np.ones(50, np.int64))
    made = SimpleNamespace(rows=rows, depth=4)
    accuracy, blocks = exits.__wrapped__(made) if hasattr(exits, "__wrapped__") else exits(made)
    for place, threshold in enumerate(THRESHOLDS):
        left = [next((depth for depth in range(1, 5) if row[depth] > threshold), 4) for row in confidence]
        assert math.isclose(blocks[place], sum(left) / len(left) / 4)
        assert math.isclose(accuracy[place], sum(right[row, depth] for row, depth in enumerate(left)) / len(left))


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    batch = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4}
    assert bench.shared(batch, 1) == batch
    for processes in (2, 3, 4, 8, 12, 24):
        own = bench.shared(batch, processes)
        assert own["per_device_train_batch_size"] * own["gradient_accumulation_steps"] * processes == 24
    with pytest.raises(AnydepthError, match="5 processes cannot share batches of 24 samples evenly"):
        bench.shared(batch, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "transfer"])
def test_two_processes(tmp_path: Path, name: str) -> None:
    asked = order(tmp_path, name, "full")
    use = [word for one, path in asked.replacements.items() for word in ("--use", f"{one}={path}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "anydepth", "reproduce"]
    command += [name, "--scale", "full", "--steps", "2", "--seeds", "1", "--out", str(tmp_path / "out"), *use]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = RecipeResults.load(results_path(tmp_path / "out", RECIPES[name], "full", 2))
    assert found.seeds[0].provenance["processes"] == 2
    assert done.stdout.count("Results: ") == 1
