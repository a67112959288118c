"""What anydepth is held against: the untouched model, watched and led by forward hooks alone.

Nothing here calls anydepth. Hidden states are what hooks see of a plain forward; the readout at depth k is the model's
answer when a hook replaces the last block's output by h[k], with all blocks running; which axis holds the samples is
known because nothing else in a batch is as long as there are samples.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ANSWERS = (
    "logits",
    "logits_per_image",
    "image_embeds",
    "text_embeds",
    "sentence_embedding",
    "pooler_output",
    "last_hidden_state",
)


def run(model: nn.Module, batch: Any, **more: Any) -> Any:
    by_name = isinstance(batch, Mapping) and not isinstance(model, nn.Sequential)  # which takes one argument
    with torch.no_grad():
        return model(**batch, **more) if by_name else model(copy.copy(batch), **more)


def answer_of(output: Any) -> Tensor:
    """The logits, or what a model without logits answers with."""
    if isinstance(output, Tensor):
        return output
    named = dict(output) if isinstance(output, Mapping) else {}
    for name in ANSWERS:
        if isinstance(named.get(name), Tensor):
            return named[name]
    values = named.values() if named else output
    return next(value for value in values if isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point())


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to b's largest entry; infinite between shapes."""
    if a.shape != b.shape:
        return float("inf")
    agree = (a == b) | (a.isnan() & b.isnan())
    if agree.all():
        return 0.0
    finite = b[b.isfinite()].abs()
    scale = max(float(finite.max()), 1e-6) if finite.numel() else 1.0
    return float((a - b).double().masked_fill(agree, 0.0).abs().max() / scale)


class UnseenBlocks(Exception):
    """The reference cannot see what blocks do."""


# --- states and readouts by hooks -------------------------------------------------------------------------------------


def _first(output: Any) -> Any:
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return output[0] if isinstance(output, tuple | list) and output else output


def _with_first(output: Any, state: Tensor) -> Any:
    if isinstance(output, Mapping):
        return {**output, next(iter(output)): state}
    return (state, *output[1:]) if isinstance(output, tuple | list) else state


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's encoder would leave out hooks, and nest its tensors
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for handle in handles:
            handle.remove()


def states(model: nn.Module, blocks: Sequence[nn.Module], batch: Any) -> list[Tensor]:
    """h[0..L] of one plain forward."""
    kept: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        value = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        if not kept:
            kept.append(value.detach().clone())

    def after(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(_first(output).detach().clone())

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in dict.fromkeys(blocks)]
    with _hooks(handles):
        run(model, batch)
    if not kept:
        raise UnseenBlocks("its forward calls its blocks past their hooks, by which they would be seen")
    return kept


def cut_answer(model: nn.Module, path: str, depth: int, batch: Any) -> Tensor:
    """The model's answer when the list of its blocks ends after `depth` of them."""
    blocks = model.get_submodule(path)
    whole = dict(blocks._modules)
    blocks._modules = {name: block for name, block in list(whole.items())[:depth]}
    try:
        return answer_of(run(model, batch))
    finally:
        blocks._modules = whole


def readout(model: nn.Module, blocks: Sequence[nn.Module], batch: Any, state: Tensor) -> Tensor:
    """The model's answer when its last block answers with this state."""
    remaining = [sum(block is blocks[-1] for block in blocks)]  # calls of that module until the last

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        remaining[0] -= 1
        return output if remaining[0] else _with_first(output, state.clone())

    handle = blocks[-1].register_forward_hook(replace)
    with _hooks([handle]):
        return answer_of(run(model, batch))


# --- blocks that are lists of parts, by hooks on the parts ------------------------------------------------------------


def is_list_of_lists(model: nn.Module, path: str) -> bool:
    """Whether a list's members are lists, whose parts a forward calls itself."""
    members = dict(model.named_modules()).get(path)
    return isinstance(members, nn.ModuleList) and all(isinstance(member, nn.ModuleList) for member in members)


def round_states(model: nn.Module, path: str, batch: Any) -> list[Tensor]:
    """h[0..L]: what the first part of each member is given, and what comes after the last part of all."""
    owner, members = model.get_submodule(path.rpartition(".")[0]), list(model.get_submodule(path))
    place = {id(part): number for number, member in enumerate(members) for part in member.modules()}
    kept: dict[int, Tensor] = {}

    def after(_: nn.Module, __: Any, output: Any) -> None:
        kept.setdefault(len(members), _first(output).detach().clone())

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        number = place.get(id(module), len(members) if len(kept) == len(members) else -1)
        if number >= 0:
            kept.setdefault(number, (args[0] if args else next(iter(kwargs.values()))).detach().clone())

    inside = [part for part in owner.modules() if (part is not owner and id(part) in place) or part in owner.children()]
    handles = [part.register_forward_pre_hook(before, with_kwargs=True) for part in inside]
    with _hooks([*handles, owner.register_forward_hook(after)]):
        run(model, batch)
    return [kept[number] for number in range(len(members) + 1)]


def round_readout(model: nn.Module, path: str, batch: Any, state: Tensor) -> Tensor:
    """The model's answer when what comes after the last part of all is given this state."""
    owner = model.get_submodule(path.rpartition(".")[0])
    members = model.get_submodule(path)
    parts = {id(part) for part in members.modules()}
    last = {id(part) for part in members[-1].modules()}
    reached, given = [False], [False]

    def before(module: nn.Module, args: Any) -> Any:
        reached[0] = reached[0] or id(module) in last
        if reached[0] and id(module) not in parts and not given[0]:
            given[0] = True
            return (state.clone(), *args[1:])
        return None

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return output if given[0] else _with_first(output, state.clone())

    inside = [part for part in owner.modules() if id(part) in parts or part in owner.children()]
    handles = [part.register_forward_pre_hook(before) for part in inside]
    with _hooks([*handles, owner.register_forward_hook(after)]):
        return answer_of(run(model, batch))


def joins_samples(model: nn.Module, batch: Any, samples: int) -> bool:
    """Whether the members of some list are given tensors whose first axis holds several entries of every sample."""
    shapes: list[torch.Size] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        shapes.extend(
            value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1
        )

    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    first = [member for module in lists for member in list(module)[:1] if member is not None]
    with _hooks([member.register_forward_pre_hook(before, with_kwargs=True) for member in first]):
        run(model, batch)
    return any(shape[0] > samples and shape[0] % samples == 0 and samples not in shape for shape in shapes)


def changes_shape(model: nn.Module, batch: Any) -> bool:
    """Whether a module that holds others gives a grid of another size than it is given."""
    changed: list[bool] = []

    def after(_: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].ndim == output.ndim == 4:
            changed.append(args[0].shape[1:] != output.shape[1:])

    inner = [module for module in model.modules() if next(module.children(), None) is not None and module is not model]
    with _hooks([module.register_forward_hook(after) for module in inner]):
        run(model, batch)
    return sum(changed) > 1


def looks_ahead(model: nn.Module, batch: Any) -> bool:
    """Whether one more token changes the answers at the positions before it."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        return False
    tokens = batch["input_ids"][:1].clone()
    plain = answer_of(run(model, {"input_ids": tokens}))
    longer = answer_of(run(model, {"input_ids": torch.cat([tokens, tokens[:, -1:]], dim=1)}))
    return plain.ndim == 3 and distance(longer[:, :-1], plain) > 1e-5


def has_tensors_of_other_lengths(batch: Any, samples: int) -> bool:
    """Whether a tensor of a batch has not one entry for each sample in front."""
    values = batch.values() if isinstance(batch, Mapping) else ()
    return any(isinstance(value, Tensor) and len(value) != samples for value in values)


def gives_lists(model: nn.Module, batch: Any) -> bool:
    """Whether the members of some list are given lists of states."""
    given: list[bool] = []

    def before(_: nn.Module, args: Any) -> None:
        given.append(bool(args) and isinstance(args[0], list | tuple))

    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential) and len(module))
    last = [member for module in lists for member in list(module)[-1:] if member is not None]
    with _hooks([member.register_forward_pre_hook(before) for member in last]):
        run(model, batch)
    return any(given)


def changes_between(model: nn.Module, blocks: Sequence[nn.Module], batch: Any) -> bool:
    """Whether the forward changes a state between two blocks: what one is given is not what the one before answered."""
    given, answered = [], []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append((args[0] if args else next(iter(kwargs.values()))).detach().clone())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in dict.fromkeys(blocks)]
    handles += [
        block.register_forward_hook(lambda _, __, output: answered.append(_first(output).detach().clone()))
        for block in dict.fromkeys(blocks)
    ]
    with _hooks(handles):
        run(model, batch)
    return any(a.shape != b.shape or distance(a, b) > 0 for a, b in zip(given[1:], answered, strict=False))


def has_lists_of_lists(model: nn.Module) -> bool:
    """Whether a list's members are lists, whose parts a forward must call itself."""
    return any(
        isinstance(module, nn.ModuleList)
        and len(module) > 0
        and all(isinstance(member, nn.ModuleList) for member in module)
        for module in model.modules()
    )


def answers_otherwise_uncached(model: nn.Module, batch: Any) -> bool:
    """Whether the answer to a whole batch is another with `use_cache=False`, where the model takes that."""
    if not isinstance(batch, dict) or "use_cache" not in inspect.signature(model.forward).parameters:
        return False
    return distance(answer_of(run(model, {**batch, "use_cache": False})), answer_of(run(model, batch))) > 1e-5


def cache_disagrees(model: nn.Module, batch: Any) -> bool:
    """Whether a text read token by token with the model's own cache gets another answer than as a whole."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch or not getattr(model, "can_generate", bool)():
        return False
    tokens, cache = batch["input_ids"][:1], None
    try:
        for place in range(tokens.shape[1]):
            more = {} if cache is None else {"past_key_values": cache}
            output = run(model, {"input_ids": tokens[:, place : place + 1], "use_cache": True, **more})
            cache = output.past_key_values
        return distance(output.logits[:, -1], answer_of(run(model, {"input_ids": tokens}))[:, -1]) > 1e-5
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it has no such cache, or takes more than tokens
        return False


def differs_when_built(model: nn.Module, path: str, depth: int) -> bool:
    """Whether the model's class, told to have `depth` blocks, builds one of them with other settings."""
    blocks = model.get_submodule(path)
    config = copy.deepcopy(model.config)
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        if getattr(part, "num_hidden_layers", None) == len(blocks):
            part.num_hidden_layers = depth
            for name, value in vars(part).items():
                if isinstance(value, list) and len(value) == len(blocks):
                    setattr(part, name, value[:depth])
    built = type(model)(config).get_submodule(path)
    return any(
        isinstance(value, bool | int | float | str) and vars(own).get(name) != value
        for block, other in zip(blocks, built, strict=False)
        for own, new in zip(block.modules(), other.modules(), strict=True)
        for name, value in vars(new).items()
    )


def aggregates(model: nn.Module, blocks: Sequence[nn.Module], batch: Any) -> bool:
    """Whether the answer depends on more than h[L]: on what earlier blocks gave, past the last one."""
    if len(blocks) < 2:
        return False
    last = states(model, blocks, batch)[-1]

    def disturb(_: nn.Module, __: Any, output: Any) -> Any:
        return _with_first(output, _first(output) + 0.1 * torch.randn_like(_first(output)))

    plain = readout(model, blocks, batch, last)
    handle = blocks[0].register_forward_hook(disturb)
    try:
        disturbed = readout(model, blocks, batch, last)
    finally:
        handle.remove()
    return distance(disturbed, plain) > 1e-5


def hidden_states(model: nn.Module, batch: Any) -> list[tuple[Tensor, ...]]:
    """Every tuple of hidden states that the model itself offers, of all its stacks."""
    if "config" not in vars(model) and not hasattr(model, "config"):
        return []
    try:
        output = run(model, batch, output_hidden_states=True)
    except Exception:  # the model does not offer them
        return []
    return [states for states in _tuples(output) if all(isinstance(state, Tensor) for state in states)]


def _tuples(output: Any) -> Iterator[tuple[Tensor, ...]]:
    if isinstance(output, Mapping):
        for name, value in output.items():
            if name.endswith("hidden_states") and isinstance(value, tuple):
                yield value
            elif isinstance(value, Mapping):
                yield from _tuples(value)


def has_own_cache(model: nn.Module, batch: Any) -> bool:
    """Whether the model returns another cache than transformers' usual one of keys and values, or none."""
    if not getattr(model, "can_generate", lambda: False)():
        return False
    if not {"cache", "past_key_values"} & set(inspect.signature(model.forward).parameters):
        return True
    try:
        cache = getattr(run(model, batch, use_cache=True), "past_key_values", None)
    except Exception:  # the model has no such argument
        return True
    layers = getattr(cache, "layers", None)
    usual = ("DynamicLayer", "DynamicSlidingWindowLayer")
    return type(cache).__name__ != "DynamicCache" or any(type(layer).__name__ not in usual for layer in layers or ())


def cache_layers(model: Any) -> int | None:
    """How many layers the cache has that transformers makes for a model; None if it makes none."""
    from transformers import DynamicCache

    try:
        return len(DynamicCache(config=model.config.get_text_config(decoder=True)).layers)
    except Exception:  # a config that says nothing of caches
        return None


# --- which rows a trace must have -------------------------------------------------------------------------------------


def standard(state: Tensor, samples: int, shape: Sequence[int], *, grid: bool = False, choices: int = 1) -> Tensor:
    """The state with samples in front and positions in one axis, in whichever order gives that shape.

    Args:
        state: as the model has it.
        samples: B.
        shape: of the standard state.
        grid: whether the features of a state with four axes come before its grid, where either order gives that shape.
        choices: how many rows of positions a sample has, one after the other.
    """
    if choices > 1:
        return _of_rows(state.movedim(state.shape.index(samples * choices), 0), samples, shape[-1])
    for axis in (axis for axis, length in enumerate(state.shape) if length == samples):
        moved = state.movedim(axis, 0)
        if moved.ndim > 3:
            orders = [moved.flatten(1, -2), moved.movedim(1, -1).flatten(1, -2)][:: -1 if grid else 1]
        else:
            orders = [moved] if moved.ndim < 3 else [moved, moved.transpose(1, 2)]
        for order in orders:
            if tuple(order.shape) == tuple(shape):
                return order
    if state.shape[0] % samples == 0:  # several rows of each sample, as the frames of a video
        return _of_rows(state, samples, shape[-1])
    return state


def _of_rows(state: Tensor, samples: int, width: int) -> Tensor:
    """The state (B, K·T, D) for one of K rows of positions for each sample, one after the other."""
    rows = state if state.shape[-1] == width else state.transpose(1, 2)
    return torch.stack([part.flatten(0, -2) for part in rows.chunk(samples)])


def choices_of(batch: Any) -> int:
    """How many texts each sample has, of which one is to be chosen."""
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return tokens.shape[1] if isinstance(tokens, Tensor) and tokens.ndim == 3 else 1


def mask_for(
    batch: Any, samples: int, length: int, path: str | None = None, *, in_turn: bool = False, shifted: bool = False
) -> Tensor:
    """The positions (B, T) that are no padding.

    Args:
        batch: with masks by name.
        samples: B.
        length: T.
        path: of the list of blocks, whose words say which stack it is; None for the positions of answers, which are
            the decoder's where there is one.
        shifted: whether the decoder is given the encoder's text one place later, as a classifier gives it.
        in_turn: whether streams of a token are an axis of the model's states before that of its positions.
    """
    every = torch.ones(samples, length, dtype=torch.bool)
    words = set() if path is None else set(re.split(r"[._]", path))
    if not isinstance(batch, Mapping) or words & {"vision", "visual", "image"}:
        return every
    decodes = any(name.startswith("decoder_") for name in batch) and ("decoder" in words or "encoder" not in words)
    mask = batch.get("decoder_attention_mask" if decodes else "attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 3 and words:
        mask = torch.cat([mask[:, row] for row in range(mask.shape[1])], dim=1)  # rows of a sample, one after the other
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] > length:
        return every
    if mask.shape[1] < length and "input_ids" not in batch:
        return every  # of a sound: the states are down-sampled
    if mask.shape[1] < length and not words:
        return every
    # several streams a token; those of a decoder that guesses ahead (ProphetNet) come after its tokens, and are of none
    if words and "decoder" not in words and not length % mask.shape[1] and length > 2 * mask.shape[1]:
        streams = length // mask.shape[1]
        return mask.bool().repeat(1, streams) if in_turn else mask.bool().repeat_interleave(streams, dim=1)
    if shifted:
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)
    every[:, : mask.shape[1]] = mask.bool()
    every[:, mask.shape[1] :] = False
    return every


def rows_of(
    state: Tensor, batch: Any, samples: int, policy: str, path: str, *, in_turn: bool = False, shifted: bool = False
) -> np.ndarray | None:
    """The rows (n, D) that stand for a batch under a token policy, in float64; None where they cannot be known."""
    ordered = state
    if len(ordered) != samples or ordered.ndim not in (2, 3):
        return None
    if ordered.ndim == 2:
        ordered = ordered.unsqueeze(1)
    keep = mask_for(batch, samples, ordered.shape[1], path, in_turn=in_turn, shifted=shifted)
    rows = []
    for sample, valid in zip(ordered.double(), keep, strict=True):
        own = sample[valid]
        rows.append({"first": own[:1], "last": own[-1:], "each": own, "mean": own.mean(0, keepdim=True)}[policy])
    return torch.cat(rows).numpy()


def mean_cosines(depths: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K): the mean over rows of the cosine between two depths."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in depths]
    return np.array([[(a * b).sum(1).mean() if a.shape == b.shape else np.nan for b in units] for a in units])


@dataclass(frozen=True)
class Answered:
    """The answers of one batch that count: their sample, position among the valid ones, label, and logits (n, K, C)."""

    sample: np.ndarray
    position: np.ndarray
    label: np.ndarray
    logits: np.ndarray


def answered(readouts: Sequence[Tensor], batch: Any, labels: Tensor | None, samples: int, *, causal: bool) -> Answered:
    """Take one batch's answers apart, one by one."""
    sample, position, label, logits = [], [], [], []
    each = readouts[-1].ndim == 3
    keep = mask_for(batch, samples, readouts[-1].shape[1]) if each else torch.ones(samples, 1, dtype=torch.bool)
    for row in range(samples):
        places = keep[row].nonzero()[:, 0].tolist()
        for rank, place in enumerate(places):
            if each and causal:
                follows = place + 1 < keep.shape[1] and bool(keep[row, place + 1])
                tag = int(batch["input_ids"][row, place + 1]) if follows else -100
            elif labels is None:
                tag = None
            else:
                tag = int(labels[row, place] if each else labels[row])
            if tag == -100:
                continue
            sample.append(row)
            position.append(rank if each else -100)
            label.append(-100 if tag is None else tag)
            logits.append([(at[row, place] if each else at[row]).double().numpy() for at in readouts])
    return Answered(np.array(sample), np.array(position), np.array(label), np.array(logits))


# --- lists of blocks, seen in one forward -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenList:
    """A list of modules whose members ran once each, in order."""

    path: str
    length: int
    last_call: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ForwardStructure:
    """What one forward shows of a model's structure, whatever anydepth makes of it."""

    lists: tuple[SeenList, ...]
    shared: bool
    """Whether a module with weights that holds others ran more than once."""
    stages: bool
    """Whether lists that run one after the other have states of differing shape."""


def watch(model: nn.Module, batch: Any) -> ForwardStructure:
    """Watch one plain forward."""
    calls: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    clock = iter(range(10**9))

    def after(module: nn.Module, _: Any, output: Any) -> None:
        state = _first(output)
        calls.setdefault(id(module), []).append((next(clock), tuple(state.shape) if isinstance(state, Tensor) else ()))

    with _hooks([module.register_forward_hook(after) for module in model.modules()]):
        run(model, batch)
    lists = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        own = [calls.get(id(member), []) for member in module]
        if all(len(call) == 1 for call in own) and own == sorted(own):
            lists.append(SeenList(name, len(own), own[-1][0][0], tuple(call[0][1] for call in own)))
    inner = {
        id(m) for m in model.modules() if next(m.children(), None) is not None and any(True for _ in m.parameters())
    }
    shared = any(len(call) > 1 for key, call in calls.items() if key in inner)
    return ForwardStructure(tuple(lists), shared, _has_stages(lists))


def _has_stages(lists: Sequence[SeenList]) -> bool:
    """Whether blocks of some list, or lists side by side, give states of differing shapes."""
    inside = any(len(set(entry.shapes)) > 1 for entry in lists if all(entry.shapes))
    families: dict[str, set[tuple[int, ...]]] = {}
    for entry in lists:
        family = "".join("#" if part.isdigit() else part for part in entry.path.split("."))
        families.setdefault(family, set()).update(shape for shape in entry.shapes if shape)
    return inside or any(len(shapes) > 1 for shapes in families.values())
