"""The conventions of a forward: how a model is called, where its answer lies, what a block takes and gives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from anydepth.errors import DataError, UnknownArchitecture

Batch: TypeAlias = Mapping[str, Any] | Tensor
"""What the model takes: a dict of tensors, or one tensor. A dict's labels are set aside."""

LABELS = ("labels", "label", "label_ids")
"""Where a batch has the true class of each answer, in order of preference: the names transformers' collators know."""
_SPANS = ("start_positions", "end_positions")  # what models that find an answer in a text take for labels

# Where a model's answer lies in its output, in order of preference.
_ANSWERS = ("logits", "logits_per_image", "image_embeds", "text_embeds", "pooler_output", "last_hidden_state")


def call_model(model: nn.Module, batch: Batch) -> Any:
    """The model on a batch, its labels set aside so that it computes no loss of its own."""
    if isinstance(batch, Mapping):
        return model(**split_labels(batch, model)[0])
    return model(batch)


def split_labels(batch: Mapping[str, Any], model: nn.Module | None = None) -> tuple[dict[str, Any], Any]:
    """What a model takes of a batch, and the labels.

    Args:
        batch: by name.
        model: what only its loss is made of is set aside too, told by the names that transformers' Trainer goes by:
            "label" is in them, or they say where an answer starts and ends in a text. What its forward cannot do
            without is an input, and so are labels of inputs ("input_labels").

    Returns:
        The batch without any of them; and what it has under the first of `LABELS` that is there, else None.

    Example:
        >>> split_labels({"input_ids": [[5, 6]], "label_ids": [1]})
        ({'input_ids': [[5, 6]]}, [1])
    """
    aside = {name for name in batch if name in LABELS or (model is not None and _is_label(name))}
    if aside and model is not None:
        aside -= _required(model)
    labels = next((batch[name] for name in LABELS if name in aside and batch[name] is not None), None)
    return {name: value for name, value in batch.items() if name not in aside}, labels


def _is_label(name: str) -> bool:
    return ("label" in name and not name.startswith("input")) or name in _SPANS


def _required(model: nn.Module) -> set[str]:
    """The arguments that a model's forward has no default for."""
    # while a model is watched, its class has a property in the place of the method: the one below that is its own
    own = next(method for kind in type(model).__mro__ if callable(method := vars(kind).get("forward")))
    parameters = inspect.signature(own).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {one.name for one in parameters if one.default is inspect.Parameter.empty and one.kind not in several}


def model_output(output: Any) -> tuple[str, Tensor]:
    """The name and value of what the model answers with.

    The name is empty for what does not say what it is: a bare tensor, the first of a tuple, or the only one of a
    mapping (or named tuple, or dataclass) that has one value for each sample. A loss is no answer. Of several under
    names that mean nothing here, the first is given with its name.
    """
    if isinstance(output, Tensor):
        return "", output
    named = fields_of(output)
    for name in _ANSWERS:
        if isinstance(named.get(name), Tensor):
            return name, named[name]
    answers = {name: value for name, value in named.items() if isinstance(value, Tensor) and value.ndim > 1}
    if answers:
        name = next(iter(answers))
        return name if len(answers) > 1 else "", answers[name]
    if isinstance(output, tuple | list):
        for value in output:
            if isinstance(value, Tensor) and value.ndim > 1:
                return "", value
    raise UnknownArchitecture(
        f"the model answers with {type(output).__name__}, expected a tensor, or a mapping or tuple that holds one"
    )


def fields_of(output: Any) -> Mapping[str, Any]:
    """What a model answers with by name: a mapping, the fields of a named tuple or a dataclass; nothing of others."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {}


def is_known_answer(name: str) -> bool:
    """Whether the name of an answer says what it is.

    Example:
        >>> is_known_answer("logits"), is_known_answer("start_scores")
        (True, False)
    """
    return name in _ANSWERS


def output_state(output: Any) -> Tensor:
    """The state in what a block answers: all of it, or the first of a tuple."""
    state = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(state, Tensor):
        raise UnknownArchitecture(f"a block answers with {type(output).__name__}, expected its state, or a tuple of it")
    return state


def input_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The state among a block's arguments: its first, or by name."""
    state = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    if not isinstance(state, Tensor):
        raise UnknownArchitecture(f"a block is given {type(state).__name__} first, expected the state as a tensor")
    return state


def call_with(block: nn.Module, state: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A block on its recorded arguments, with another state in the state's place."""
    if args:
        return block(state, *args[1:], **kwargs)
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return block(**{**kwargs, name: state})


def first_samples(batch: Batch, count: int) -> Batch:
    """The first `count` samples of a batch."""
    return samples_of(batch, slice(count))


def samples_of(batch: Batch, which: slice | Tensor) -> Batch:
    """Some samples of a batch: every tensor whose first axis is as long as the first tensor's is cut.

    Args:
        batch: any.
        which: a slice, or the indices of the samples, in any order and as often as wanted.
    """
    if isinstance(batch, Tensor):
        return _rows(batch, which)
    size = sample_count(batch)
    return {
        name: _rows(value, which) if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value
        for name, value in batch.items()
    }


def _rows(values: Tensor, which: slice | Tensor) -> Tensor:
    return values[which.to(values.device) if isinstance(which, Tensor) else which]


def sample_count(batch: Batch) -> int:
    """B: the length of the first tensor's first axis."""
    tensors = [batch] if isinstance(batch, Tensor) else [v for v in batch.values() if isinstance(v, Tensor) and v.ndim]
    if not tensors:
        raise DataError(f"a batch holds no tensor: {sorted(batch)}; expected what the model's forward takes")
    return tensors[0].shape[0]


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for one without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to b's largest entry (at least 1e-6); NaN in the same places is no difference."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.cpu().double(), b.cpu().double()  # on the CPU: MPS has no float64
    agree = (a == b) | (a.isnan() & b.isnan())
    if agree.all():
        return 0.0
    scale = b[b.isfinite()].abs().max().clamp(min=1e-6) if b.isfinite().any() else b.new_tensor(1.0)
    return float((a - b).masked_fill(agree, 0.0).abs().max() / scale)
