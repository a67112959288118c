"""Where a result comes from: enough to tell whether two results may be compared, and to make one again."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.stack import Stack

# Of a config: what says nothing of what the model answers, or is set by saving, loading or training it.
_NOT_COMPUTED = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
# Above this many bytes of one tensor, entries at equal distances stand for all.
_WHOLE = 2**28


def describe_model(stack: Stack, name: str | None = None) -> dict[str, Any]:
    """Name, class, size, classes and fingerprint of a model."""
    model = stack.model
    config = getattr(model, "config", None)
    whole = _whole(stack)
    own = name or getattr(config, "_name_or_path", None) or type(model).__name__
    return {
        "name": str(own),
        "class": type(model).__name__,
        "fingerprint": stack_fingerprint(stack),
        "parameters": sum(parameter.numel() for parameter in whole.parameters()),
        "blocks": stack.path,
        "depth": stack.depth,
        "classes": class_names(model),
    }


def stack_fingerprint(stack: Stack) -> str:
    """A hash of a model's weights, and of its heads' if each depth has its own."""
    return model_fingerprint(_whole(stack))


def _whole(stack: Stack) -> nn.Module:
    return stack.model if stack.heads is None else nn.ModuleList([stack.model, stack.heads])


def class_names(model: nn.Module) -> dict[str, str]:
    """What a model's config calls its classes, by their number; empty where it says nothing."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(index): str(label) for index, label in names.items()}


def describe_config(model: nn.Module) -> dict[str, Any]:
    """What a model's config says of what it computes: without names, versions, and what a call may ask for.

    Names of classes are left out, which `describe_model` gives. Empty for a model that has no config of transformers'.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return _computing(plain)


def _computing(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _computing(value) if isinstance(value, dict) else value
        for name, value in sorted(config.items())
        if name not in _NOT_COMPUTED
    }


def weights_stamp(stack: Stack) -> tuple[Any, ...]:
    """What changes whenever torch writes to a weight or another takes its place: cheap, and no proof of a change."""
    tensors = [(name, one) for name, one in _whole(stack).state_dict().items() if isinstance(one, Tensor)]
    return tuple((name, one.data_ptr(), -1 if one.is_inference() else one._version) for name, one in tensors)


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
