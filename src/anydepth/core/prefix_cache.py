"""What runs before the first block, kept for the batch last seen, so that readouts need not run it again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, TypeAlias

from torch import Tensor, nn

from anydepth.core.model_io import Batch
from anydepth.core.patching import forward_as

Answers: TypeAlias = list[tuple[nn.Module, Any]]
"""What some modules answered."""

Identity: TypeAlias = tuple[tuple["weakref.ref[Tensor]", int | None], ...]
"""Which tensors a batch holds, and how often each was written to; None where that cannot be told."""


@contextmanager
def answering(answers: Answers) -> Iterator[Answers]:
    """Have the modules answer this, whatever they are asked."""
    with ExitStack() as undo:
        for module, output in answers:
            undo.enter_context(forward_as(module, lambda *args, _output=output, **kwargs: _output))
        yield answers


class Prefix:
    """What ran before the first block on the batch that each thread saw last, kept for the readouts of that batch.

    A thread finds what another has kept of the same batch: gradients of a GPU are made in threads of torch's own.
    A copy starts with nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Identity, Answers]] = {}

    @contextmanager
    def recorded(self, batch: Batch, modules: list[nn.Module]) -> Iterator[Answers]:
        """Keep what these modules answer inside, in a forward on this batch."""
        self._kept.pop(get_ident(), None)
        answers: Answers = []
        with ExitStack() as undo:
            for module in modules:
                undo.enter_context(forward_as(module, _keeping(module, answers)))
            yield answers
        for thread, (identity, _) in list(self._kept.items()):
            if any(tensor() is None for tensor, _ in identity):  # nobody can come back with that batch
                self._kept.pop(thread, None)
        self._kept[get_ident()] = _identity(batch), answers

    @contextmanager
    def kept(self, batch: Batch, modules: list[nn.Module]) -> Iterator[Answers]:
        """Have the modules answer what they did on this batch, or keep what they answer now."""
        known = self._known(batch)
        with self.recorded(batch, modules) if known is None else answering(known) as answers:
            yield answers

    @contextmanager
    def replayed(self, batch: Batch) -> Iterator[None]:
        """Have the modules answer what they did, if this is the batch they did it on, unwritten to since."""
        with answering(self._known(batch) or []):
            yield

    def _known(self, batch: Batch) -> Answers | None:
        now = _identity(batch)
        return next((answers for identity, answers in list(self._kept.values()) if _same(identity, now)), None)

    def __reduce__(self) -> Any:
        return Prefix, ()


def _keeping(module: nn.Module, answers: Answers) -> Callable[..., Any]:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        answers.append((module, _detached(output)))
        return output

    return forward


def _identity(batch: Batch) -> Identity:
    tensors = [batch] if isinstance(batch, Tensor) else [v for v in batch.values() if isinstance(v, Tensor)]
    return tuple((weakref.ref(t), None if t.is_inference() else t._version) for t in tensors)


def _same(kept: Identity, now: Identity) -> bool:
    return len(kept) == len(now) and all(
        then() is not None and then() is this() and was == version
        for (then, was), (this, version) in zip(kept, now, strict=True)
    )


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if type(output) in (tuple, list):
        return type(output)(_detached(value) for value in output)
    return output
