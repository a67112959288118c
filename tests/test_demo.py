from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.datasets import load_digits

import anydepth.demo
from anydepth.cli import run
from anydepth.demo import BLOCKS, train_digits
from anydepth.errors import DataError, TraceFileError
from anydepth.result import Trace


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int, str]]]:
    """A model of two epochs, and what was told on the way; read only."""
    told: list[tuple[int, int, str]] = []
    folder = tmp_path_factory.mktemp("demo") / "model"
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert train_digits(folder, epochs=2, progress=lambda *said: told.append(said)) == folder
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are the caller's"
    return folder, told


@torch.no_grad()
def test_it_learns_and_loads_with_transformers_alone(trained: tuple[Path, Any]) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(trained[0]).eval()
    assert len(model.vit.encoder.layer if hasattr(model.vit, "encoder") else model.vit.layers) == BLOCKS
    images, labels = load_digits(return_X_y=True)
    grey = torch.tensor(np.round(images * (255 / 16)), dtype=torch.float32).reshape(-1, 1, 8, 8)
    answers = model(pixel_values=(grey / 255 - 0.5) / 0.5).logits.argmax(1).numpy()
    assert (answers == labels).mean() > 0.3  # after two epochs of twenty; chance is 0.1
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}


def test_progress_tells_each_epoch_and_the_loss_falls(trained: tuple[Path, Any]) -> None:
    told = trained[1]
    assert [said[:2] for said in told] == [(1, 2), (2, 2)]
    losses = [float(said[2].removeprefix("training, loss ")) for said in told]
    assert losses[-1] < losses[0]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred images to train on, where what is learnt does not matter."""
    whole = anydepth.demo._digits
    monkeypatch.setattr(anydepth.demo, "_digits", lambda model: tuple(part[:200] for part in whole(model)))


@pytest.mark.usefixtures("few")
def test_the_seed_settles_everything(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        folder = train_digits(tmp_path / name, epochs=1, seed=seed)
        return transformers.AutoModelForImageClassification.from_pretrained(folder).state_dict()

    one, same, other = weights("one", 0), weights("same", 0), weights("other", 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("few")
def test_an_interrupt_leaves_the_model_that_was_there(trained: tuple[Path, Any], tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    for name in ("model", "new"):
        with pytest.raises(KeyboardInterrupt):
            train_digits(tmp_path / name, epochs=1, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[Any] = []
    with pytest.raises(TraceFileError, match="cannot write .*file/model: "):
        train_digits(tmp_path / "file" / "model", epochs=1, progress=lambda *said: told.append(said))
    assert told == []


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match="'digits' comes with scikit-learn: pip install 'anydepth.demo.'"):
        train_digits(tmp_path / "model", epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_does_the_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--epochs", "1", "--out", str(tmp_path / "demo")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"Report: {tmp_path / 'demo' / 'report.html'}" in out
    found = Trace.load(tmp_path / "demo")
    assert found.depth == BLOCKS
    assert found.provenance["samples"] == 450
    assert "accuracy" in found.statistics
    assert set(found.by_class()["class"]) == {str(digit) for digit in range(10)}
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"model", "trace.json", "arrays.safetensors", "sums.safetensors", "report.html"}


def test_epochs_are_at_least_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["demo", "--epochs", "0", "--out", str(tmp_path / "demo")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("anydepth: Invalid value for '--epochs'")
