"""The random-weights reference of a test of the theory: the same class, untrained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from anydepth.core.stack import Stack
from anydepth.errors import AnydepthError
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.models.towers import like


def with_random_weights(
    loaded: LoadedModel, batches: Iterable[Any], *, blocks: str | None, trust_remote_code: bool, seed: int
) -> tuple[Stack | None, tuple[str, ...]]:
    """A model of the same architecture with random weights; None, and a note that says why, if there can be none."""
    device = next(loaded.model.parameters()).device
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reference = models.load(
                loaded.name,
                task=loaded.task,
                device=str(device),
                trust_remote_code=trust_remote_code,
                pretrained=False,
            )
        reference = like(reference, loaded, trust_remote_code=trust_remote_code)
        return models.stack_of(reference, batches, blocks=blocks), ()
    except AnydepthError as error:
        return None, (f"no model with random weights to compare with: {error}",)
