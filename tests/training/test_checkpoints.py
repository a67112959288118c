"""Checkpoints that survive a kill, a NaN and a full disk, and heads that lie beside a plain model."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from train_worker import BLOCKS, Do, data, model, quick_collections, same, trained, trainer, weights

from anydepth.core.heads import Heads
from anydepth.core.stack import Stack
from anydepth.errors import AnydepthWarning, NonFiniteLoss, TraceFileError, TrainingError
from anydepth.training.checkpoints import (
    checkpoint_bytes,
    last_checkpoint,
    randomness_kept,
    remove_checkpoint,
    rotate,
    seal_checkpoint,
    without,
)
from anydepth.training.trainer import AlignedTrainer

DEPTHS = range(1, BLOCKS + 1)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_collections():
        yield


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# --- what stops a training -------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_stops_before_anything_is_overwritten(tmp_path: Path) -> None:
    whole: dict[str, str] = {}

    def spoil(broken: nn.Module) -> None:
        whole.update(digests(tmp_path / "checkpoint-2"))
        with torch.no_grad():
            next(broken.get_submodule(Stack(broken).path)[2].parameters()).fill_(float("nan"))

    ours = trainer("vit", tmp_path, save_strategy="steps", save_steps=2, max_steps=6, callbacks=[Do(3, spoil)])
    with pytest.raises(NonFiniteLoss, match="depth 3 is nan at optimizer step 3"):
        ours.train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert digests(tmp_path / "checkpoint-2") == whole != {}
    again = trainer("vit", tmp_path, max_steps=6)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6


def test_too_small_a_disk_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    ours = trainer("vit", tmp_path, save_strategy="steps", save_steps=2)
    needed = checkpoint_bytes(ours.model)
    assert needed == 4 * 4 * sum(parameter.numel() for parameter in ours.model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed, 1, needed - 1))
    with pytest.raises(TrainingError, match=r"a checkpoint takes up to .* kB, and .* has .* free: make room"):
        ours.train()
    assert ours.state.global_step == 0
    trained("vit", tmp_path)  # which saves nothing
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed, 0, needed))
    full = Do(3, lambda _: monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed, needed, 0)))
    with pytest.raises(TrainingError, match="0 bytes free"):
        trained("vit", tmp_path, save_strategy="steps", save_steps=2, callbacks=[full])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


# --- heads, saved and found again -------------------------------------------------------------------------------------


def test_heads_are_trained_and_lie_beside_a_plain_model(tmp_path: Path) -> None:
    ours = trained("vit", tmp_path, objective="heads")
    own = model("vit")
    assert len(ours.heads) == BLOCKS - 1
    trained_heads = [head.weight for head in ours.heads.children()]
    assert all(not torch.equal(weight, own.classifier.weight) for weight in trained_heads)
    assert not any("depth_heads" in name for name in ours.model.state_dict())
    ours.save_model(str(tmp_path / "saved"))
    kind = transformers.AutoModelForImageClassification
    loaded, info = kind.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    found = Heads.load(tmp_path / "saved", loaded.classifier, BLOCKS)
    assert [torch.equal(a.weight, b) for a, b in zip(found.children(), trained_heads, strict=True)] == [True] * 3
    stack, batch = Stack(loaded.eval(), heads=found), transformers.default_data_collator(data("vit", 7, seed=1))
    with torch.no_grad():
        states = stack.states(batch)
        right = [(stack.readout(states[d], batch, depth=d).argmax(1) == batch["labels"]).float().mean() for d in DEPTHS]
    metrics = ours.evaluate()
    assert [metrics[f"eval_accuracy_depth_{depth}"] for depth in DEPTHS] == [pytest.approx(float(one)) for one in right]


@pytest.mark.parametrize(("kind", "objective"), [("vit", "heads"), ("bert", "aligned"), ("gpt2", "sampled")])
def test_a_training_resumes_to_the_same_weights(kind: str, objective: str, tmp_path: Path) -> None:
    settings = {"objective": objective, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = trained(kind, tmp_path, **settings)
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    again = trainer(kind, tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert same(again, whole)
    state = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert not any("depth_heads" in name for name in state)


def test_a_training_that_was_done_takes_no_step_more(tmp_path: Path) -> None:
    """Killed between its last checkpoint and its end; Trainer by itself takes another step, unless an epoch is over."""
    settings = {"objective": "standard", "max_steps": 5, "save_strategy": "steps", "save_steps": 5}
    whole = trained("vit", tmp_path, **settings, lr_scheduler_type="constant")
    again = trainer("vit", tmp_path, **settings, lr_scheduler_type="constant")
    assert again.train(resume_from_checkpoint=True).global_step == 5
    assert same(again, whole)


def test_the_best_model_comes_back_with_its_heads(tmp_path: Path) -> None:
    best: dict[str, Tensor] = {}
    worse = Do(2, lambda trained: best.update({n: p.detach().clone() for n, p in trained.named_parameters()}))

    def spoil(broken: Any) -> None:
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.mul_(3)

    ours = trained(
        "vit",
        tmp_path,
        objective="heads",
        callbacks=[worse, Do(3, spoil)],
        **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    assert ours.state.best_global_step == 2
    found = {name.replace("heads.", "depth_heads.", 1): value for name, value in weights(ours).items()}
    assert {name: torch.equal(found[name], best[name]) for name in best} == dict.fromkeys(best, True)


def test_heads_may_be_given(tmp_path: Path) -> None:
    """Copies of the classifier are what the objective makes itself, after a look at the data that draws nothing."""
    own = model("vit")
    heads = Heads(copy.deepcopy(own.classifier) for _ in range(BLOCKS - 1))
    ours = trained("vit", tmp_path, own=own, objective="aligned", heads=heads)
    assert ours.heads is heads
    assert same(ours, trained("vit", tmp_path, objective="heads"))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_resuming_takes_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 100, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"global_step": 10')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    with pytest.raises(TrainingError, match="checkpoint-100 has no checkpoint that was written to its end"):
        trainer("vit", tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-100")
    with pytest.raises(TrainingError, match="train without resuming"):
        trainer("vit", tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_is_whole_only_when_all_of_it_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second training in the same folder is killed while it writes over what the first one left."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    trained("vit", tmp_path, **settings)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    ours = trainer("vit", tmp_path, **settings)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        ours.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path) is None


def a_checkpoint(folder: Path, step: int) -> Path:
    """What Trainer writes, in small, and sealed."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (checkpoint / name).write_bytes(f"{name} of {step}".encode())
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    seal_checkpoint(checkpoint)
    return checkpoint


DAMAGE = {
    "empty": (lambda path: (path / "optimizer.pt").write_bytes(b""), "optimizer.pt has 0 bytes, expected 17"),
    "gone": (lambda path: (path / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "changed": (lambda path: (path / "optimizer.pt").write_bytes(b"optimizer.pt of 5"), "optimizer.pt was changed"),
    "no seal": (lambda path: (path / "sealed.json").write_text("{}"), "sealed.json was changed"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(kind: str, tmp_path: Path) -> None:
    whole, newest = a_checkpoint(tmp_path, 2), a_checkpoint(tmp_path, 4)
    assert last_checkpoint(tmp_path, thorough=True) == newest
    spoil, says = DAMAGE[kind]
    spoil(newest)
    with pytest.warns(AnydepthWarning, match=f"checkpoint-4 is damaged .{says}., and left out"):
        assert last_checkpoint(tmp_path, thorough=True) == whole
    with pytest.raises(TrainingError, match=f"checkpoint-4 has no checkpoint .* to its end .{says}.,"):
        trainer("vit", tmp_path).train(resume_from_checkpoint=newest)


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    whole, newest = a_checkpoint(tmp_path, 2), a_checkpoint(tmp_path, 4)
    (newest / "sealed.json").unlink()
    assert last_checkpoint(tmp_path, thorough=True) == whole
    remove_checkpoint(whole)
    assert last_checkpoint(tmp_path) == newest, "where none is sealed, a plain Trainer wrote them"
    (newest / "optimizer.pt").write_bytes(b"")
    assert last_checkpoint(tmp_path) is None


def test_older_checkpoints_go_once_the_newest_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4, 6, 8):
        a_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    rotate(tmp_path, tmp_path / "checkpoint-8", 2, str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-8", "checkpoint-best"}
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    there: list[bool] = []

    def seal(checkpoint: Path) -> None:
        there.append((tmp_path / "new" / "checkpoint-2").exists())
        seal_checkpoint(checkpoint)

    monkeypatch.setattr("anydepth.training.checkpoints.seal_checkpoint", seal)
    ours = trained("vit", tmp_path / "new", **settings)
    assert there == [True, True], "the older one is still there while the newer one is sealed"
    assert {path.name for path in (tmp_path / "new").glob("checkpoint-*")} == {"checkpoint-4"}
    assert ours.args.save_total_limit == 1


def test_a_checkpoint_on_a_full_disk_is_one_line_and_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}

    def full(trainer: Any, folder: str) -> None:
        if folder.endswith("checkpoint-4"):
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470")

    monkeypatch.setattr(AlignedTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(TraceFileError, match=r"cannot write .*checkpoint-4: No space left") as caught:
        trained("vit", tmp_path, **settings)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2"}
    assert last_checkpoint(tmp_path, thorough=True) == tmp_path / "checkpoint-2"


def test_a_child_is_missing_only_inside() -> None:
    parent = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2))
    with without(parent, "1"):
        assert set(parent.state_dict()) == {"0.weight", "0.bias"}
    assert set(parent.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    with without(parent, "none of its children"):
        pass
    assert len(parent) == 2


def test_nothing_drawn_inside_is_missed_outside() -> None:
    import random

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with randomness_kept():
        expected = draw()
    assert draw() == expected
