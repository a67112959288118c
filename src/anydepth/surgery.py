"""Changes made to a model for the length of one forward, each undone on the way out whatever happens inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Stub(nn.Module):
    """Stands in for a block. Attributes it lacks are the block's own: Gemma-2 asks each for its attention type."""

    def __init__(self, block: nn.Module, call: Any) -> None:
        super().__init__()
        # past nn.Module's own bookkeeping: the block must not become a child
        self.__dict__["_stands_for"], self.__dict__["_answer"] = block, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block would have been asked."""
        return self.__dict__["_answer"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stands_for"], name)


@contextmanager
def replaced(blocks: nn.ModuleList | nn.Sequential, calls: list[Any]) -> Iterator[None]:
    """Each block answers with its call. The list object stays the same: whoever else holds it sees the stubs too."""
    kept = dict(blocks._modules)
    try:
        for (name, block), call in zip(kept.items(), calls, strict=True):
            assert block is not None
            blocks._modules[name] = Stub(block, call)
        yield
    finally:
        blocks._modules.update(kept)


@contextmanager
def forward_as(module: nn.Module, forward: Any) -> Iterator[None]:
    """The module's forward is another function; hooks on the module still fire."""
    shadowed = "forward" in module.__dict__
    kept = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if shadowed:
            module.__dict__["forward"] = kept
        else:
            del module.__dict__["forward"]


def switches(model: nn.Module) -> list[tuple[Any, str]]:
    """What `quiet` turns off, as (owner, attribute).

    K/V caches, which replayed blocks would append to twice; nested tensors, whose shape is not the state's; states and
    attentions among the outputs, for which transformers hooks the blocks that it finds at the first forward that asks
    for them, once and for all: stubs, here.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    names = ("use_cache", "output_hidden_states", "output_attentions")
    found = [(config, name) for config in configs.values() for name in names if hasattr(config, name)]
    encoders = (module for module in model.modules() if isinstance(module, nn.TransformerEncoder))
    return [*found, *((encoder, "use_nested_tensor") for encoder in encoders)]


@contextmanager
def quiet(switched_off: list[tuple[Any, str]]) -> Iterator[None]:
    """These attributes are False inside."""
    before = [(owner, name, value) for owner, name in switched_off if (value := getattr(owner, name))]
    try:
        for owner, name, _ in before:
            setattr(owner, name, False)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode it was in, even where they differed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
