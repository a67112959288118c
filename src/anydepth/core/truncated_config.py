"""The config of a model with fewer blocks, found by building the model's class from it.

No table of architectures: which entry of a config states the depth of a list of blocks, and which have an entry for
each block, is tried out. A config is right if the class, built from it without memory for weights, has the very weights
and the very blocks of the cut model.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.blocks import DEPTH_NAMES
from anydepth.errors import TruncationError, one_line

Value = int | str | list[Any] | tuple[Any, ...] | dict[Any, Any] | None

# What the names of entries that count blocks, or have something for each of them, have in common.
_BY_BLOCK = re.compile(r"layer|block|depth|window|pattern|pruned_heads")
_BUILDS = 200  # configs tried at most
# Of a module: what may differ between a cut model and a new one of its class without changing any answer.
_WITHOUT_EFFECT = re.compile(r"^_|drop|training|checkpointing|name_or_path")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change to one entry of a config.

    Attributes:
        path: the names that lead from the model's config to the one that has the entry; empty for its own.
        name: of the entry.
        value: the new one.
        guessed: whether nothing but its value speaks for the change.
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
        # past properties and attribute maps: it is the entry itself that is saved
        vars(config)[self.name] = self.value


@dataclass(frozen=True, kw_only=True)
class _Question:
    """Which config gives a model that was cut."""

    cut: nn.Module
    path: str
    before: int
    now: int
    settings: bool = True
    """Whether the blocks must have the same settings, too."""


def shallower_config(cut: nn.Module, path: str, before: int, now: int, *, seen: bool = False) -> Any:
    """The config from which the class of a cut model builds that very model.

    Args:
        cut: a model of transformers whose list of blocks has been cut short, its config still the old one.
        path: the dotted name of the list.
        before: how many blocks there were.
        now: how many there are.
        seen: whether it will be seen that the model answers alike: then a setting of a block may differ if it must
            (which of Gemma-3n's blocks keeps keys for those behind it).

    Returns:
        A new config, as it would be read back from its file.

    Raises:
        TruncationError: no config that was tried does it; the message says what is wrong with the likeliest.
    """
    first: str | None = None
    for settings in (True, False) if seen else (True,):
        question = _Question(cut=cut, path=path, before=before, now=now, settings=settings)
        for edits in itertools.islice(_candidates(question), _BUILDS):
            wrong = _wrong_with(question, edits)
            if wrong is None:
                return edited(cut.config, _needed(question, edits))
            first = first or f"with {', '.join(map(str, edits)) or 'no entry'} for {now} blocks: {wrong}"
    raise TruncationError(
        f"{type(cut).__name__} cut after block {now} of {before} could not be loaded again, its config cannot say so "
        f"({first}); cut it after another block" + ("" if seen else ", or give a batch to see what it answers")
    )


def _wrong_with(question: _Question, edits: tuple[Edit, ...]) -> str | None:
    """What is wrong with the model that a config gives with some edits, in words; None if nothing."""
    try:
        return _difference(question, built(question.cut, edited(question.cut.config, edits)))
    except Exception as error:  # whatever a config's checks and a constructor raise
        return one_line(error)


def _needed(question: _Question, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Edits without those guesses that nothing depends on: a list may be as long as the model is deep by chance."""
    for edit in edits:
        rest = tuple(other for other in edits if other is not edit)
        if edit.guessed and _wrong_with(question, rest) is None:
            edits = rest
    return edits


def likeliest_config(cut: nn.Module, path: str, before: int, now: int) -> Any:
    """The config for fewer blocks where no class can be asked, since the model is not what its class makes.

    Raises:
        TruncationError: none passes its own checks.
    """
    question = _Question(cut=cut, path=path, before=before, now=now)
    first: str | None = None
    for edits in itertools.islice(_candidates(question), _BUILDS):
        try:
            return edited(cut.config, edits)
        except Exception as error:  # whatever a config's checks raise
            first = first or one_line(error)
    raise TruncationError(
        f"{type(cut).__name__} has no config for {now} of its {before} blocks: {first}; cut it elsewhere"
    )


def is_of_its_config(model: nn.Module) -> bool:
    """Whether a model has the weights its class makes from its config: it was not changed after, and not quantized."""
    try:
        return _weights_differ(model.state_dict(), built(model, edited(model.config, ())).state_dict(), (1, 1)) is None
    except Exception:  # whatever a config's checks and a constructor raise
        return False


def edited(config: Any, edits: tuple[Edit, ...]) -> Any:
    """A copy of a config with some entries changed, by way of the text it would be saved as."""
    changed = copy.deepcopy(config)
    for edit in edits:
        edit.apply(changed)
    read = type(config).from_dict(json.loads(changed.to_json_string()))
    # the one setting that is chosen when a model is loaded, and never saved
    read._attn_implementation = config._attn_implementation
    return read


def built(model: nn.Module, config: Any) -> nn.Module:
    """A model of the same class from a config, without memory for its weights."""
    with torch.device("meta"):
        return type(model)(config)


def packed(before: Mapping[str, Tensor], like: Mapping[str, Tensor], blocks: tuple[int, int]) -> dict[str, Tensor]:
    """Weights in which all blocks have a part, one behind the other, with the parts of the first blocks alone.

    Args:
        before: all weights of the deeper model.
        like: those of the shallower one, of which only the shapes are looked at.
        blocks: how many blocks the two have.
    """
    cut = {}
    for name, target in like.items():
        axis = _packed_axis(before[name].shape, target.shape, *blocks) if name in before else None
        if axis is not None:
            cut[name] = before[name].narrow(axis, 0, target.shape[axis]).clone()
    return cut


def _packed_axis(before: torch.Size, now: torch.Size, deep: int, shallow: int) -> int | None:
    """The axis along which a weight holds something for each block; None if there is none."""
    if len(before) != len(now):
        return None
    axes = [axis for axis in range(len(now)) if before[axis] != now[axis]]
    return axes[0] if len(axes) == 1 and before[axes[0]] * shallow == now[axes[0]] * deep else None


# --- what to try ------------------------------------------------------------------------------------------------------


def _candidates(question: _Question) -> Iterator[tuple[Edit, ...]]:
    """Sets of edits, the likeliest first: for each config that may state the depth, what it states and has by block."""
    for path, config in _tree(question.cut.config, question.path):
        for depths in _depth_entries(config, question.before):
            sure, guesses = _by_block(config, question, depths)
            likely: dict[str, Value] = {**dict.fromkeys(depths, question.now), **sure}
            for chosen in _choices(guesses):
                entries = likely | {name: guesses[name] for name in chosen}
                if entries:
                    yield tuple(
                        Edit(path=path, name=name, value=value, guessed=name in chosen)
                        for name, value in entries.items()
                    )


def _choices(guesses: Mapping[str, Value]) -> Iterator[tuple[str, ...]]:
    """Which guesses to take: none, all lists, everything, then a few at a time."""
    yield ()
    yield tuple(name for name, value in guesses.items() if not isinstance(value, int))
    yield tuple(guesses)
    for count in (1, 2):
        yield from itertools.combinations(guesses, count)


def _tree(config: Any, path: str) -> list[tuple[tuple[str, ...], Any]]:
    """A config and those inside it; first those whose name shares a word with the path of the blocks."""
    listed: list[tuple[tuple[str, ...], Any]] = [((), config)]
    words = set(re.split(r"[._]", path))
    for at, parent in listed:
        listed += [((*at, name), value) for name, value in vars(parent).items() if hasattr(value, "to_dict")]
    return sorted(listed, key=lambda each: -len(words & set("_".join(each[0]).split("_"))))


def _depth_entries(config: Any, before: int) -> Iterator[tuple[str, ...]]:
    """Entries that may state the depth, in sets: as many of those with a usual name as can be, then the others."""
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


def _by_block(config: Any, question: _Question, depths: tuple[str, ...]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Entries that are by block, going by their names, and those that may be, as they would be for fewer blocks."""
    sure: dict[str, Value] = {}
    guesses: dict[str, Value] = {}
    for name, value in vars(config).items():
        if name in depths or name.startswith("_"):
            continue
        named = _BY_BLOCK.search(name) is not None
        fewer = _fewer(value, question.before, question.now, named=named)
        if fewer != value:
            # a number seldom counts blocks from the end, as that of Gemma-3n's blocks which share keys does
            (sure if named and not isinstance(value, int) else guesses)[name] = fewer
    return sure | _stages(config, question.before, question.now), guesses


def _fewer(value: Any, before: int, now: int, *, named: bool) -> Any:
    """An entry for each block, an index of blocks, or a count of them from the end, for fewer blocks."""
    if isinstance(value, list | tuple | str) and len(value) == before:
        return value[:now]
    if not named:
        return value
    if isinstance(value, list | tuple) and value and all(type(one) is int and 0 <= one < before for one in value):
        return type(value)(one for one in value if one < now)
    if isinstance(value, dict) and value and all(re.fullmatch(r"\d+", str(key)) for key in value):
        return {key: entry for key, entry in value.items() if int(key) < now}
    if type(value) is int and 0 < value <= before:
        return max(0, value - (before - now))
    return value


def _stages(config: Any, before: int, now: int) -> dict[str, Value]:
    """A backbone's names of its states, and which of them it gives."""
    stages = getattr(config, "stage_names", None)
    if not stages or len(stages) != before + 1:
        return {}
    kept = [name for name in config.out_features or () if name in stages[: now + 1]] or [stages[now]]
    indices = [stages.index(name) for name in kept]
    return {"stage_names": stages[: now + 1], "_out_features": kept, "_out_indices": indices}


# --- what comes of it -------------------------------------------------------------------------------------------------


def _difference(question: _Question, model: nn.Module) -> str | None:
    """What a model built from a config has other than the cut one, in words; None if nothing."""
    own, theirs = question.cut.state_dict(), model.state_dict()
    wrong = _weights_differ(own, theirs, (question.before, question.now))
    if wrong or not question.settings:
        return wrong
    blocks = model.get_submodule(question.path)
    for name, module in question.cut.get_submodule(question.path).named_modules():
        before, now = plain_settings(module), plain_settings(blocks.get_submodule(name))
        for setting in before.keys() & now.keys():
            if before[setting] != now[setting]:
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
    """The plain values that a module keeps beside its weights, but for those that only matter in training."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | list | tuple | None) and not _WITHOUT_EFFECT.search(name)
    }
