"""Finds the blocks of a transformer: the list of modules of one class that run once each, in order.

There is no table of architectures. A list is a candidate if its members are of one class and no other candidate
contains it; where the model's config states a depth, only lists of that length count. `Stack` checks in a forward that
the members run once each and in order.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from anydepth.errors import UnknownArchitecture

# Entries of a config that state the number of blocks.
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_OVERRIDE = "name one with blocks='path.to.blocks'"


def find_blocks(model: nn.Module, path: str | None = None) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """Dotted name and list of the blocks of a model.

    Args:
        model: any module.
        path: the dotted name, as in `model.named_modules()`; None to search.

    Raises:
        UnknownArchitecture: no list qualifies, or several do; the message names them.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4) for _ in range(3)]))
        >>> find_blocks(model)[0]
        '1'
    """
    if path is not None:
        return path, _at(model, path)
    candidates = dict(_candidates(model))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnknownArchitecture(
            f"{type(model).__name__} is an encoder-decoder, two stacks in one: {_names(candidates)}; {_OVERRIDE}"
        )
    if depths := _stated_depths(model):
        stated = {name: blocks for name, blocks in candidates.items() if len(blocks) in depths}
        if candidates and not stated:
            raise UnknownArchitecture(
                f"{type(model).__name__} states a depth of {' or '.join(map(str, sorted(depths)))}, but has "
                f"{_names(candidates)}: blocks that several depths share (as in ALBERT) are not supported"
            )
        candidates = stated
    else:
        candidates = {name: blocks for name, blocks in candidates.items() if len(blocks) > 1} or candidates
    if not candidates:
        raise UnknownArchitecture(f"{type(model).__name__} has no ModuleList or Sequential of like blocks; {_OVERRIDE}")
    if len(candidates) > 1:
        raise UnknownArchitecture(
            f"{type(model).__name__} has several lists of blocks: {_names(candidates)}; {_OVERRIDE}"
        )
    return next(iter(candidates.items()))


def _at(model: nn.Module, path: str) -> nn.ModuleList | nn.Sequential:
    try:
        blocks = model.get_submodule(path)
    except AttributeError:
        raise UnknownArchitecture(
            f"{type(model).__name__} has no module {path!r}; the lists it has: {_names(dict(_candidates(model)))}"
        ) from None
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        raise UnknownArchitecture(
            f"{path!r} is a {type(blocks).__name__}, expected a non-empty ModuleList or Sequential of blocks"
        )
    return blocks


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Lists of like modules, outermost first; what lies inside a candidate (experts, say) is part of its blocks."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(outer) for outer in inside):
            continue
        is_list = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(member) for member in module}) == 1
        if is_list and next(module[0].parameters(), None) is not None:
            inside.append(f"{name}." if name else "")
            yield name, module


def _stated_depths(model: nn.Module) -> set[int]:
    """Every depth that the config or one of its sub-configs (a CLIP has two towers) states."""
    config = getattr(model, "config", None)
    if config is None:
        return set()
    configs = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    stated = (getattr(config, name, None) for config in configs for name in DEPTH_NAMES)
    return {depth for depth in stated if isinstance(depth, int)}


def _names(candidates: dict[str, nn.ModuleList | nn.Sequential]) -> str:
    listed = (
        f"{name or '(the model itself)'} ({len(blocks)} x {type(blocks[0]).__name__})"
        for name, blocks in candidates.items()
    )
    return ", ".join(listed) or "no list of like blocks"
