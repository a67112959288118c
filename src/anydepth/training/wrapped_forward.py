"""Run code inside the forward of a model that DDP, FSDP or DeepSpeed wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from anydepth.core.patching import forward_as


def within_forward(outer: nn.Module, inner: nn.Module, work: Callable[[dict[str, Any]], Any], inputs: Any) -> Any:
    """Run a function inside the forward of a wrapper, in place of the forward of the model it wraps.

    DDP and FSDP prepare for gradients when *their* forward is called, once for each backward. So the whole loss, with
    all its readouts, has to run inside one call of theirs. `outer` is the `inner` model itself if nothing wraps it.

    `work` takes the inputs as they reach the model, which it may call several times. Tensors with gradient must be its
    result, or the values of a dict, so that the wrapper finds them.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 3)
        >>> within_forward(model, model, lambda inputs: model(**inputs).sum(), {"input": torch.ones(4, 2)}).shape
        torch.Size([])
    """
    own = inner.forward  # accelerate's wrapper for mixed precision, where it put one on the instance

    def forward(**inputs: Any) -> Any:
        with forward_as(inner, own):
            return work(inputs)

    with forward_as(inner, forward):
        return outer(**inputs)
