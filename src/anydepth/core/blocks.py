"""Lists of modules that may be a model's blocks, and where its forward finds them.

There is no table of architectures. Lists are ranked by how much they look like blocks; which one is the blocks is
decided by watching a forward (`anydepth.core.watching`), except where the model's config leaves a single one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from torch import nn

from anydepth.core.loops import Loop
from anydepth.errors import UnknownArchitecture

# Entries of a config that state the number of blocks.
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_DEPTH = re.compile(r"(n_|num_)?((en|de)coder_)?(num_)?(hidden_)?layers?|depth")
_PART = re.compile(r"(.+)\.\[(\d+):(\d+)\]")
OVERRIDE = "name one with blocks='path.to.blocks'"

# Words by which people ask for one of several stacks, and words that paths have for it.
STACKS = {
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "image": ("vision", "visual", "image", "img"),
    "text": ("text", "language", "llm", "lm"),
    "audio": ("audio", "speech"),
}
BOTH = "both"
"""Encoder and decoder, one after the other: two stages."""


@dataclass(frozen=True, kw_only=True)
class BlockList:
    """Modules that may be blocks.

    Attributes:
        path: dotted name of what holds them; of blocks in attributes, with a star for their numbers ("layer*").
        owner: the module that holds them: the container itself, or the module with the attributes or the plain list.
        names: of the members: children of a container, or attributes; of a plain list, the one attribute.
        modules: the members, in order.
        holder: how the forward reaches them.
        loop: that runs them, where each is a list of parts; `None` for modules that run as a whole.
        rank: how little it looks like blocks: 0 for a list of one class as long as the config says, 1 of one class,
            2 of several, 3 for anything else that is made of modules, 4 for lists of single layers.
    """

    path: str
    owner: nn.Module
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    holder: Literal["container", "attributes", "list"] = "container"
    loop: Loop | None = None
    rank: int = 1

    def __str__(self) -> str:
        kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in self.modules))
        return f"{self.path or '(the model itself)'} ({len(self.modules)} x {kinds})"

    @property
    def is_closed(self) -> bool:
        """Whether what lies inside its members is part of them: a module alone, which nobody counts, may be a model."""
        return self.rank == 0 or (self.rank == 1 and len(self.modules) > 1)

    def first(self, depth: int) -> BlockList:
        """The list without what comes after block `depth`."""
        return replace(self, names=self.names[:depth], modules=self.modules[:depth])

    def is_called(self, stack: str) -> bool:
        """Whether its path has a word for this stack."""
        return not set(re.split(r"[._]", self.path)).isdisjoint(STACKS[stack])


def named(lists: Sequence[BlockList]) -> str:
    """The lists in words, for messages."""
    return ", ".join(map(str, lists)) or "no list of blocks"


def block_lists(model: nn.Module) -> list[BlockList]:
    """Every list of modules in a model that may be blocks, those of the lowest rank first.

    What lies inside a list of one class (experts, say) is part of its blocks. Modules in no list of their own are taken
    for blocks only where they hold a quarter of the weights: layers of a block have numbered names, too.
    """
    depths, lists, inside = stated_depths(model), list[BlockList](), list[str]()
    for name, module in model.named_modules():
        if any(name.startswith(outer) for outer in inside):
            continue
        for candidate in _in_container(name, module) if _is_container(module) else _in_attributes(name, module):
            if candidate.rank == 1 and len(candidate.modules) in depths:
                candidate = replace(candidate, rank=0)
            if candidate.is_closed:
                inside.append(f"{name}." if name else "")
            lists.append(candidate)
    weights = weights_of(model)
    likely = (candidate for candidate in lists if candidate.rank != 3 or 4 * weights_of(*candidate.modules) > weights)
    return sorted(likely, key=lambda candidate: candidate.rank)


def weights_of(*modules: nn.Module) -> int:
    """The number of weights of several modules, each counted once."""
    return sum(weights.numel() for module in dict.fromkeys(modules) for weights in module.parameters())


def list_at(model: nn.Module, path: str) -> BlockList:
    """The list of blocks of that dotted name.

    Raises:
        UnknownArchitecture: there is no such module, or it holds no modules; the message names the lists there are.
    """
    if known := next((candidate for candidate in block_lists(model) if candidate.path == path), None):
        return known
    if part := _PART.fullmatch(path):
        return part_of(list_at(model, part[1]), int(part[2]), int(part[3]))
    try:
        container = model.get_submodule(path)
    except AttributeError:
        container = None
    if container is None:
        raise UnknownArchitecture(
            f"{type(model).__name__} has no module {path!r}; the lists it has: {named(block_lists(model))}"
        )
    if not _is_container(container) or not _members(container):
        raise UnknownArchitecture(
            f"{path!r} is a {type(container).__name__}, expected a non-empty ModuleList or Sequential of blocks"
        )
    return _whole(path, container)


def stated_list(model: nn.Module, lists: Sequence[BlockList], stack: str | None) -> BlockList | None:
    """The only list that the config's depth, or its class, leaves; None where a forward must show it."""
    if stack is None and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        stack = "decoder"
    if stack == BOTH:
        return None
    if stack is not None:
        lists = [candidate for candidate in lists if candidate.is_called(stack)]
    likeliest = [candidate for candidate in lists if candidate.rank == lists[0].rank]
    if likeliest and likeliest[0].rank and stated_depths(model):
        return None
    likeliest = [candidate for candidate in likeliest if len(candidate.modules) > 1] or likeliest
    return likeliest[0] if len(likeliest) == 1 and not _widens(likeliest[0]) else None


def _widens(blocks: BlockList) -> bool:
    """Whether the first vectors among the weights of its members, mostly those of a norm, differ in length."""
    vectors = [next((w for w in member.parameters() if w.ndim == 1), None) for member in blocks.modules]
    return len({len(vector) for vector in vectors if vector is not None}) > 1


def part_of(blocks: BlockList, start: int, stop: int) -> BlockList:
    """The members from place `start` to before `stop` as a list of their own."""
    if (start, stop) == (0, len(blocks.modules)):
        return blocks
    names, modules = blocks.names[start:stop], blocks.modules[start:stop]
    return replace(blocks, path=f"{blocks.path}.[{start}:{stop}]", names=names, modules=modules)


def lists_inside(blocks: BlockList) -> list[BlockList]:
    """The lists whose members are the blocks of stages: of each member the one inside with the most weights.

    A member without a list is a block itself, and those side by side are a list.
    """
    lists: list[BlockList] = []
    for place, (name, member) in enumerate(zip(blocks.names, blocks.modules, strict=True)):
        inner = _largest_list(".".join(filter(None, (_path_of_owner(blocks), name))), member)
        lists.append(inner or part_of(blocks, place, place + 1))
    return lists if any(inner.owner is not blocks.owner for inner in lists) else [blocks]


def _path_of_owner(blocks: BlockList) -> str:
    return blocks.path if blocks.holder == "container" else blocks.path.rpartition(".")[0]


def _largest_list(path: str, module: nn.Module) -> BlockList | None:
    """Of the outermost containers of modules with parts in a module, itself among them, that with the most weights.

    None where another has more than half as many: blocks of one kind would be left out.
    """
    lists: list[BlockList] = []
    for name, inner in module.named_modules(prefix=path):
        if _is_container(inner) and not any(name.startswith(f"{other.path}.") for other in lists):
            members = _members(inner)
            if members and all(_has_weights(member) and _has_parts(member) for member in members.values()):
                lists.append(_whole(name, inner))
    lists.sort(key=lambda candidate: weights_of(*candidate.modules), reverse=True)
    first, second = ([weights_of(*candidate.modules) for candidate in lists[:2]] + [0, 0])[:2]
    return lists[0] if lists and 2 * second <= first else None


def rounds_of(model: nn.Module, blocks: BlockList) -> BlockList | None:
    """A list of lists as the rounds of a loop in the forward of the module that has it; None for any other list."""
    path, _, _ = blocks.path.rpartition(".")
    members, owner = blocks.owner, model.get_submodule(path) if blocks.holder == "container" else model
    if not isinstance(members, nn.ModuleList) or members not in owner.children() or len(members) != len(blocks.modules):
        return None
    if not all(isinstance(member, nn.ModuleList | nn.ModuleDict) for member in members):
        return None
    loop = Loop(owner, members)
    return replace(blocks, owner=owner, modules=loop.blocks, loop=loop)


def stated_depths(model: nn.Module) -> set[int]:
    """Every depth that the config or one of its sub-configs (a CLIP has two towers) states."""
    config = getattr(model, "config", None)
    if config is None:
        return set()
    configs = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    entries = [item for config in configs for item in vars(config).items()]
    # an entry may have another name of its own, by which transformers finds it
    entries += [(name, getattr(config, name, None)) for config in configs for name in DEPTH_NAMES]
    return {depth for name, depth in entries if type(depth) is int and _DEPTH.fullmatch(name)}


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)


def _members(container: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in container._modules.items() if child is not None}


def _whole(path: str, container: nn.Module, rank: int = 1) -> BlockList:
    members = _members(container)
    if not any(next(member.children(), None) is not None for member in members.values()):
        rank = 4
    return BlockList(path=path, owner=container, names=tuple(members), modules=tuple(members.values()), rank=rank)


def _in_container(path: str, container: nn.Module) -> Iterator[BlockList]:
    """The list that a container is; of one that holds other things, too, the runs of like blocks in it."""
    members = _members(container)
    kinds = {type(member) for member in members.values()}
    if not any(_has_weights(member) for member in members.values()):
        return
    if len(kinds) == 1:
        yield _whole(path, container)
    elif isinstance(container, nn.ModuleList):
        yield _whole(path, container, rank=2)
    for _, run in groupby(members.items(), lambda item: type(item[1])) if len(kinds) > 1 else ():
        names, modules = zip(*run, strict=True)
        if len(names) > 1 and _is_composed(modules[0]):
            where = ".".join(filter(None, (path, f"[{names[0]}:{int(names[-1]) + 1}]" if names[0].isdigit() else "")))
            yield BlockList(path=where, owner=container, names=names, modules=modules, rank=3)


def _in_attributes(path: str, module: nn.Module) -> Iterator[BlockList]:
    """Blocks in attributes that differ in their number alone, and in plain lists, which torch does not see."""
    prefix = f"{path}." if path else ""
    numbered: dict[tuple[str, type], dict[str, nn.Module]] = {}
    for name, child in module.named_children():
        if (match := re.fullmatch(r"(.*?)\d+", name)) and _is_composed(child):
            numbered.setdefault((match[1], type(child)), {})[name] = child
    for (stem, _), members in numbered.items():
        if len(members) > 1:
            yield _attributes(f"{prefix}{stem}*", module, members)
    for name, value in vars(module).items():
        if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(item, nn.Module) for item in value):
            yield BlockList(
                path=f"{prefix}{name}", owner=module, names=(name,), modules=tuple(value), holder="list", rank=3
            )


def _attributes(path: str, owner: nn.Module, members: Mapping[str, nn.Module]) -> BlockList:
    names, modules = tuple(members), tuple(members.values())
    return BlockList(path=path, owner=owner, names=names, modules=modules, holder="attributes", rank=3)


def shared_block(path: str, owner: nn.Module, name: str, module: nn.Module) -> BlockList:
    """The list of a single module that a forward calls at several depths, by its attribute."""
    return _attributes(path, owner, {name: module})


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_composed(module: nn.Module) -> bool:
    """Whether a module is made of others and has weights, as blocks are, and is no container of them."""
    return _has_weights(module) and _has_parts(module) and not _is_container(module)
