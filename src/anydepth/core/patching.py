"""Context managers that change a model for one forward: replaced blocks, other forwards, disabled flags, eval mode.

All changes but the mode (`evaluating`) are seen only by the thread or task that made them; see `overrides`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from anydepth.core.overrides import Override, shared_lock


class Stub(nn.Module):
    """Module in the place of a block. Other attributes are the block's: Gemma-2 reads each one's attention type."""

    def __init__(self, block: nn.Module, call: Any) -> None:
        super().__init__()
        # past nn.Module.__setattr__: the block must not become a child
        self.__dict__["_stands_for"], self.__dict__["_answer"] = block, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer with the replacement instead of running the block."""
        return self.__dict__["_answer"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stands_for"], name)


@contextmanager
def replaced(blocks: nn.ModuleList | nn.Sequential, calls: list[Any]) -> Iterator[None]:
    """Context manager: run `calls` instead of the blocks. The list stays the same object in all places."""
    stubs = {}
    for (name, block), call in zip(blocks._modules.items(), calls, strict=True):
        assert block is not None
        stubs[name] = Stub(block, call)
    with Override(blocks, "_modules", stubs):
        yield


def forward_as(module: nn.Module, forward: Any) -> AbstractContextManager[None]:
    """Context manager: the module's forward is another function; hooks on the module still run."""
    return Override(module, "forward", forward)


def interfering_flags(model: nn.Module) -> list[tuple[Any, str]]:
    """Flags of a model to turn off by `disabled`, as (owner, attribute).

    K/V caches, to which replayed blocks would append twice; nested tensors, whose shape is not the state's; hidden
    states and attentions as outputs, for which transformers puts lasting hooks on the blocks of the first forward that
    returns them: they would be stubs here.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    names = ("use_cache", "output_hidden_states", "output_attentions")
    encoders = (module for module in model.modules() if isinstance(module, nn.TransformerEncoder))
    return [
        *((config, name) for config in configs.values() for name in names if hasattr(config, name)),
        *((encoder, "use_nested_tensor") for encoder in encoders),
    ]


@contextmanager
def disabled(flags: list[tuple[Any, str]]) -> Iterator[None]:
    """Context manager: these attributes are False inside."""
    with ExitStack() as undo:
        for owner, name in flags:
            if getattr(owner, name):
                undo.enter_context(Override(owner, name, False))
        yield


_LOCK = shared_lock()
_MODES: dict[int, tuple[bool, int]] = {}  # of modules in `evaluating`, by id: their mode before, and how many hold them


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: eval mode inside; afterwards every module is back in its own mode.

    Threads share the mode: the first one sets it, and the last one puts it back.
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
    """`evaluating`, or nothing where the model is in eval mode already and no other thread will put it back."""
    with _LOCK:
        needed = model.training or id(model) in _MODES
    return evaluating(model) if needed else nullcontext()
