"""Keys and values of what was generated, in the middle of a step: some blocks have got further than others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int64
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from anydepth.errors import GenerationError


class KeysWritten(BaseException):
    """A block has handed over its keys and values, and nothing else of it is wanted: no error, so not caught as one."""


class FixedLengthCache(Cache):  # type: ignore[misc]  # of transformers, which has no types
    """A cache as one forward is to see it: of a stated length, however far single blocks have got.

    A model makes its masks and positions by what the cache says of its length, and asks one layer for all. While some
    blocks have run on positions that others have still to see, that would be right for some of them only.

    Args:
        cache: whose layers are written to.
        length: positions before those of this forward.
    """

    def __init__(self, cache: Cache, length: int) -> None:
        super().__init__(layers=cache.layers)
        self.length = length
        self._filling = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The stated length, for every layer."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of what a forward of `query_length` positions attends to."""
        return self.length + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write the keys and values of a layer."""
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self._filling:
            raise KeysWritten
        return found

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Inside, a block that has written its keys and values goes no further: it raises `KeysWritten`."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False


def whole_cache(cache: Any, depth: int) -> Cache:
    """A cache that keeps every position in every layer, so that each can be taken back.

    Args:
        cache: what `generate` prepared, or its user gave.
        depth: L.

    Returns:
        The same one if it is such; another in its place if it is empty and would drop what leaves a window.

    Raises:
        GenerationError: there is none, it cannot be taken back, or some layers have more positions than others.
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
    found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
    offloaded = ", offloaded" if cache.offloading else ""
    raise GenerationError(
        f"a {type(cache).__name__} of {len(cache.layers)} layers ({found}{offloaded}) cannot be taken back; expected a "
        f"DynamicCache() of {depth} layers that keep every position"
    )


def require_even(cache: Any, depth: int) -> None:
    """See that the first layers have the same positions: what some lack, attention would silently leave out.

    Args:
        cache: any, or none.
        depth: of how many layers.

    Raises:
        GenerationError: some have more than others, as after generating at a depth.
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
    """See that every block has left its keys and values.

    Raises:
        GenerationError: one has not: an encoder's, or one that looks at another block's.
    """
    for number, layer in enumerate(cache.layers, start=1):
        if layer.get_seq_length() != length:
            raise GenerationError(
                f"block {number} keeps {layer.get_seq_length()} of {length} positions: expected a causal language "
                "model in which every block keeps keys and values of its own, and no gradient checkpointing"
            )


def copied(cache: Cache) -> Cache:
    """Another cache with the same keys and values: what is done to it, the first does not see."""
    own = DynamicCache()
    own.layers = [copy.copy(layer) for layer in cache.layers]
    return own


def cut_back(cache: Cache, length: int) -> None:
    """Leave the first `length` positions in every layer; shorter ones stay as they are."""
    for layer in cache.layers:
        if layer.get_seq_length() > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
            layer.is_initialized = length > 0  # an empty one takes any number of rows


@contextmanager
def levelled(cache: Any, depth: int) -> Iterator[None]:
    """Inside, layers get longer one after the other; if it fails half-way, all are left as long as the shortest.

    Args:
        cache: any, or none; one that drops positions cannot take back others, and stays as it is.
        depth: of how many layers.
    """
    try:
        yield
    except BaseException:
        layers = getattr(cache, "layers", [])[:depth]
        if layers and all(type(layer) is DynamicLayer for layer in layers):
            cut_back(cache, min(layer.get_seq_length() for layer in layers))
        raise


def choose_positions(cache: Cache, positions: Int64[Tensor, "b t"]) -> None:
    """Put positions of each row in the places where they are to stand.

    Args:
        cache: of B rows.
        positions: for each row and place, the position that comes there.
    """
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            index = positions.to(kept.device)[:, None, :, None].expand(-1, kept.shape[1], -1, kept.shape[3])
            setattr(layer, name, kept.gather(2, index))
