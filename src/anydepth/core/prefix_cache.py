"""Cache of the modules that run before the first block, so that readouts of a batch do not run them again."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch
from anydepth.core.patching import forward_as

Answers: TypeAlias = list[tuple[nn.Module, Any]]
"""Outputs of modules."""

Identity: TypeAlias = tuple[tuple["weakref.ref[Tensor]", int | None], ...]
"""Tensors, and how often each was written to; None where that is unknown."""


@contextmanager
def answering(answers: Answers) -> Iterator[Answers]:
    """Context manager: the modules return these outputs instead of running."""
    with ExitStack() as undo:
        for module, output in answers:
            # a copy for each: a forward may put others into a mapping that it is given
            undo.enter_context(forward_as(module, lambda *args, _output=output, **kwargs: _copied(_output)))
        yield answers


class Prefix:
    """Outputs of the modules before the first block, for the last batch of each thread, until their weights change.

    Threads find the outputs of others for the same batch: torch computes gradients of a GPU in threads of its own.
    A copy is empty.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Identity, Answers]] = {}

    @contextmanager
    def recorded(self, batch: Batch, modules: list[nn.Module]) -> Iterator[Answers]:
        """Context manager: keep the outputs of these modules in a forward on this batch."""
        self._kept.pop(get_ident(), None)
        answers: Answers = []
        with ExitStack() as undo:
            for module in modules:
                undo.enter_context(forward_as(module, _recording(module, answers)))
            yield answers
        for thread, (identity, _) in list(self._kept.items()):
            if any(tensor() is None for tensor, _ in identity):  # that batch, or weights, no longer exist
                self._kept.pop(thread, None)
        self._kept[get_ident()] = _identity(batch, answers), answers

    @contextmanager
    def kept(self, batch: Batch, modules: list[nn.Module]) -> Iterator[Answers]:
        """Context manager: the modules return their outputs for this batch if known, else these are kept."""
        known = self._known(batch)
        with self.recorded(batch, modules) if known is None else answering(known) as answers:
            yield answers

    @contextmanager
    def replayed(self, batch: Batch) -> Iterator[None]:
        """Context manager: the modules return their outputs, if known for this batch, unwritten to since."""
        with answering(self._known(batch) or []):
            yield

    def _known(self, batch: Batch) -> Answers | None:
        kept = list(self._kept.values())
        return next((answers for identity, answers in kept if _same(identity, _identity(batch, answers))), None)

    def __reduce__(self) -> Any:
        return Prefix, ()


def _recording(module: nn.Module, answers: Answers) -> Callable[..., Any]:
    module_forward = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = module_forward(*args, **kwargs)
        answers.append((module, _copied(output)))
        return output

    return forward


def _identity(batch: Batch, answers: Answers) -> Identity:
    """The batch and the weights that outputs of modules were computed from."""
    tensors = [batch] if isinstance(batch, Tensor) else [v for v in batch.values() if isinstance(v, Tensor)]
    for module, _ in answers:
        tensors += [*module.parameters(), *module.buffers()]
    return tuple((weakref.ref(t), None if t.is_inference() else t._version) for t in tensors)


def _same(kept: Identity, now: Identity) -> bool:
    return len(kept) == len(now) and all(
        then() is not None and then() is this() and was == version
        for (then, was), (this, version) in zip(kept, now, strict=True)
    )


def _copied(output: Any) -> Any:
    """An output in containers of its own; its tensors keep their gradients where these are on."""
    if isinstance(output, Tensor):
        return output if torch.is_grad_enabled() else output.detach()
    if type(output) in (tuple, list):
        return type(output)(_copied(value) for value in output)
    if isinstance(output, Mapping):  # also transformers' outputs, which are dataclasses, too
        copied = copy.copy(output)
        for name, value in output.items():
            copied[name] = _copied(value)  # type: ignore[index]
        return copied
    return output
