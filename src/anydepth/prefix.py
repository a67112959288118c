"""What runs before the first block, kept for the batch last seen, so that readouts need not run it again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from anydepth.calling import Batch
from anydepth.surgery import forward_as


class Prefix:
    """What ran before the first block on the batch last seen, kept so that readouts need not run it again."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._kept: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def recorded(self, batch: Batch, modules: list[nn.Module]) -> Iterator[None]:
        """Keep what these modules answer inside, in a forward on this batch."""
        self._key, self._kept = None, []
        kept: list[tuple[nn.Module, Any]] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept.append((module, _detached(output)))

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._key, self._kept = _identity(batch), kept

    @contextmanager
    def kept(self, batch: Batch, modules: list[nn.Module]) -> Iterator[None]:
        """Have the modules answer what they did on this batch, or keep what they answer now."""
        with self.replayed(batch) if self._has(batch) else self.recorded(batch, modules):
            yield

    @contextmanager
    def replayed(self, batch: Batch) -> Iterator[None]:
        """Have the modules answer what they did, if this is the batch they did it on, unwritten to since."""
        with ExitStack() as undo:
            if self._has(batch):
                for module, output in self._kept:
                    undo.enter_context(forward_as(module, lambda *args, _output=output, **kwargs: _output))
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
