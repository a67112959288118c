"""Provenance of a result: model, data and versions, to compare results and to reproduce them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.stack import Stack
from anydepth.dependencies import require

# Entries of a config without effect on the model's answers, or set by saving, loading or training it.
_WITHOUT_EFFECT = (
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
# Of a tensor with more bytes than this, entries at equal distances are hashed.
_HASHED_WHOLE = 2**28


def entry(provenance: Mapping[str, Any], *path: str, default: Any = None) -> Any:
    """The entry of a nested provenance under these keys; the default where one is missing.

    Example:
        >>> entry({"model": {"name": "bert"}}, "model", "name"), entry({}, "model", "name", default="states")
        ('bert', 'states')
    """
    value: Any = provenance
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def describe_model(stack: Stack, name: str | None = None) -> dict[str, Any]:
    """Name, class, size, classes and fingerprint of a model; of several stages, the first depth of each."""
    model = stack.model
    name = name or getattr(getattr(model, "config", None), "_name_or_path", None) or type(model).__name__
    fingerprint, unread = _hashed(_with_heads(stack))
    return {
        **({"unread_weights": unread} if unread else {}),
        "name": str(name),
        "class": type(model).__name__,
        "fingerprint": fingerprint,
        "parameters": sum(parameter.numel() for parameter in _with_heads(stack).parameters()),
        "blocks": stack.path,
        "depth": stack.depth,
        **({"stages": stack.stages} if stack.entry else {}),
        "classes": class_names(model),
    }


def stack_fingerprint(stack: Stack) -> str:
    """A hash of a model's weights, and of its heads' if each depth has its own."""
    return model_fingerprint(_with_heads(stack))


def _with_heads(stack: Stack) -> nn.Module:
    return stack.model if stack.heads is None else nn.ModuleList([stack.model, stack.heads])


def class_names(model: nn.Module) -> dict[str, str]:
    """The names of the classes in a model's config, by their number; empty without any."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(index): str(label) for index, label in names.items()}


def describe_config(model: nn.Module) -> dict[str, Any]:
    """The entries of a model's config that affect its answers; empty without a config of transformers.

    Names of classes are left out: `describe_model` has them.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    return _with_effect(json.loads(json.dumps(config.to_dict(), default=str)))


def _with_effect(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _with_effect(value) if isinstance(value, dict) else value
        for name, value in sorted(config.items())
        if name not in _WITHOUT_EFFECT
    }


def weights_stamp(stack: Stack) -> tuple[Any, ...]:
    """Address and version of every weight: a cheap stamp that changes whenever torch writes to one or replaces it."""
    weights = _with_heads(stack).state_dict().items()
    return tuple(
        (name, tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
        for name, tensor in weights
        if isinstance(tensor, Tensor)
    )


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
    return _hashed(model)[0]


def unread_weights(model: nn.Module) -> list[str]:
    """The names of weights whose values a fingerprint leaves out, because they cannot be read."""
    return _hashed(model)[1]


def _hashed(model: nn.Module) -> tuple[str, list[str]]:
    """The fingerprint of a model's weights, and the names of those that cannot be read, in one pass over them."""
    content, unread, weights = hashlib.blake2b(digest_size=16), set[str](), model.state_dict()
    for name, tensor in sorted(weights.items()):
        if isinstance(tensor, Tensor):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = _in_memory(model, name, tensor)
            content.update(b"unread" if values is None else _bytes_of(values))
            if values is None:
                unread.add(name)
    return content.hexdigest(), [name for name in weights if name in unread]


def _in_memory(model: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """The values of a weight: of all shards, and of one that accelerate has put away; None where nobody has them."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()  # type: ignore[no-any-return]
    if tensor.device.type != "meta":
        return tensor
    parent, _, leaf = name.rpartition(".")
    hook = getattr(model.get_submodule(parent), "_hf_hook", None)
    if hook is not None:
        require("accelerate")
    put_away = getattr(hook, "weights_map", None)
    try:
        return None if put_away is None else torch.as_tensor(put_away[leaf])
    except KeyError:
        return None


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    if flat.numel() * flat.element_size() > _HASHED_WHOLE:
        flat = flat[:: flat.numel() // 2**20]
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def data_fingerprint(digests: NDArray[np.uint64]) -> str:
    """A hash of the samples' contents that does not depend on their order and batches."""
    return hashlib.blake2b(np.sort(digests).tobytes(), digest_size=16).hexdigest()


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    return {package: version(package) for package in ("anydepth", "torch", "transformers", "numpy")}


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
