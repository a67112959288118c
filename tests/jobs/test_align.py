"""From names to a finished folder: what is trained, what it says it is worth, how it stops and goes on."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import anydepth.jobs.align
from anydepth import data
from anydepth.core.stack import Stack
from anydepth.data.examples import load_to_train
from anydepth.errors import AnydepthError, OptionError, TraceFileError, TrainingError
from anydepth.jobs.align import align
from anydepth.jobs.align_settings import objective_of, training_arguments
from anydepth.jobs.run_folder import RunFolder
from anydepth.jobs.settings import AlignSettings
from anydepth.models import loading as models
from anydepth.tracing.run import trace
from anydepth.training.callbacks import ProgressCallback
from anydepth.training.summary import TrainingSummary

# large steps, so that a few of them make a difference
FAST: dict[str, Any] = {
    "max_steps": 6,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "logging_steps": 2,
}
MODEL = {"README.md", "align.json", "config.json", "model.safetensors", "settings.yaml"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of an image model, a BERT without a classifier, a GPT-2, and data for them; read only."""
    root = tmp_path_factory.mktemp("assets")
    checkpoints.to_train(root)
    few = {split: data.load("digits", split=split, limit=60).dataset for split in ("train", "test")}
    datasets.DatasetDict(few).save_to_disk(root / "digits")
    return root


@pytest.fixture(autouse=True)
def _no_spring_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate collects garbage when a training begins: half a second each in a process that has had many tests."""
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: 0)


@pytest.fixture
def images(assets: Path) -> AlignSettings:
    return AlignSettings(model=str(assets / "vit"), data=str(assets / "digits"), **FAST)


@pytest.fixture
def texts(assets: Path) -> AlignSettings:
    return AlignSettings(model=str(assets / "bert"), data=str(assets / "reviews.csv"), **FAST)


@pytest.fixture
def corpus(assets: Path) -> AlignSettings:
    return AlignSettings(model=str(assets / "gpt2"), data=str(assets / "corpus.txt"), max_length=16, **FAST)


def run_align(settings: AlignSettings, out: Path, **how: Any) -> TrainingSummary:
    return align(**vars(settings), out=out, **how)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loads_alone(folder: Path, auto: str) -> Any:
    """The model as transformers loads it, with nothing to report."""
    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def test_the_licence_and_card_of_the_base_go_along(texts: AlignSettings, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(texts.model, base)
    for name in ("LICENSE", "README.md", "optimizer.pt", "exit.json"):
        (base / name).write_text(f"the base's {name}")
    found = run_align(replace(texts, model=str(base), max_steps=1), tmp_path / "out")
    assert files(found.folder) == {*MODEL, *TOKENIZER, "LICENSE", "README-base.md"}
    assert (found.folder / "README-base.md").read_text() == "the base's README.md"
    assert "carried over from 'base': LICENSE, README-base.md" in found.notes
    assert "left in 'base', since they are of the old model or of no known use: exit.json, optimizer.pt" in found.notes
    assert json.loads((found.folder / "align.json").read_text())["result"]["notes"] == list(found.notes)
    assert "carried over" in (found.folder / "README.md").read_text()


# --- what comes out --------------------------------------------------------------------------------------------------


@torch.no_grad()
def accuracies(folder: Path, rows: data.LoadedData) -> list[float]:
    """Accuracy at each depth by hand: every state of every sample read out on its own."""
    loaded = models.load(str(folder), device="cpu")
    (batch,) = data.batches(rows, loaded, batch_size=1000)
    stack = Stack(loaded.model)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "id")}
    right = [stack.readout(state, inputs).argmax(1) == batch["labels"] for state in stack.states(inputs)[1:]]
    return [float(one.double().mean()) for one in right]


def test_an_image_classifier_from_a_config(images: AlignSettings, tmp_path: Path) -> None:
    found = run_align(images, tmp_path / "out")
    assert files(found.folder) == MODEL
    loads_alone(found.folder, "AutoModelForImageClassification")
    _, held_out = load_to_train(images.data, images.selection, split=None, eval_source=None, eval_split=None)
    assert found.values == pytest.approx(accuracies(found.folder, held_out))
    assert (found.task, found.measure, found.steps) == ("image-classification", "accuracy", 6)
    assert found.classes == tuple("0123456789")
    assert found.evaluated == "60 rows (test)"
    assert all(low <= value <= high for value, (low, high) in zip(found.values, found.bounds, strict=True))
    assert found.notes[0] == "trained on 60 rows (train), evaluated on 60 (test)"
    assert "the weights are random, not the checkpoint's" in found.notes
    written = json.loads((found.folder / "align.json").read_text())
    assert TrainingSummary.of(found.folder, written["result"]).values == found.values
    assert written["settings"]["rows"] == [60, 60]
    assert f"| 3 | {found.values[2]:.3f} |" in (found.folder / "README.md").read_text()


def test_a_text_classifier_from_a_checkpoint_without_one(texts: AlignSettings, tmp_path: Path) -> None:
    found = run_align(texts, tmp_path / "out")
    assert files(found.folder) == MODEL | TOKENIZER
    model = loads_alone(found.folder, "AutoModelForSequenceClassification")
    assert model.config.id2label == {0: "dull", 1: "great"}
    assert any(note.startswith("new, with random weights: ") and "classifier.bias" in note for note in found.notes)
    assert found.evaluated == "6 rows (file, kept apart)"
    _, held_out = load_to_train(texts.data, texts.selection, split=None, eval_source=None, eval_split=None)
    assert found.values == pytest.approx(accuracies(found.folder, held_out))
    answer = transformers.pipeline("text-classification", str(found.folder), device="cpu")("a great film")
    assert answer[0]["label"] in ("dull", "great")


def test_a_language_model(corpus: AlignSettings, tmp_path: Path) -> None:
    found = run_align(replace(corpus, objective="sampled"), tmp_path / "out")
    assert files(found.folder) == MODEL | TOKENIZER | {"generation_config.json"}
    model = loads_alone(found.folder, "AutoModelForCausalLM")
    assert (found.measure, found.bounds, found.classes) == ("perplexity", (), ())
    _, held_out = load_to_train(corpus.data, corpus.selection, split=None, eval_source=None, eval_split=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    stream = [token for text in held_out.dataset["text"] for token in [*tokenizer(text)["input_ids"], 3]]
    nats, count = 0.0, 0
    for start in range(0, len(stream), 16):
        block = torch.tensor([stream[start : start + 16]])
        nats += model(input_ids=block, labels=block).loss.item() * (block.shape[1] - 1)
        count += block.shape[1] - 1
    assert found.values[-1] == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_heads_are_saved_and_every_depth_is_traced_by_its_own(texts: AlignSettings, tmp_path: Path) -> None:
    found = run_align(replace(texts, objective="heads"), tmp_path / "out")
    assert files(found.folder) == MODEL | TOKENIZER | {"heads.safetensors"}
    loads_alone(found.folder, "AutoModelForSequenceClassification")
    loaded = models.load(str(found.folder), device="cpu")
    assert loaded.heads == found.folder
    _, held_out = load_to_train(texts.data, texts.selection, split=None, eval_source=None, eval_split=None)
    batches = data.batches(held_out, loaded, batch_size=4)
    own = trace(models.stack_of(loaded, batches), batches)
    assert own.accuracy[1:].tolist() == pytest.approx(found.values)
    assert "each depth below the last is read out by a classifier of its own" in own.notes
    alone = trace(loaded.model, batches)
    assert not np.allclose(own.cross_entropy[1], alone.cross_entropy[1])
    assert own.cross_entropy[-1] == pytest.approx(alone.cross_entropy[-1])
    assert own.provenance["model"]["fingerprint"] != alone.provenance["model"]["fingerprint"]


def test_an_objective_may_be_changed(images: AlignSettings, tmp_path: Path) -> None:
    job = replace(images, weights=(1.0, 3.0), exits=(1, 3), distillation=0.25, seed=5)
    loss = objective_of(job).loss
    assert (loss.weights, loss.exits, loss.distillation, loss.seed) == ((1.0, 3.0), (1, 3), 0.25, 5)
    found = run_align(job, tmp_path / "out")
    assert {"weights", "exits", "distillation"} <= set(found.settings)
    assert not same(found.folder, run_align(images, tmp_path / "plain").folder)


def test_the_seed_settles_everything(images: AlignSettings, tmp_path: Path) -> None:
    job = replace(images, max_steps=2)
    other = replace(job, seed=1)
    folders = [run_align(one, tmp_path / str(index)).folder for index, one in enumerate((job, job, other))]
    assert same(folders[0], folders[1])
    assert not same(folders[0], folders[2])


# --- stopping and going on -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def at_step(step: int, act: Callable[[], None]) -> Callable[[int, int | None, str], None]:
    done = []

    def progress(count: int, total: int | None, what: str) -> None:
        if what.startswith("training") and count == step and not done:
            done.append(True)
            act()

    return progress


def kill() -> None:
    raise Killed


def test_what_was_killed_goes_on_from_its_checkpoint(images: AlignSettings, tmp_path: Path) -> None:
    job = replace(images, objective="sampled", max_steps=9, save_steps=2)
    whole = run_align(job, tmp_path / "whole")
    with pytest.raises(Killed):
        run_align(job, tmp_path / "cut", progress=at_step(5, kill))
    assert files(tmp_path / "cut") == {".partial", "checkpoints"}
    assert "checkpoint-4" in files(tmp_path / "cut" / "checkpoints")
    refused = (
        "holds an interrupted training (checkpoint-4): go on with it by resume=True, or start over with restart=True"
    )
    with pytest.raises(TrainingError, match=re.escape(refused)):
        run_align(job, tmp_path / "cut")
    again = run_align(job, tmp_path / "cut", resume=True)
    assert same(again.folder, whole.folder)
    assert (again.values, again.steps) == (whole.values, 9)
    assert files(again.folder) == MODEL


def test_ctrl_c_waits_for_the_step_and_leaves_a_checkpoint(images: AlignSettings, tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    stop = at_step(3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_align(images, tmp_path / "cut", progress=stop, say=said.append)
    assert signal.getsignal(signal.SIGINT) is before
    assert said == ["stopping after this step, with a checkpoint; once more to stop at once"]
    (checkpoint,) = files(tmp_path / "cut" / "checkpoints")
    assert checkpoint == "checkpoint-3", "not one step more"
    again = run_align(images, tmp_path / "cut", resume=True)
    assert same(again.folder, run_align(images, tmp_path / "whole").folder)


def test_what_fails_before_a_checkpoint_leaves_nothing(images: AlignSettings, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_align(images, tmp_path / "out", progress=at_step(2, kill))
    assert files(tmp_path) == set()
    (tmp_path / "mine").mkdir()
    with pytest.raises(Killed):
        run_align(images, tmp_path / "mine", resume=True, progress=at_step(2, kill))
    assert files(tmp_path) == {"mine"}, "an empty folder of the user's own"
    assert files(tmp_path / "mine") == set()


def test_a_finished_folder(images: AlignSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(images, objective="heads", max_steps=2)
    found = run_align(job, tmp_path / "out", keep_checkpoints=True)
    assert files(found.folder) == MODEL | {"heads.safetensors", "checkpoints"}
    monkeypatch.setattr(anydepth.jobs.align, "_load", lambda *_: pytest.fail("nothing is to be loaded"))
    with pytest.raises(TrainingError, match=r"holds a finished model: give another folder \(out\), or restart=True"):
        run_align(job, found.folder)
    assert run_align(job, found.folder, resume=True).values == found.values
    monkeypatch.undo()
    again = run_align(replace(job, objective="standard"), found.folder, restart=True)
    assert files(again.folder) == MODEL, "no heads of the model before"
    assert json.loads((again.folder / "align.json").read_text())["settings"]["objective"] == "standard"


def test_other_settings_do_not_go_on(images: AlignSettings, tmp_path: Path) -> None:
    job = replace(images, save_steps=2)
    with pytest.raises(Killed):
        run_align(job, tmp_path / "out", progress=at_step(3, kill))
    for changed, says in (
        ({"objective": "uniform"}, 'objective "aligned", and is now asked for "uniform"'),
        ({"limit": 50}, "limit unset, and is now asked for 50"),
        ({"weights": "uniform"}, 'weights unset, and is now asked for "uniform"'),
        ({"learning_rate": 1e-4}, "learning_rate 0.003, and is now asked for 0.0001"),
    ):
        with pytest.raises(
            TrainingError, match=re.escape(f"was started with {says}: give the same, another folder (out)")
        ):
            run_align(replace(job, **changed), tmp_path / "out", resume=True)
    # how often one looks does not matter
    run_align(replace(job, logging_steps=1, save_steps=3), tmp_path / "out", resume=True)


def test_other_data_under_the_same_name_do_not_go_on(texts: AlignSettings, tmp_path: Path) -> None:
    source = tmp_path / "reviews.csv"
    source.write_text(Path(texts.data).read_text())
    job = replace(texts, data=str(source), save_steps=2)
    with pytest.raises(Killed):
        run_align(job, tmp_path / "out", progress=at_step(3, kill))
    source.write_text(source.read_text() + "one more,dull\n" * 10)
    with pytest.raises(TrainingError, match=re.escape("was started with rows [54, 6], and is now asked for [63, 7]")):
        run_align(job, tmp_path / "out", resume=True)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folders_that_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name, says in (("mine", "holds other files than a training's"), ("file", "is a file, expected a folder")):
        for restart in (False, True):
            with pytest.raises(TrainingError, match=says):
                RunFolder(tmp_path / name, restart=restart).standing({})
    with pytest.raises(TrainingError, match="resume=True goes on and restart=True starts over: give one of them"):
        RunFolder(tmp_path / "new", resume=True, restart=True).standing({})


def test_the_model_to_begin_with_is_not_overwritten(images: AlignSettings, assets: Path) -> None:
    for restart in (False, True):
        with pytest.raises(TrainingError, match="vit' is the model to begin with, and would be overwritten"):
            run_align(images, assets / "vit", restart=restart)


def test_logs_beside_the_checkpoints_stay(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.opened({}), run.begun({}):
        (run.checkpoints / "runs").mkdir(parents=True)
        (run.checkpoints / "checkpoint-1").mkdir()
        (run.checkpoints / "checkpoint-best").mkdir()
        with run.finishing() as beside:
            run.finish(beside, {}, {"files": []})
        run.clear()
    assert files(run.checkpoints) == {"runs", "checkpoint-best"}
    assert files(tmp_path) == {"align.json", "checkpoints"}


def test_a_model_comes_into_place_all_or_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def fail() -> None:
        with run.finishing() as beside:
            (beside / "config.json").write_text("{}")
            raise Killed

    with pytest.raises(Killed):
        fail()
    assert files(tmp_path) == set()
    with run.opened({}), run.begun({}), run.finishing() as beside:
        (beside / "config.json").write_text("{}")
        run.finish(beside, {}, {"files": ["config.json"]})
    assert files(tmp_path) == {"align.json", "config.json"}


def test_a_place_that_cannot_be_written(images: AlignSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceFileError, match="cannot write .*file/out: "):
        run_align(images, tmp_path / "file" / "out")


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0, expected at least 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan, expected a finite number"),
        ({"label_smoothing_factor": 2.0}, "label_smoothing_factor is 2.0, expected a number from 0 to 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0, expected at least 1"),
        ({"max_steps": 0}, "max_steps is 0, expected at least 1, or -1 to count epochs"),
        ({"eval_steps": 0}, "eval_steps is 0.0, expected a number above 0"),
        ({"lr_scheduler_type": "cosin"}, "do not work: cosin is not a valid SchedulerType"),
        ({"optim": "sgdd"}, "do not work: sgdd is not a valid OptimizerNames"),
        ({"report_to": "nobody"}, "cannot report to 'nobody' here, only to "),
    ],
)
def test_settings_that_make_no_sense(training: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises((OptionError, TrainingError), match=says) as caught:
        run_align(
            AlignSettings(model="no/model/anywhere", data="no data", **{"use_cpu": True} | training),
            tmp_path / "out",
        )
    assert "\n" not in str(caught.value)


def test_activation_checkpointing_has_its_usual_name(tmp_path: Path) -> None:
    assert training_arguments(
        AlignSettings(model="m", data="d", gradient_checkpointing=True), tmp_path
    ).gradient_checkpointing


REFUSED = {
    "task: nothing": ({"task": "features"}, "'features' is nothing to train for"),
    "task: unknown": ({"task": "translation"}, "unknown task 'translation'"),
    "timm": (
        {"model": "timm:vit_tiny_patch16_224"},
        "is no model of transformers, .* train it with anydepth.AlignedLoss",
    ),
    "no model": ({"model": "./nowhere"}, "no folder './nowhere'"),
    "no data": ({"data": "nowhere.csv"}, "no file or folder 'nowhere.csv'"),
    "no split": ({"split": "dev"}, "has no split 'dev', it has file: choose one"),
    "no blocks": ({"blocks": "x"}, "no module 'x'"),
    "exits": ({"exits": (1, 9)}, "exits are .1, 9., expected depths among 1..2"),
    "weights": ({"weights": (1.0, -1.0)}, "the weight of depth 2 is -1.0"),
    "length": ({"max_length": 99}, "max length is 99 tokens"),
    "column": ({"label_column": "stars"}, "no column 'stars' to take as label"),
    "a task of two": ({"task": "causal-lm"}, "is a bert, which sees the token it is to predict"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_before_anything_is_written(what: str, texts: AlignSettings, tmp_path: Path) -> None:
    changed, says = REFUSED[what]
    with pytest.raises(AnydepthError, match=says):
        run_align(replace(texts, **changed), tmp_path / "out")
    assert files(tmp_path) == set()


# --- what is told ----------------------------------------------------------------------------------------------------


def test_what_is_told(images: AlignSettings, tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    found = run_align(images, tmp_path / "out", progress=lambda *said: told.append(said))
    assert told[:2] == [(0, None, "loading"), (1, 1, "loading")]
    assert [count for count, total, what in told if what.startswith("training") and total == 6][-1] == 6
    shown = ", ".join(f"{depth}: {value:.3f}" for depth, value in enumerate(found.values, start=1))
    assert [what for *_, what in told if what.startswith("evaluating,")][-1] == f"evaluating, accuracy at depth {shown}"
    assert (8, 8, "evaluating") in told, "60 rows in batches of 8"


def test_a_depth_that_was_not_looked_at_keeps_its_last_value() -> None:
    told: list[str] = []
    teller = ProgressCallback(lambda *said: told.append(said[2]), 12, language_model=True)
    state = type("State", (), {"global_step": 1, "max_steps": 9})()
    teller.on_log(None, state, None, logs={"loss": 1.0, "loss_depth_1": 1.0, "accuracy_depth_1": 0.5})
    teller.on_log(None, state, None, logs={"loss": 1.0, "loss_depth_12": 800.0, "accuracy_depth_12": 0.5})
    teller.on_log(None, state, None, logs={"eval_loss": 1.0})
    assert told == ["training, perplexity at depth 1: 2.7", "training, perplexity at depth 1: 2.7, 12: inf"]
