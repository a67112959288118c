"""`truncate`: a copy of a model with its first k blocks, of the same class, that answers as `readout(h[k])`.

The later blocks are removed, the config is edited to match, and everything around the blocks stays, so that the copy
loads like the original.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch, adapted_layers, call_model, device_of, distance, model_output, split_batch
from anydepth.core.patching import evaluating, shortened
from anydepth.core.stack import Stack
from anydepth.core.truncated_config import (
    CutModel,
    built,
    is_of_its_config,
    likeliest_config,
    packed,
    plain_settings,
    shallower_config,
)
from anydepth.core.verification import tolerance_of
from anydepth.errors import TruncationError, one_line


def truncate(model: nn.Module | Stack, depth: int, *, blocks: str | None = None, batch: Any = None) -> nn.Module:
    """Copy a model with its first `depth` blocks; `anydepth.truncate` takes names and data, too.

    Args:
        model: from transformers, timm, plain torch, or your own; or a `Stack` of one. Where that has heads, the copy's
            classifier is the head of its depth.
        depth: k, how many blocks to keep, 1..L; of a model in several stages, all of the earlier ones and some of the
            last.
        blocks: the dotted name of the list of blocks, for a model that has several.
        batch: if given, the answers of the copy are compared with `readout(h[k])` on two samples; needed with heads.

    Returns:
        A copy of the same class with k blocks, in the same mode; the model itself is not changed. A model of
        transformers saves and loads by `save_pretrained` and `from_pretrained`, others by their state dict. A module
        with a method `truncated(depth, batch=)`, as that of `zero_shot`, is asked for it.

    Raises:
        TruncationError: a depth that does not exist; adapters that are not merged; heads without a batch; or the copy
            answers differently than the readout.
        UnknownArchitecture: see `Stack`.
    """
    stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
    if callable(truncated := getattr(stack.model, "truncated", None)):
        return truncated(depth, batch=batch)  # type: ignore[no-any-return]
    inputs = None if batch is None else split_batch(batch, stack.model).inputs
    if inputs is not None:
        stack.learn(inputs)
    _require_cuttable(stack, depth)
    heads = stack.heads if depth < stack.depth else None
    if heads is not None and batch is None:
        raise TruncationError("the model has a head for each depth, and a batch shows where it goes: give one")
    # shortened for this thread while it is copied, so that the later blocks are not copied either
    with shortened(stack.block_list, depth - stack.entry):
        cut = copy.deepcopy(stack.model, _without_gradients(stack.model))
    for name in stack.learn(inputs).heads if inputs is not None else ():
        del cut.get_submodule(name)[depth : stack.depth]  # type: ignore[operator]
    inputs = None if inputs is None else stack.few(inputs)
    if heads is not None and inputs is not None:
        _give_head(cut, stack, heads[depth], inputs)
    loaded, difference = _loaded(cut, stack, depth, seen=inputs is not None)
    if inputs is not None:
        built_otherwise = f"built with {depth} of its blocks, {difference}"
        why = built_otherwise if difference else "it keeps a depth outside its config"
        _require_same(stack, cut, depth, inputs, why)
        if loaded is not None:
            _require_same(stack, loaded, depth, inputs, "once saved and loaded again: its config does not tell all")
    return cut


def _without_gradients(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that modules keep of a forward with gradients, which torch does not copy by itself."""
    kept = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(value): value.detach().clone() for value in kept if not value.is_leaf}


def _require_cuttable(stack: Stack, depth: int) -> None:
    """Raise a `TruncationError` unless the blocks are a list of the model's own that can end after block `depth`."""
    if stack.shares_blocks or stack.block_list.holder != "container":
        raise TruncationError(
            f"{type(stack.model).__name__} has no list of blocks to shorten at {stack.path!r}: "
            + ("a depth is a call of a block that several share" if stack.shares_blocks else "its forward names each")
        )
    if not stack.entry < depth <= stack.depth:
        last_stage = f", after a block of its last stage ({stack.block_list.path})" if stack.entry else ""
        raise TruncationError(
            f"depth is {depth}, expected {stack.entry + 1}..{stack.depth} for {type(stack.model).__name__}{last_stage}"
        )
    if _has_adapters(stack.model):
        raise TruncationError(
            f"{type(stack.model).__name__} holds adapters of {stack.depth} blocks: merge them (merge_and_unload) first"
        )


def _has_adapters(model: nn.Module) -> bool:
    """Whether PEFT wraps the model, or a layer of it; a merged model may keep the config of what it had."""
    return type(model).__module__.startswith("peft.") or any(True for _ in adapted_layers(model))


def _give_head(cut: nn.Module, stack: Stack, head: nn.Module, batch: Batch) -> None:
    """Replace the classifier of a cut model by a copy of a head."""
    classifier = stack.classifier(batch)  # before `classifier_path`, which is known after a first batch
    cut.set_submodule(str(stack.classifier_path), copy.deepcopy(head))
    inside = {id(parameter) for parameter in classifier.parameters()}
    others = (module for module in stack.model.modules() if module is not classifier)
    config: Any = getattr(cut, "config", None)
    if config is not None and any(id(weight) in inside for module in others for weight in module._parameters.values()):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False  # the head is no copy of the embedding, and must not become one


# --- config of the cut model ------------------------------------------------------------------------------------------


def _loaded(cut: nn.Module, stack: Stack, depth: int, *, seen: bool) -> tuple[nn.Module | None, str]:
    """The cut model as it will be once saved and loaded; the cut one gets its config.

    Returns:
        A new model that shares the weights of the cut one, and which of its settings differs, in words. None for models
        that no config describes: those of other libraries than transformers, quantized ones, and those that were
        changed after they were built. A model of transformers inside another module is loaded there.

    Raises:
        TruncationError: the class cannot be built with so many blocks, or has other weights then.
    """
    path = _configured(stack)
    if path is None:
        return None, ""
    part, inside = cut.get_submodule(path), stack.model.get_submodule(path)
    loaded, difference = _loaded_part(part, inside, stack, depth, seen=seen)
    if loaded is not None and path:
        return copy.deepcopy(cut, {id(part): loaded}), difference
    return loaded, difference


def _configured(stack: Stack) -> str | None:
    """The path of the outermost model of transformers that holds a stack's blocks; None if there is none."""
    from transformers import PreTrainedModel

    owner = stack.block_list.owner
    models = (item for item in stack.model.named_modules() if isinstance(item[1], PreTrainedModel))
    return next((path for path, model in models if any(part is owner for part in model.modules())), None)


def _loaded_part(
    cut: nn.Module, model: nn.Module, stack: Stack, depth: int, *, seen: bool
) -> tuple[nn.Module | None, str]:
    """`_loaded` of a cut model of transformers, which was `model` before, inside a stack's model or all of it."""
    owner = stack.block_list.owner
    path = next(name for name, module in model.named_modules() if module is owner)
    before = stack.depth
    if stack.entry:  # what its config counts is the list that was cut, with what opens it
        before = len(owner._modules)
        depth += before - stack.depth
    sought = CutModel(cut=cut, path=path, before=before, now=depth, in_stages=bool(stack.entry))
    try:
        config, difference = shallower_config(sought, seen=seen)
    except TruncationError:
        if is_of_its_config(model):
            raise
        _replace_configs(cut, cut.config, likeliest_config(sought))
        return None, ""
    weights = cut.state_dict()
    parts = packed(weights, built(cut, config).state_dict(), (before, depth))
    loaded = _from_pretrained(cut, config, {**weights, **parts})
    _share_settings(cut, loaded, before, depth)
    for name in {name.rpartition(".")[0] for name in parts}:
        cut.set_submodule(name, copy.deepcopy(loaded.get_submodule(name)))
    cut.name_or_path = cut.config.name_or_path = model.config.name_or_path  # type: ignore[union-attr]
    return loaded.to(device_of(cut)), difference


def _share_settings(cut: nn.Module, loaded: nn.Module, before: int, depth: int) -> None:
    """Give a cut model the configs of the loaded one, and the attributes that state its number of blocks."""
    own_buffers = dict(cut.named_buffers())
    for name, buffer in list(loaded.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        if name in own_buffers and own_buffers[name].shape == buffer.shape:
            # buffers that are not saved are new in the loaded model; the cut one's may have been cast
            loaded.get_submodule(parent)._buffers[leaf] = own_buffers[name]
    for name, module in loaded.named_modules():
        own = cut.get_submodule(name)
        if hasattr(module, "config"):
            own.config = module.config
        for setting, value in plain_settings(own).items():
            if value == before and plain_settings(module).get(setting) == depth:
                setattr(own, setting, depth)


def _from_pretrained(cut: Any, config: Any, weights: dict[str, Any]) -> nn.Module:
    """The model that transformers loads from a config and weights, without its messages."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded, report = type(cut).from_pretrained(
            None, config=config, state_dict=weights, dtype=cut.dtype, output_loading_info=True
        )
    except Exception as error:  # of any library below transformers
        raise TruncationError(f"{type(cut).__name__} could not be loaded once cut: {one_line(error)}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if wrong := {kind: sorted(map(str, names)) for kind, names in report.items() if names}:
        raise TruncationError(f"{type(cut).__name__} could not be loaded once cut: {str(wrong)[:200]}")
    return loaded  # type: ignore[no-any-return]


def _replace_configs(model: nn.Module, before: Any, now: Any) -> None:
    """Replace the config, or sub-config, of every part of a model by the new one."""
    pairs = [(before, now)]
    for old, new in pairs:
        pairs += [(value, getattr(new, name)) for name, value in vars(old).items() if hasattr(value, "to_dict")]
    new_of = {id(old): new for old, new in pairs}
    for module in model.modules():
        if id(getattr(module, "config", None)) in new_of:
            module.config = new_of[id(module.config)]


def _require_same(stack: Stack, cut: nn.Module, depth: int, batch: Batch, why: str) -> None:
    with evaluating(stack.model), evaluating(cut), torch.no_grad():
        state = stack.states(batch)[depth]
        expected = stack.readout(state, batch, depth=depth)
        try:
            answer = model_output(call_model(cut, batch))[1]
        except Exception as problem:  # of the model's own code
            raise TruncationError(
                f"{type(cut).__name__} cut after block {depth} does not run ({one_line(problem)}); cut it after another"
            ) from problem
    error, tolerance = distance(answer, expected), tolerance_of(state)
    if not error <= tolerance:
        raise TruncationError(
            f"{type(cut).__name__} cut after block {depth} does not answer as its readout there: largest relative "
            f"difference {error:.2g}, expected at most {tolerance:.0e}; {why}"
        )
