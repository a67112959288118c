"""A device that is not there: tensors on it refuse to meet those of the CPU, as a GPU's do, and compute on the CPU.

Its tensors are wrappers on torch's backend for private use. Inside `pretended()` every operation on them runs on what
they wrap; one that mixes them with tensors of the CPU raises what torch raises for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("privateuseone:0")
_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXES = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}  # by indices of the CPU, as CUDA's


class Pretended(Tensor):
    """A tensor of the device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        """Of what it wraps: torch has none for subclasses."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors of the device where one is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, Pretended)]
    target = kwargs.get("device")
    if ours and func not in _MOVES | _INDEXES:
        strangers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Pretended)]
        if any(stranger.ndim for stranger in strangers):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} met {DEVICE} and cpu")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu") if torch.device(target).type == DEVICE.type else target}
    here = bool(ours) if target is None else torch.device(target).type == DEVICE.type
    if func is _aten.copy_.default:
        here = isinstance(args[0], Pretended)
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    output = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and ours:
        return args[0] if isinstance(output, Tensor) else output
    return tree_map(lambda value: Pretended(value) if isinstance(value, Tensor) and here else value, output)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def set_up() -> None:
    """Register the device with torch, for the whole process: call it in one of its own."""
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend()
    for name, implementation in (("empty_strided", _empty_strided), ("_copy_from", _copy_from)):
        _LIBRARY.impl(name, implementation, "PrivateUse1")  # `torch.tensor` calls these past every mode
    # torch has no views of wrappers in inference mode
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()  # type: ignore[misc,assignment]


_LIBRARY = torch.library.Library("aten", "IMPL")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _inner(target).copy_(_inner(source))
    return target


@contextmanager
def pretended(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager: the model lies on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Pretended(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Pretended(buffer)
    with _Factories():
        yield model
