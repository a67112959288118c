"""Images for recipes that train by themselves: a subject's pixels and labels, and batches of them in random order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anydepth import data
from anydepth.models.image_transform import Pixels
from anydepth.models.loaded import LoadedModel
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.subjects import Subject

_AT_ONCE = 256


def class_names(bench: Experiment, subject: Subject) -> tuple[str, ...]:
    """The classes of a subject's data, in the order of their numbers."""
    return bench.samples(subject, limit=1).label_names


def image_model(model: nn.Module, transform: Pixels, subject: Subject, classes: tuple[str, ...]) -> LoadedModel:
    """A model that a recipe has built itself, with the transform of its images."""
    return LoadedModel(
        model=model, processor=transform, kind="image", task="image-classification", name=subject.title, classes=classes
    )


def to_learn(
    bench: Experiment, subject: Subject, model: LoadedModel
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The images to train on, drawn by the seed, as the model takes them."""
    rows = bench.samples(subject, training=True)
    batches = list(data.batches(rows, model, batch_size=_AT_ONCE))
    return torch.cat([batch["pixel_values"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def optimizer_of(model: nn.Module, subject: Subject) -> torch.optim.AdamW:
    """AdamW over all weights, with the subject's learning rate and weight decay."""
    settings = subject.training
    return torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"])


def shuffled(count: int, bench: Experiment, subject: Subject) -> Iterator[Int[Tensor, " b"]]:
    """Which samples each step of a training takes: every one once an epoch; in a trial, a few steps in all."""
    generator = torch.Generator().manual_seed(bench.seed)
    size, epochs = subject.training["per_device_train_batch_size"], int(subject.training["num_train_epochs"])
    orders = (torch.split(torch.randperm(count, generator=generator), size) for _ in range(epochs))
    return islice(chain.from_iterable(orders), bench.steps)
