"""What runs before the first block, kept for the batch last seen, so that readouts need not run it again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

from torch import Tensor, nn

from anydepth.calling import Batch
from anydepth.surgery import forward_as

Answers: TypeAlias = list[tuple[nn.Module, Any]]
"""What some modules answered."""


@contextmanager
def answering(answers: Answers) -> Iterator[Answers]:
    """Have the modules answer this, whatever they are asked."""
    with ExitStack() as undo:
        for module, output in answers:
            undo.enter_context(forward_as(module, lambda *args, _output=output, **kwargs: _output))
        yield answers


class Prefix:
    """What ran before the first block on the batch last seen, kept so that readouts need not run it again."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._kept: Answers = []

    @contextmanager
    def recorded(self, batch: Batch, modules: list[nn.Module]) -> Iterator[Answers]:
        """Keep what these modules answer inside, in a forward on this batch."""
        self._key, self._kept = None, []
        kept: Answers = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept.append((module, _detached(output)))

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()
        self._key, self._kept = _identity(batch), kept

    @contextmanager
    def kept(self, batch: Batch, modules: list[nn.Module]) -> Iterator[Answers]:
        """Have the modules answer what they did on this batch, or keep what they answer now."""
        with answering(self._kept) if self._has(batch) else self.recorded(batch, modules) as answers:
            yield answers

    @contextmanager
    def replayed(self, batch: Batch) -> Iterator[None]:
        """Have the modules answer what they did, if this is the batch they did it on, unwritten to since."""
        with answering(self._kept) if self._has(batch) else nullcontext():
            yield

    def _has(self, batch: Batch) -> bool:
        return self._key is not None and _same(self._key, _identity(batch))


def _identity(batch: Batch) -> tuple[Any, ...]:
    """Which tensors these are, and how often each was written to; None stands for what cannot be told."""
    tensors = [batch] if isinstance(batch, Tensor) else [v for v in batch.values() if isinstance(v, Tensor)]
    return tuple((weakref.ref(t), None if t.is_inference() else t._version) for t in tensors)


def _same(kept: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
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
