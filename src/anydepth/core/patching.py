"""Changes made to a model for the length of one forward, each undone on the way out whatever happens inside.

All but the mode (`evaluating`) are seen only by who made them: other threads, and other tasks of an event loop, go on
with the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from anydepth.core.overrides import Override, shared_lock


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
    stubs = {}
    for (name, block), call in zip(blocks._modules.items(), calls, strict=True):
        assert block is not None
        stubs[name] = Stub(block, call)
    with Override(blocks, "_modules", stubs):
        yield


def forward_as(module: nn.Module, forward: Any) -> AbstractContextManager[None]:
    """The module's forward is another function; hooks on the module still fire."""
    return Override(module, "forward", forward)


def interfering_flags(model: nn.Module) -> list[tuple[Any, str]]:
    """What `disabled` turns off, as (owner, attribute).

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
def disabled(switched_off: list[tuple[Any, str]]) -> Iterator[None]:
    """These attributes are False inside."""
    with ExitStack() as undo:
        for owner, name in switched_off:
            if getattr(owner, name):
                undo.enter_context(Override(owner, name, False))
        yield


_LOCK = shared_lock()
_MODES: dict[int, tuple[bool, int]] = {}  # of modules in `evaluating`, by id: their mode before, and how many hold them


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode it was in, even where they differed.

    Threads share the mode: the first to come changes it, and the last to go puts it back.
    """
    held: list[nn.Module] = []
    try:
        with _LOCK:
            for module in model.modules():
                before, holders = _MODES.get(id(module), (module.training, 0))
                _MODES[id(module)] = before, holders + 1
                held.append(module)
            model.eval()
        yield
    finally:
        with _LOCK:
            for module in held:
                before, holders = _MODES.pop(id(module))
                if holders > 1:
                    _MODES[id(module)] = before, holders - 1
                else:
                    module.training = before


def in_eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """The same, without going through all modules where the model is in eval mode and nobody will put it back."""
    with _LOCK:
        needed = model.training or id(model) in _MODES
    return evaluating(model) if needed else nullcontext()
