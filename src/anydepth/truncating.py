"""A model cut after some depth: shallower, of the same class, and plain.

The blocks above the cut are left away, the config says so, and everything around the blocks stays. So what the model
answers is what `readout(h[k])` answered, and whatever loads the original loads this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from anydepth.blocks import DEPTH_NAMES
from anydepth.calling import Batch, answer_of, call_model, distance, first_samples
from anydepth.errors import TruncationError
from anydepth.questions import without_labels
from anydepth.stack import Stack, tolerance_of
from anydepth.surgery import evaluating


def truncate(model: nn.Module | Stack, depth: int, *, blocks: str | None = None, batch: Any = None) -> nn.Module:
    """Cut a model after a depth.

    Args:
        model: from transformers, timm, plain torch, or your own; or a `Stack` of one, whose heads, if it has them,
            give the cut model the classifier of its depth.
        depth: k, how many blocks to keep, 1..L.
        blocks: the dotted name of the list of blocks, for a model that has several.
        batch: if given, the cut model is seen to answer as `readout(h[k])` does on a few samples of it; needed where
            there are heads.

    Returns:
        A copy of the same class with k blocks, in the same mode; the model itself is left alone. A model of
        transformers saves and loads by `save_pretrained` and `from_pretrained`, others by their state dict.

    Raises:
        TruncationError: a depth that does not exist; adapters that are not merged; heads without a batch; or the cut
            model does not answer as the readout does.
        UnknownArchitecture: see `Stack`.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> small = truncate(ViTForImageClassification(config), depth=2, batch={"pixel_values": torch.rand(2, 1, 8, 8)})
        >>> type(small).__name__, small.config.num_hidden_layers, len(small.vit.layers)
        ('ViTForImageClassification', 2, 2)
    """
    stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
    if not 1 <= depth <= stack.depth:
        raise TruncationError(f"depth is {depth}, expected 1..{stack.depth} for {type(stack.model).__name__}")
    if hasattr(stack.model, "peft_config"):
        raise TruncationError(
            f"{type(stack.model).__name__} holds adapters of {stack.depth} blocks: merge them (merge_and_unload) first"
        )
    if stack.heads is not None and depth < stack.depth and batch is None:
        raise TruncationError("the model has a head for each depth, and a batch shows where it goes: give one")
    with _only(stack.model.get_submodule(stack.path), depth):
        cut = copy.deepcopy(stack.model)
    for config in _configs(cut):
        _trim(config, stack.depth, depth)
    if batch is not None:
        inputs = first_samples(without_labels(batch)[0], 2)
        if stack.heads is not None and depth < stack.depth:
            stack.classifier(inputs)  # refuses a model without one, and finds where it is
            cut.set_submodule(str(stack.classifier_path), copy.deepcopy(stack.heads[depth]))
        _require_same(stack, cut, depth, inputs)
    return cut


@contextmanager
def _only(blocks: nn.Module, depth: int) -> Iterator[None]:
    """The list is shorter inside, so that what is left away is not copied either."""
    kept = dict(blocks._modules)
    try:
        for name in list(kept)[depth:]:
            del blocks._modules[name]
        yield
    finally:
        blocks._modules.update(kept)


def _configs(model: nn.Module) -> list[Any]:
    """Every config that a part of the model holds, and those inside them, once each."""
    found = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    for config in list(found.values()):
        inner = (
            [value for value in vars(config).values() if hasattr(value, "to_dict")]
            if hasattr(config, "to_dict")
            else []
        )
        found |= {id(value): value for value in inner}
    return [config for config in found.values() if hasattr(config, "to_dict")]


def _trim(config: Any, before: int, now: int) -> None:
    """Where a config tells a depth, or has an entry for each block, it tells the new one."""
    names = [name for name in DEPTH_NAMES if getattr(config, name, None) == before]
    if not names:
        return
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == before and "layer" in name:
            vars(config)[name] = value[:now]
    for name in names:
        setattr(config, name, now)
    stages = getattr(config, "stage_names", None)
    if stages and len(stages) == before + 1:  # a backbone's: one for each state, and which of them it gives
        vars(config).update(stage_names=stages[: now + 1], _out_features=[stages[now]], _out_indices=[now])


def _require_same(stack: Stack, cut: nn.Module, depth: int, batch: Batch) -> None:
    with evaluating(stack.model), evaluating(cut), torch.no_grad():
        state = stack.states(batch)[depth]
        expected = stack.readout(state, batch, depth=depth)
        found = answer_of(call_model(cut, batch))[1]
    error, tolerance = distance(found, expected), tolerance_of(state)
    if not error <= tolerance:
        raise TruncationError(
            f"{type(cut).__name__} cut after block {depth} does not answer as its readout there: largest relative "
            f"difference {error:.2g}, expected at most {tolerance:.0e}; it keeps a depth elsewhere than in its config"
        )
