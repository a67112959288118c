"""Key-value caches while a step is under way, when some blocks have run on more positions than others."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int64
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from anydepth.errors import GenerationError


class KeysWritten(BaseException):
    """Raised to stop a block once it has written its keys and values; no `Exception`, so models do not catch it."""


class FixedLengthCache(Cache):  # type: ignore[misc]  # of transformers, which has no types
    """View of a cache that reports one fixed length, however many positions single layers hold.

    A model makes its masks and positions by the length of one layer. While some blocks have run on positions that
    others have still to see, that would be right for some of them only. `length` counts the positions before those of
    this forward; the layers of `cache` are written to.
    """

    def __init__(self, cache: Cache, length: int) -> None:
        super().__init__(layers=cache.layers)
        self.length = length
        self._filling = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The fixed length, for every layer."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the positions that a forward of `query_length` positions attends to."""
        return self.length + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write the keys and values of a layer."""
        keys_and_values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self._filling:
            raise KeysWritten
        return keys_and_values

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Context manager: a block stops with `KeysWritten` once it has written its keys and values."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False


def whole_cache(cache: Any, depth: int) -> Cache:
    """A cache that keeps every position in all L = `depth` layers, so that positions can be removed again.

    Returns:
        The given cache if it is such a one; a new one in place of an empty cache with a sliding window.

    Raises:
        GenerationError: there is none, it drops positions, or some layers have more positions than others.
    """
    if not isinstance(cache, Cache):
        came = "nothing" if cache is None else f"a {type(cache).__name__}"
        raise GenerationError(
            f"{came} to keep keys and values in: expected use_cache=True and a model that takes a DynamicCache"
        )
    require_even(cache, depth)
    kinds = {type(layer) for layer in cache.layers}
    if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} and len(cache.layers) in (0, depth) and not cache.offloading:
        if kinds <= {DynamicLayer}:
            cache.layers.extend(DynamicLayer() for _ in range(depth - len(cache.layers)))
            return cache
        if cache.get_seq_length() == 0 and not getattr(cache, "_is_user_defined", False):
            whole = DynamicCache()
            whole.layers.extend(DynamicLayer() for _ in range(depth))
            return whole
    layers = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
    offloaded = ", offloaded" if cache.offloading else ""
    raise GenerationError(
        f"a {type(cache).__name__} of {len(cache.layers)} layers ({layers}{offloaded}) cannot be taken back; expected "
        f"a DynamicCache() of {depth} layers that keep every position"
    )


def window_of(cache: Cache) -> int:
    """The fewest positions that a layer of a cache keeps; very many where none drops any."""
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=sys.maxsize)


def require_even(cache: Any, depth: int) -> None:
    """Raise `GenerationError` unless the first `depth` layers of a cache, if there is one, have as many positions.

    They differ after generating at a depth, and attention would silently leave out what a layer lacks.
    """
    layers = getattr(cache, "layers", [])[:depth]
    lengths = [int(layer.get_seq_length()) for layer in layers if hasattr(layer, "get_seq_length")]
    lengths += [0] * (depth - len(layers))
    if len(set(lengths)) > 1:
        raise GenerationError(
            f"a cache whose layers have {', '.join(map(str, lengths))} positions: expected as many in each; what was "
            "filled at some depth goes on at that depth only"
        )


def require_filled(cache: Cache, length: int) -> None:
    """Raise `GenerationError` unless every block has written keys and values of `length` positions.

    Blocks of an encoder don't, nor do those that attend to another block's keys.
    """
    for number, layer in enumerate(cache.layers, start=1):
        if layer.get_seq_length() != length:
            raise GenerationError(
                f"block {number} keeps {layer.get_seq_length()} of {length} positions: expected a causal language "
                "model in which every block keeps keys and values of its own, and no gradient checkpointing"
            )


def copied(cache: Cache) -> Cache:
    """A copy of a cache that can be changed without changing the original."""
    copy_of_cache = DynamicCache()
    copy_of_cache.layers = [copy.copy(layer) for layer in cache.layers]
    return copy_of_cache


def cut_back(cache: Cache, length: int) -> None:
    """Cut every layer to its first `length` positions; shorter ones stay as they are."""
    for layer in cache.layers:
        if layer.get_seq_length() > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
            layer.is_initialized = length > 0  # an empty one takes any number of rows


@contextmanager
def levelled(cache: Any, depth: int) -> Iterator[None]:
    """Context manager: if a forward fails half-way, cut the first `depth` layers to the length of the shortest.

    A cache that drops positions cannot take back others, and stays as it is.
    """
    try:
        yield
    except BaseException:
        layers = getattr(cache, "layers", [])[:depth]
        if layers and all(type(layer) is DynamicLayer for layer in layers):
            cut_back(cache, min(layer.get_seq_length() for layer in layers))
        raise


def choose_positions(cache: Cache, positions: Int64[Tensor, "b t"]) -> None:
    """Reorder a cache: place t of row b holds what was at `positions[b, t]`."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            values = getattr(layer, name)
            index = positions.to(values.device)[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
            setattr(layer, name, values.gather(2, index))
