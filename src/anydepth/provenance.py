"""Where a result comes from: enough to tell whether two results may be compared, and to make one again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.stack import Stack

# Above this many bytes of one tensor, entries at equal distances stand for all.
_WHOLE = 2**28


def describe_model(stack: Stack, name: str | None = None) -> dict[str, Any]:
    """Name, class, size, classes and fingerprint of a model."""
    model = stack.model
    config = getattr(model, "config", None)
    whole = model if stack.heads is None else nn.ModuleList([model, stack.heads])
    own = name or getattr(config, "_name_or_path", None) or type(model).__name__
    return {
        "name": str(own),
        "class": type(model).__name__,
        "fingerprint": model_fingerprint(whole),
        "parameters": sum(parameter.numel() for parameter in whole.parameters()),
        "blocks": stack.path,
        "depth": stack.depth,
        "classes": {str(index): str(label) for index, label in (getattr(config, "id2label", None) or {}).items()},
    }


def model_fingerprint(model: nn.Module) -> str:
    """A hash of the weights' names, types, shapes and values.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> before = model_fingerprint(layer)
        >>> _ = nn.init.zeros_(layer.bias)
        >>> before == model_fingerprint(layer)
        False
    """
    content = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(_bytes_of(tensor))
    return content.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    if flat.numel() * flat.element_size() > _WHOLE:
        flat = flat[:: flat.numel() // 2**20]
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def data_fingerprint(digests: NDArray[np.uint64]) -> str:
    """A hash of the samples' contents, whatever their order and batches."""
    return hashlib.blake2b(np.sort(digests).tobytes(), digest_size=16).hexdigest()


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    return {package: version(package) for package in ("anydepth", "torch", "transformers", "numpy")}


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
