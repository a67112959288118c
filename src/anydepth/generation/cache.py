"""Keys and values of what was generated, in the middle of a step: some blocks have got further than others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int64
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from anydepth.errors import GenerationError


class Filled(Exception):
    """A block has handed over its keys and values, and nothing else of it is wanted."""


class Seen(Cache):  # type: ignore[misc]  # of transformers, which has no types
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
            raise Filled
        return found

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Inside, a block that has written its keys and values goes no further: it raises `Filled`."""
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
        GenerationError: there is none, or it cannot be taken back.
    """
    if not isinstance(cache, Cache):
        came = "nothing" if cache is None else f"a {type(cache).__name__}"
        raise GenerationError(f"{came} to keep keys and values in: expected use_cache=True and a DynamicCache")
    kinds = {type(layer) for layer in cache.layers}
    if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} and len(cache.layers) in (0, depth):
        if kinds <= {DynamicLayer}:
            cache.layers.extend(DynamicLayer() for _ in range(depth - len(cache.layers)))
            return cache
        if cache.get_seq_length() == 0 and not getattr(cache, "_is_user_defined", False):
            whole = DynamicCache()
            whole.layers.extend(DynamicLayer() for _ in range(depth))
            return whole
    found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
    raise GenerationError(
        f"a {type(cache).__name__} of {len(cache.layers)} layers ({found}) cannot be taken back; expected a "
        f"DynamicCache of {depth} layers that keep every position"
    )


def cut_back(cache: Cache, length: int) -> None:
    """Leave the first `length` positions in every layer; shorter ones stay as they are."""
    for layer in cache.layers:
        if layer.get_seq_length() > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def choose_positions(cache: Cache, positions: Int64[Tensor, "b t"]) -> None:
    """Put positions of each row in the places where they are to stand.

    Args:
        cache: of B rows.
        positions: for each row and place, the position that comes there.
    """
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            index = positions[:, None, :, None].expand(-1, kept.shape[1], -1, kept.shape[3])
            setattr(layer, name, kept.gather(2, index))
