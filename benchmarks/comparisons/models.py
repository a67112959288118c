"""The models that are compared: where each is, and what makes it where it is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anydepth.assets.registry import path
from anydepth.storage.files import replacing_folder

# what trained the models, their data, and the loop for a classifier alone
sys.path.append(str(Path(__file__).parents[1] / "objectives"))
sys.path.append(str(Path(__file__).parents[2] / "examples"))

ROOT = Path(__file__).parents[2]
RUNS = Path("runs")
WORK = RUNS / "comparisons"
SEED = 0


class Missing(Exception):
    """Something that another command makes."""


@dataclass(frozen=True)
class Model:
    """A model to trace.

    Attributes:
        family: its architecture.
        kind: how its weights came about.
        data: the asset it is traced on.
        make: writes it to a folder; or the command that does, for a model that other benchmarks use too.
        folder: where it is, if not under `WORK`.
    """

    family: str
    kind: str
    data: str
    make: Callable[[Path], None] | str
    folder: Path | None = None


def trained(task: str, objective: str, seed: int, folder: Path) -> None:
    """A finished run of benchmarks/objectives, as an ordinary folder."""
    from training import Run, Training, steps_done

    run, work = Run("full", task, objective, seed), RUNS / "objectives"
    if not steps_done(run, work):
        raise Missing(f"{run.name} is not there: run 'python benchmarks/objectives --full --tasks {task}' first")
    training = Training(run, work)
    training.finish(print)  # at once, where it is finished
    save(training.stack.model, folder, task)


def random_vit(folder: Path) -> None:
    """The weights that training with this seed starts from."""
    from tasks import model_of

    save(model_of("vit", SEED), folder, "vit")


def random_like(name: str, folder: Path) -> None:
    """A classifier of another's architecture with freshly drawn weights."""
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    if name == "minilm":
        config = AutoConfig.from_pretrained(path("minilm"), num_labels=2)
        return save(AutoModelForSequenceClassification.from_config(config), folder, "minilm")
    config = AutoConfig.from_pretrained(RUNS / name)
    return save(AutoModelForImageClassification.from_config(config), folder, name)


def frozen_minilm(folder: Path) -> None:
    """A linear classifier on the encoder as it came, trained on the sentences that the others were tuned on."""
    from tasks import data_of, model_of
    from torch import nn
    from train_head import fit

    train, validation = data_of("minilm", "full").train, data_of("minilm", "screen").held_out
    model: Any = model_of("minilm", SEED).eval()
    head, model.classifier = model.classifier, nn.Identity()
    parts = []
    with torch.inference_mode():
        for samples in (train, validation):
            order = sorted(range(len(samples)), key=samples.length)
            batches = [samples.batch(order[start : start + 64]) for start in range(0, len(order), 64)]
            labels = [batch.pop("labels") for batch in batches]
            parts.append((torch.cat([model(**batch).logits for batch in batches]), torch.cat(labels)))
    parts = [(rows.clone(), labels.clone()) for rows, labels in parts]
    history = fit(head, *parts, epochs=40, seed=SEED)
    print(f"linear classifier on the frozen encoder: validation accuracy {max(history):.3f}")
    model.classifier = head
    save(model, folder, "minilm")


def save(model: Any, folder: Path, kind: str) -> None:
    """Write a model with its tokenizer or image processor; the small vision transformer needs none."""
    with replacing_folder(folder) as beside:
        if kind == "vit":
            from transformers import AutoConfig

            names = AutoConfig.from_pretrained(RUNS / "dinov2s-fashion").id2label
            model.config.id2label, model.config.label2id = names, {name: place for place, name in names.items()}
        model.save_pretrained(beside)
        if kind == "minilm":
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(path("minilm")).save_pretrained(beside)
        elif kind != "vit":
            from transformers import AutoImageProcessor

            AutoImageProcessor.from_pretrained(RUNS / kind).save_pretrained(beside)


ALIGN = "the second command of docs/exit.md, 'What it saves',"
MODELS = {
    "minilm-frozen": Model("MiniLM", "frozen", "mr", frozen_minilm),
    "minilm-plain": Model("MiniLM", "plain", "mr", partial(trained, "minilm", "standard", 0)),
    "minilm-aligned": Model("MiniLM", "aligned", "mr", partial(trained, "minilm", "aligned", 0)),
    "minilm-plain-1": Model("MiniLM", "plain, other seed", "mr", partial(trained, "minilm", "standard", 1)),
    "minilm-random": Model("MiniLM", "random", "mr", partial(random_like, "minilm")),
    "dinov2s-frozen": Model("DINOv2-S", "frozen", "fashion-mnist", "examples/train_head.py", RUNS / "dinov2s-fashion"),
    "dinov2s-plain": Model("DINOv2-S", "plain", "fashion-mnist", ALIGN, RUNS / "dinov2s-fashion-standard"),
    "dinov2s-aligned": Model("DINOv2-S", "aligned", "fashion-mnist", ALIGN, RUNS / "dinov2s-fashion-aligned"),
    "dinov2s-random": Model("DINOv2-S", "random", "fashion-mnist", partial(random_like, "dinov2s-fashion")),
    "vit-plain": Model("ViT", "plain", "fashion-mnist", partial(trained, "vit", "standard", 0)),
    "vit-aligned": Model("ViT", "aligned", "fashion-mnist", partial(trained, "vit", "aligned", 0)),
    "vit-plain-1": Model("ViT", "plain, other seed", "fashion-mnist", partial(trained, "vit", "standard", 1)),
    "vit-random": Model("ViT", "random", "fashion-mnist", random_vit),
}
LIMITS = {"fashion-mnist": 2000}


def full(name: str) -> str:
    return f"{MODELS[name].family}, {MODELS[name].kind}"


def made(name: str) -> Path:
    """The folder of a model, made if it is not there."""
    model = MODELS[name]
    folder = model.folder or WORK / "models" / name
    if not folder.exists():
        if isinstance(model.make, str):
            raise Missing(f"{folder} is not there: {model.make} makes it")
        print(f"# {folder}", flush=True)
        model.make(folder)
    return folder
