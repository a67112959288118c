from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.datasets import load_digits

import anydepth.jobs.demo
from anydepth.cli.app import run
from anydepth.errors import DataError, TraceFileError
from anydepth.jobs.demo import BLOCKS, OBJECTIVES, run_demo, train_digits
from anydepth.jobs.settings import DemoSettings
from anydepth.tracing.trace import Trace


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int | None, str]]]:
    """What two epochs leave, and what was told on the way; read only."""
    told: list[tuple[int, int | None, str]] = []
    folder = tmp_path_factory.mktemp("shown") / "demo"
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run_demo(DemoSettings(epochs=2), folder, progress=lambda *said: told.append(said))
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are the caller's"
    return folder, told


@pytest.fixture
def trained(shown: tuple[Path, Any]) -> Path:
    return shown[0] / "aligned" / "model"


@torch.no_grad()
def test_it_learns_and_loads_with_transformers_alone(trained: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(trained).eval()
    assert len(model.vit.encoder.layer if hasattr(model.vit, "encoder") else model.vit.layers) == BLOCKS
    images, labels = load_digits(return_X_y=True)
    grey = torch.tensor(np.round(images * (255 / 16)), dtype=torch.float32).reshape(-1, 1, 8, 8)
    answers = model(pixel_values=(grey / 255 - 0.5) / 0.5).logits.argmax(1).numpy()
    assert (answers == labels).mean() > 0.3  # after two epochs of twenty; chance is 0.1
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}


def test_progress_tells_each_epoch_and_the_loss_falls(shown: tuple[Path, Any]) -> None:
    told = [said for said in shown[1] if said[2].startswith("training aligned")]
    assert [said[:2] for said in told] == [(1, 2), (2, 2)]
    losses = [float(said[2].removeprefix("training aligned, loss at depth 8 ")) for said in told]
    assert losses[-1] < losses[0]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred images to train on, where what is learnt does not matter."""
    whole = anydepth.jobs.demo._digits
    monkeypatch.setattr(anydepth.jobs.demo, "_digits", lambda model: tuple(part[:200] for part in whole(model)))


@pytest.mark.usefixtures("few")
def test_the_seed_settles_everything(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        folder = train_digits(tmp_path / name, "standard", epochs=1, seed=seed)
        return transformers.AutoModelForImageClassification.from_pretrained(folder).state_dict()

    one, same, other = weights("one", 0), weights("same", 0), weights("other", 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("few")
def test_an_interrupt_leaves_the_model_that_was_there(trained: Path, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    for name in ("model", "new"):
        with pytest.raises(KeyboardInterrupt):
            train_digits(tmp_path / name, "aligned", epochs=1, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[Any] = []
    with pytest.raises(TraceFileError, match="cannot write .*file/model: "):
        train_digits(tmp_path / "file" / "model", "aligned", epochs=1, progress=lambda *said: told.append(said))
    assert told == []


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match="'digits' comes with scikit-learn: pip install 'anydepth.demo.'"):
        train_digits(tmp_path / "model", "aligned", epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few")
def test_both_ways_start_from_the_same_weights_and_differ_in_the_loss_alone(tmp_path: Path) -> None:
    """Standard training by hand, from the same seed with the same steps, ends at the very weights."""
    folder = train_digits(tmp_path / "standard", "standard", epochs=1)
    model = anydepth.jobs.demo._model(0)
    images, labels = anydepth.jobs.demo._digits(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=4)
    for chosen in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(64):
        loss = torch.nn.functional.cross_entropy(model(pixel_values=images[chosen]).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    saved = transformers.AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    aligned = transformers.AutoModelForImageClassification.from_pretrained(
        train_digits(tmp_path / "aligned", "aligned", epochs=1)
    ).state_dict()
    assert not all(torch.equal(saved[name], aligned[name]) for name in saved)


def test_the_whole_job(shown: tuple[Path, Any]) -> None:
    folder = shown[0]
    assert {path.name for path in folder.iterdir()} == {*OBJECTIVES, "report.html", "demo.json", "settings.yaml"}
    traces = {name: Trace.load(folder / name) for name in OBJECTIVES}
    for name, found in traces.items():
        assert {path.name for path in (folder / name).iterdir()} == {
            "model",
            "trace.json",
            "arrays.safetensors",
            "report.html",
        }
        assert found.depth == BLOCKS
        assert found.provenance["samples"] == 450
        assert found.provenance["model"]["name"] == f"{name} ViT"
        assert set(found.by_class()["class"]) == {str(digit) for digit in range(10)}
    assert traces["aligned"].accuracy[1] > traces["standard"].accuracy[1] + 0.05, "the story that is told"


def test_one_report_shows_both(shown: tuple[Path, Any]) -> None:
    page = (shown[0] / "report.html").read_text("utf-8")
    assert "<title>standard and aligned" in page
    for name in OBJECTIVES:
        assert f"Accuracy by class and depth, {name}" in page


@pytest.mark.usefixtures("few", "undrawn")
def test_the_command_prints_a_table_that_has_both_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--epochs", "1", "--out", str(tmp_path / "demo")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"Report: {tmp_path / 'demo' / 'report.html'}" in out
    assert "digits: 450 samples" in out
    traces = [Trace.load(tmp_path / "demo" / name) for name in OBJECTIVES]
    for depth in range(BLOCKS + 1):
        (line,) = (line for line in out.splitlines() if line.startswith(f"    {depth}  "))
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        assert [cell.split()[0] for cell in cells[1:3]] == [f"{one.accuracy[depth]:.3f}" for one in traces]
        if depth:
            assert [int(cell) for cell in cells[3:5]] == [one.saturation[depth] for one in traces]
    again = run(["demo", "--epochs", "1", "--seed", "1", "--out", str(tmp_path / "demo"), "--json"])
    out, err = capsys.readouterr()
    assert (again, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"out", "report", *OBJECTIVES}
    assert len(found["aligned"]["depths"]) == BLOCKS + 1


@pytest.mark.usefixtures("few", "undrawn")
def test_an_interrupt_says_that_the_command_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anydepth.report.pages.trace.write", stop)  # once both were trained and traced
    assert run(["demo", "--epochs", "1", "--out", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err == "anydepth: interrupted; the same command starts over\n"
    assert list(tmp_path.iterdir()) == []


def test_epochs_are_at_least_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["demo", "--epochs", "0", "--out", str(tmp_path / "demo")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("anydepth: --epochs is 0, expected at least 1")
