"""Context managers that change a model for one forward: replaced blocks, other forwards, disabled flags, eval mode.

All changes but the mode (`evaluating`) are seen only by the thread or task that made them; see `overrides`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from anydepth.core.blocks import BlockList
from anydepth.core.overrides import Override, shared_lock
from anydepth.core.stubs import Stub


class Turns:
    """Answers of a block that a forward calls several times: one function a call, in turn."""

    def __init__(self, calls: Sequence[Callable[..., Any]]) -> None:
        self._calls, self._next = calls, 0

    def restart(self) -> None:
        """The next call is the first of a forward."""
        self._next = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The next function's answer."""
        call = self._calls[self._next % len(self._calls)]
        self._next += 1
        return call(*args, **kwargs)


@contextmanager
def replaced(blocks: BlockList, order: Sequence[int], calls: Sequence[Callable[..., Any]]) -> Iterator[list[Turns]]:
    """Context manager: run `calls` instead of the blocks. What holds them stays the same object in all places.

    Args:
        blocks: the modules, and how the forward reaches them.
        order: the place in the list of the block at each depth.
        calls: one for each depth.

    Yields:
        The turns of each block, to restart before another forward.
    """
    turns = [
        Turns([call for place, call in zip(order, calls, strict=True) if place == number])
        for number in range(len(blocks.modules))
    ]
    stubs = [Stub(block, turn) for block, turn in zip(blocks.modules, turns, strict=True)]
    with ExitStack() as undo:
        for owner, name, value in _placed(blocks, stubs):
            undo.enter_context(Override(owner, name, value))
        yield turns


def _placed(blocks: BlockList, modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """The attributes that put other modules in the place of the blocks, as (owner, name, value)."""
    if blocks.holder == "attributes":
        return [(blocks.owner, name, module) for name, module in zip(blocks.names, modules, strict=True)]
    if blocks.loop is not None:
        return [(blocks.owner, "forward", blocks.loop.through(modules))]
    if blocks.holder == "list":
        kind = type(getattr(blocks.owner, blocks.names[0]))
        return [(blocks.owner, blocks.names[0], kind(modules))]
    return [(blocks.owner, "_modules", {**blocks.owner._modules, **dict(zip(blocks.names, modules, strict=True))})]


@contextmanager
def shortened(blocks: BlockList, depth: int) -> Iterator[None]:
    """Context manager: a container of blocks ends after block `depth`."""
    if blocks.loop is not None:
        with blocks.loop.over(range(depth)):
            yield
        return
    dropped = set(blocks.names[depth:])
    children = {name: child for name, child in blocks.owner._modules.items() if name not in dropped}
    with Override(blocks.owner, "_modules", children):
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


def is_compiled(module: nn.Module) -> bool:
    """Whether a module's call, or the whole module, is compiled."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def eager(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Context manager: if any of these is compiled, code runs as written: a compiled forward would not see stubs."""
    needed = any(map(is_compiled, modules))
    return torch.compiler.set_stance("force_eager") if needed else nullcontext()


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
