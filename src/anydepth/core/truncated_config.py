"""Finds the config of a model with fewer blocks, by building the model's class from candidates.

There is no table of architectures: which entry of a config states the number of blocks, and which have a value for each
block, is tried out. A config fits if the model built from it, without memory for weights, has the names and shapes of
the cut model's weights and the settings of its blocks.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.blocks import DEPTH_NAMES
from anydepth.errors import TruncationError, one_line

Value = int | str | list[Any] | tuple[Any, ...] | dict[Any, Any] | None

# Names of entries that count blocks, or have a value for each of them, contain one of these.
_BY_BLOCK = re.compile(r"layer|block|depth|window|pattern|pruned_heads")
_BUILDS = 200  # configs tried at most
# Settings of a module that may differ between a cut model and a new one of its class without changing any answer.
_WITHOUT_EFFECT = re.compile(r"^_|drop|training|checkpointing|name_or_path")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change to one entry of a config.

    Attributes:
        path: attribute names from the model's config to the sub-config that has the entry; empty for its own.
        name: of the entry.
        value: the new one.
        guessed: whether the change is suggested by the entry's value alone.
    """

    path: tuple[str, ...]
    name: str
    value: Value
    guessed: bool = False

    def __str__(self) -> str:
        return ".".join((*self.path, self.name))

    def apply(self, config: Any) -> None:
        """Make the change in a model's config."""
        for name in self.path:
            config = getattr(config, name)
        # past properties and attribute maps: the entry itself is saved
        vars(config)[self.name] = self.value


@dataclass(frozen=True, kw_only=True)
class CutModel:
    """A model of transformers whose list of blocks was cut short, with its old config: a new one is sought for it.

    Attributes:
        path: the dotted name of the list.
        before: number of its blocks before the cut.
        now: number of them.
        in_stages: whether other lists ran before it, so that a config may count the blocks of each (Swin's `depths`).
        settings: whether the settings of its blocks must be the same.
    """

    cut: nn.Module
    path: str
    before: int
    now: int
    in_stages: bool = False
    settings: bool = True


def shallower_config(target: CutModel, *, seen: bool = False) -> tuple[Any, str]:
    """A new config from which the class of a cut model builds that model, and what it builds differently, in words.

    Args:
        target: the cut model.
        seen: whether the answers will be compared: then a setting of a block may differ (which of Gemma-3n's blocks
            keeps keys for later ones).

    Raises:
        TruncationError: no config that was tried fits; the message says what is wrong with the first.
    """
    first: str | None = None
    cut, now = target.cut, target.now
    for settings in (True, False) if seen else (True,):
        target = replace(target, settings=settings)
        for edits in itertools.islice(_candidates(target), _BUILDS):
            wrong = _wrong_with(target, edits)
            if wrong is None:
                edits = _needed(target, edits)
                return edited(cut.config, edits), _wrong_with(replace(target, settings=True), edits) or ""
            first = first or f"with {', '.join(map(str, edits)) or 'no entry'} for {now} blocks: {wrong}"
    _require_read_back(cut)
    raise TruncationError(
        f"{type(cut).__name__} cut after block {now} of {target.before} could not be loaded again, its config cannot "
        f"say so ({first}); cut it after another block" + ("" if seen else ", or give a batch to see what it answers")
    )


def _wrong_with(target: CutModel, edits: tuple[Edit, ...]) -> str | None:
    """The first difference of the model built from an edited config, in words; None if it fits."""
    try:
        return _difference(target, built(target.cut, edited(target.cut.config, edits)))
    except Exception as error:  # whatever a config's checks and a constructor raise
        return one_line(error)


def _needed(target: CutModel, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Edits without unnecessary guesses: a list may have as many entries as the model has blocks by chance."""
    for edit in edits:
        rest = tuple(other for other in edits if other is not edit)
        if edit.guessed and _wrong_with(target, rest) is None:
            edits = rest
    return edits


def likeliest_config(target: CutModel) -> Any:
    """The first candidate config that passes its own checks, for a model that its class would not build.

    Raises:
        TruncationError: none does.
    """
    cut = target.cut
    first: str | None = None
    others = {"encoder", "decoder"} - set(re.split(r"[._]", target.path))
    candidates = list(itertools.islice(_candidates(target), _BUILDS))
    if len(others) == 1:  # nothing is built that would show a depth of the other side among the entries
        candidates.sort(key=lambda edits: any(edit.name.split("_")[0] in others for edit in edits))
    for edits in candidates:
        try:
            return edited(cut.config, edits)
        except Exception as error:  # whatever a config's checks raise
            first = first or one_line(error)
    _require_read_back(cut)
    raise TruncationError(
        f"{type(cut).__name__} has no config for {target.now} of its {target.before} blocks: {first}; cut it elsewhere"
    )


def _require_read_back(model: nn.Module) -> None:
    """Raise `TruncationError` if a model's own config cannot be read back from what it saves: no cut's could."""
    try:
        edited(model.config, ())
    except Exception as error:  # whatever a config's checks raise
        raise TruncationError(
            f"{type(model).__name__}'s own config cannot be read back from what it saves ({one_line(error)}): nothing "
            "that is saved of it could be loaded again"
        ) from error


def is_of_its_config(model: nn.Module) -> bool:
    """Whether a model has the weights that its class builds from its config: it was neither changed nor quantized."""
    try:
        return _weights_differ(model.state_dict(), built(model, edited(model.config, ())).state_dict(), (1, 1)) is None
    except Exception:  # whatever a config's checks and a constructor raise
        return False


def edited(config: Any, edits: tuple[Edit, ...]) -> Any:
    """A copy of a config with some entries changed, saved to JSON and read back."""
    changed = copy.deepcopy(config)
    for edit in edits:
        edit.apply(changed)
    read = type(config).from_dict(json.loads(changed.to_json_string()))
    read._attn_implementation = _attention(config)  # the one setting that is never saved
    return read


def _attention(config: Any) -> dict[str, Any]:
    """The kind of attention of a config, under "", and of each of its sub-configs: a backbone may have another."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    own = {"": config._attn_implementation}
    return own | {name: _attention(part) for name, part in parts.items() if hasattr(part, "sub_configs")}


def built(model: nn.Module, config: Any) -> nn.Module:
    """A model of the same class from a config, without memory for its weights."""
    with torch.device("meta"):
        return type(model)(config)


def packed(before: Mapping[str, Tensor], like: Mapping[str, Tensor], blocks: tuple[int, int]) -> dict[str, Tensor]:
    """Weights that hold a slice for each block, narrowed to the slices of the first blocks.

    Args:
        before: all weights of the deeper model.
        like: those of the shallower one, for their shapes.
        blocks: how many blocks the two have.
    """
    narrowed = {}
    for name, weight in like.items():
        axis = _packed_axis(before[name].shape, weight.shape, *blocks) if name in before else None
        if axis is not None:
            narrowed[name] = before[name].narrow(axis, 0, weight.shape[axis]).clone()
    return narrowed


def _packed_axis(before: torch.Size, now: torch.Size, deep: int, shallow: int) -> int | None:
    """The axis along which a weight holds a slice for each block; None if there is none."""
    if len(before) != len(now):
        return None
    axes = [axis for axis in range(len(now)) if before[axis] != now[axis]]
    return axes[0] if len(axes) == 1 and before[axes[0]] * shallow == now[axes[0]] * deep else None


# --- candidates -------------------------------------------------------------------------------------------------------


def _candidates(target: CutModel) -> Iterator[tuple[Edit, ...]]:
    """Sets of edits, the likeliest first: for each (sub-)config, its depth and its entries by block."""
    for path, config in _tree(target.cut.config, target.path):
        counts = _counts_by_stage(config, target) if target.in_stages else {}
        for size in range(len(counts), 0, -1):
            for names in itertools.combinations(counts, size):
                yield tuple(Edit(path=path, name=name, value=counts[name]) for name in names)
        for depths in _depth_entries(config, target.before):
            sure, guesses = _by_block(config, target, depths)
            likely: dict[str, Value] = {**dict.fromkeys(depths, target.now), **sure}
            for chosen in _choices(guesses):
                entries = likely | {name: guesses[name] for name in chosen}
                if entries:
                    yield tuple(
                        Edit(path=path, name=name, value=value, guessed=name in chosen)
                        for name, value in entries.items()
                    )
            if sure and depths:  # a list of layers may be of others: RT-DETR's of the levels that it encodes
                yield tuple(Edit(path=path, name=name, value=target.now, guessed=False) for name in depths)


def _counts_by_stage(config: Any, target: CutModel) -> dict[str, Value]:
    """New values of entries that count the blocks of each stage, the last of which was cut."""
    return {
        name: type(value)((*value[:-1], target.now))
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and value and value[-1] == target.before and _BY_BLOCK.search(name)
    }


def _choices(guesses: Mapping[str, Value]) -> Iterator[tuple[str, ...]]:
    """Sets of guesses to apply: none, all lists, all, then one or two."""
    yield ()
    yield tuple(name for name, value in guesses.items() if not isinstance(value, int))
    yield tuple(guesses)
    for count in (1, 2):
        yield from itertools.combinations(guesses, count)


def _tree(config: Any, path: str) -> list[tuple[tuple[str, ...], Any]]:
    """A config and its sub-configs; first those whose name shares a word with the path of the blocks."""
    listed: list[tuple[tuple[str, ...], Any]] = [((), config)]
    words = set(re.split(r"[._]", path))
    for at, parent in listed:
        listed += [((*at, name), value) for name, value in vars(parent).items() if hasattr(value, "to_dict")]
    return sorted(listed, key=lambda item: -len(words & set("_".join(item[0]).split("_"))))


def _depth_entries(config: Any, before: int) -> Iterator[tuple[str, ...]]:
    """Sets of entries that may state the depth: those with a usual name, then the others, the largest sets first."""
    stated = [
        name
        for name, value in vars(config).items()
        if type(value) is int and value == before and re.search("layer|block|depth", name)
    ]
    usual = [name for name in stated if name in DEPTH_NAMES]
    others = [name for name in stated if name not in DEPTH_NAMES]
    for names in (usual, others, stated):
        for count in range(len(names), 0, -1):
            yield from itertools.combinations(names, count)
    yield ()


def _by_block(config: Any, target: CutModel, depths: tuple[str, ...]) -> tuple[dict[str, Value], dict[str, Value]]:
    """New values of entries that have one value by block: those certain by their names, and guesses."""
    sure: dict[str, Value] = {}
    guesses: dict[str, Value] = {}
    for name, value in vars(config).items():
        if name in depths or name.startswith("_"):
            continue
        named = _BY_BLOCK.search(name) is not None
        fewer = _fewer(value, target.before, target.now, named=named)
        if fewer != value:
            # a number seldom counts blocks from the end, as that of Gemma-3n's blocks which share keys does
            (sure if named and not isinstance(value, int) else guesses)[name] = fewer
    return sure | _stages(config, target.before, target.now), guesses


def _fewer(value: Any, before: int, now: int, *, named: bool) -> Any:
    """The value for fewer blocks of a list by block, a list of indices, a dict by index, or a count from the end."""
    if isinstance(value, list | tuple | str) and len(value) == before:
        return value[:now]
    if not named:
        return value
    if isinstance(value, list | tuple) and value and all(type(index) is int and 0 <= index < before for index in value):
        return type(value)(index for index in value if index < now)
    if isinstance(value, dict) and value and all(re.fullmatch(r"\d+", str(key)) for key in value):
        return {key: entry for key, entry in value.items() if int(key) < now}
    if type(value) is int and 0 < value <= before:
        return max(0, value - (before - now))
    return value


def _stages(config: Any, before: int, now: int) -> dict[str, Value]:
    """Entries of a backbone: the names of its stages, and which of them it outputs."""
    stages = getattr(config, "stage_names", None)
    if not stages or len(stages) != before + 1:
        return {}
    kept = [name for name in config.out_features or () if name in stages[: now + 1]] or [stages[now]]
    indices = [stages.index(name) for name in kept]
    return {"stage_names": stages[: now + 1], "_out_features": kept, "_out_indices": indices}


# --- their check ------------------------------------------------------------------------------------------------------


def _difference(target: CutModel, model: nn.Module) -> str | None:
    """The first difference of a built model from the cut one, in words; None if there is none."""
    own, theirs = target.cut.state_dict(), model.state_dict()
    wrong = _weights_differ(own, theirs, (target.before, target.now))
    if wrong or not target.settings:
        return wrong
    blocks = model.get_submodule(target.path)
    for name, module in target.cut.get_submodule(target.path).named_modules():
        before, now = plain_settings(module), plain_settings(blocks.get_submodule(name))
        for setting in before:
            if setting in now and before[setting] != now[setting]:
                return f"its {setting} of block {name} is {now[setting]!r:.40}, the model's {before[setting]!r:.40}"
    return None


def _weights_differ(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], blocks: tuple[int, int]) -> str | None:
    if wrong := sorted(own.keys() ^ theirs.keys()):
        return f"it has {'no ' if wrong[0] in own else 'a '}{wrong[0]}"
    for name, weight in own.items():
        shape = theirs[name].shape
        if weight.shape != shape and _packed_axis(weight.shape, shape, *blocks) is None:
            return f"its {name} is {tuple(shape)}, the model's {tuple(weight.shape)}"
    return None


def plain_settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module that may affect its answers."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | list | tuple | None) and not _WITHOUT_EFFECT.search(name)
    }
