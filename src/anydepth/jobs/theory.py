"""The random-weights reference of a test of the theory: the same class, untrained."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from anydepth.core.stack import Stack
from anydepth.errors import AnydepthError, ModelError
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.models.towers import like


def with_random_weights(
    loaded: LoadedModel,
    batches: Iterable[Any],
    *,
    blocks: str | None,
    trust_remote_code: bool,
    seed: int,
    named: bool = True,
) -> tuple[Stack | None, tuple[str, ...]]:
    """A model of the same architecture with random weights; None, and a note that says why, if there can be none.

    It is loaded again, if `named`; else made of the config of an object.
    """
    device = next(loaded.model.parameters()).device
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if named:
                reference = models.load(
                    loaded.name,
                    task=loaded.task,
                    device=str(device),
                    trust_remote_code=trust_remote_code,
                    pretrained=False,
                )
                reference = like(reference, loaded, trust_remote_code=trust_remote_code)
            else:
                reference = replace(loaded, model=_anew(loaded.model).to(device).eval())
        return models.stack_of(reference, batches, blocks=blocks), ()
    except AnydepthError as error:
        return None, (f"no model with random weights to compare with: {error}",)


def _anew(model: nn.Module) -> nn.Module:
    """A module of the same class and config."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"no config says how to make another {type(model).__name__}")
    new: nn.Module = type(model)(copy.deepcopy(model.config))
    return new.to(model.dtype)
