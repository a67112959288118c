"""What a model of the sweep is: a case that builds a tiny model with two batches, and how it may fail to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from made_inputs import SAMPLES
from slow_reference import run
from torch import Tensor, nn

NO_CLASSES = ("CLIP-like", "detection, segmentation, depth", "question answering", "embedding")
"""Kinds whose answers are no choice of one class."""


class NotBuilt(Exception):
    """The model could not be built tiny, or does not run on any made-up batch; with the reason."""


@dataclass(frozen=True)
class Built:
    """A tiny model in eval mode, with two batches that it takes."""

    model: nn.Module
    batches: list[Any]
    samples: list[int]
    kind: str
    classifies: bool
    padding_is_free: bool = False


@dataclass(frozen=True)
class Case:
    """One model of the sweep."""

    name: str
    library: str
    kind: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        return f"{self.library}/{self.name}"


class Made:
    """Builds by a function that returns a model and a function that makes a batch."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Callable[[], Any]]], kind: str) -> None:
        self.make, self.kind = make, kind

    def __call__(self) -> Built:
        seed_everything(0)
        try:
            model, batch = self.make()
            batches = [batch() for _ in range(2)]
            run(model.eval(), batches[0])
        except Exception as problem:
            raise NotBuilt(in_words(problem)) from problem
        classifies = self.kind not in NO_CLASSES
        free = any(isinstance(module, nn.TransformerEncoder) for module in model.modules())
        return Built(model.eval(), batches, [SAMPLES] * 2, self.kind, classifies, padding_is_free=free)


def images(side: int = 32, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.rand(SAMPLES, channels, side, side)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def in_words(problem: BaseException) -> str:
    """An exception as one line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {' '.join(lines)[:220]}"
