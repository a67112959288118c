"""Train a small vision transformer on real digits, as usual and aligned, and trace both: the job of `anydepth demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anydepth import data
from anydepth.core.stack import Stack
from anydepth.jobs.settings import DemoSettings
from anydepth.models import loading as models
from anydepth.models.image_transform import plain
from anydepth.models.loaded import LoadedModel
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Table
from anydepth.results.trace_tables import side_by_side
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind, output
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace
from anydepth.training.objectives import objective_named

BLOCKS, WIDTH, CLASSES, SIDE = 8, 64, 10, 8
OBJECTIVES = ("standard", "aligned")
FILE = "demo.json"
_OUTPUT = OutputKind(job="demo", mark=FILE, alone="holds something already")
_MODEL = OutputKind(job="demo", mark=FILE, names=("config.json", "model.safetensors"))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DemoResult(Result):
    """The trace of each objective, and the folder of `standard/`, `aligned/` and `report.html`."""

    folder: Path
    traces: dict[str, Trace]

    def line(self) -> str:
        """The accuracy of both models."""
        return ", ".join(f"{name}: accuracy {trace.accuracy[-1]:.3f}" for name, trace in self.traces.items())

    def tables(self) -> tuple[Table, ...]:
        """Both models side by side."""
        return (side_by_side(self.traces),)


def run_demo(settings: DemoSettings, out: str | Path, *, progress: Progress | None = None) -> DemoResult:
    """Train both ways, from the same weights with the same batches, and trace both on the test images.

    Args:
        settings: how long to train, and the seed.
        out: the folder for `standard/` and `aligned/`, each a trace with its `model/`, and `report.html` with both.
        progress: see `anydepth.jobs`.

    Raises:
        DataError: scikit-learn, which brings the digits, is not installed.
        OutputError: the folder holds something else than an earlier demo.
        TraceFileError: it cannot be written.
    """
    with replacing_folder(Path(out), _OUTPUT) as beside:
        traces = _train_and_trace(settings, beside, progress)
        write_json(beside / FILE, {"format": 1, "epochs": settings.epochs, "seed": settings.seed})
        settings.save(beside)
    return DemoResult(folder=Path(out), traces=traces)


def _train_and_trace(settings: DemoSettings, out: Path, progress: Progress | None) -> dict[str, Trace]:
    from anydepth.report.pages.trace import write

    for objective in OBJECTIVES:
        folder = out / objective / "model"
        train_digits(folder, objective, epochs=settings.epochs, seed=settings.seed, progress=progress)
    traces = {}
    for objective in OBJECTIVES:
        loaded = models.load(str(out / objective / "model"))
        batches = data.batches(data.load("digits", split="test"), loaded, batch_size=32)
        traces[objective] = trace(
            loaded.model,
            batches,
            out=out / objective,
            seed=settings.seed,
            describe={
                "model": f"{objective} ViT",
                "data": {"name": "digits", "split": "test"},
                "notes": [*loaded.notes, *batches.notes],
            },
            progress=progress,
        )
    write(list(traces.values()), out / "report.html", labels=list(traces))
    return traces


def train_digits(
    folder: Path, objective: str, *, epochs: int = 20, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Train an 8-block ViT on scikit-learn's digits and save it as an ordinary model folder.

    Args:
        folder: written all or nothing; a model that was written there before is replaced.
        objective: a name of `anydepth.training.objectives.OBJECTIVES`, but one without separate heads.
        epochs: passes over the 1,347 training images.
        seed: of weights and order.
        progress: called after each epoch.

    Returns:
        The folder, which `transformers` loads by itself.

    Raises:
        DataError: scikit-learn, which brings the digits, is not installed.
        TraceFileError: the folder cannot be written.
    """
    with output(folder, _MODEL) as opened:
        model = _trained(objective, epochs, seed, progress)
        with opened.publish() as beside:
            model.save_pretrained(beside)
            write_json(beside / FILE, {"format": 1, "objective": objective, "epochs": epochs, "seed": seed})
    return folder


def _trained(objective: str, epochs: int, seed: int, progress: Progress | None) -> Any:
    loss, model = objective_named(objective).loss, _model(seed)
    images, labels = _digits(model)
    stack, generator, step = Stack(model), torch.Generator().manual_seed(seed), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(64):  # type: ignore[no-untyped-call]  # torch
            losses = loss(stack, {"pixel_values": images[chosen], "labels": labels[chosen]}, step=step)
            optimizer.zero_grad()
            losses.loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            schedule.step()
            step += 1
        if progress:
            progress(
                epoch + 1, epochs, f"training {objective}, loss at depth {BLOCKS} {losses.by_depth[-1].item():.2f}"
            )
    return model.eval()


def _model(seed: int) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=SIDE,
        patch_size=2,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        initializer_range=0.1,  # the default 0.02 is meant for widths ten times as large: training would hardly start
        id2label={digit: str(digit) for digit in range(CLASSES)},
        label2id={str(digit): digit for digit in range(CLASSES)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ViTForImageClassification(config)


def _digits(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The training images and labels, preprocessed as a trace of the saved model preprocesses them."""
    classes = tuple(str(digit) for digit in range(CLASSES))
    reader = LoadedModel(
        model=model,
        processor=plain((SIDE, SIDE), 1),
        kind="image",
        task="image-classification",
        name="demo",
        classes=classes,
    )
    (batch,) = data.batches(data.load("digits", split="train"), reader, batch_size=10_000)
    return batch["pixel_values"], batch["labels"]
