"""Inputs and outputs of a forward: how a model is called, where its logits lie, what a block takes and returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from anydepth.errors import DataError, UnknownArchitecture

Batch: TypeAlias = Mapping[str, Any] | Tensor
"""What the model takes: a dict of tensors, or one tensor. A dict's labels are set aside."""

LABELS = ("labels", "label", "label_ids")
"""Where a batch has the true class of each answer, in order of preference: the names transformers' collators know."""
FEW_POSITIONS = 16
"""How many positions of a causal language model's text show what the model is."""
_COMPARED = 2**20  # entries that are compared at a time, on the CPU: MPS has no float64
_SPANS = ("start_positions", "end_positions")  # what models that find an answer in a text take for labels

# Where a model's answer lies in its output, in order of preference.
ANSWERS = (
    "logits",
    "logits_per_image",
    "image_embeds",
    "text_embeds",
    "sentence_embedding",
    "pooler_output",
    "last_hidden_state",
)


class BatchParts(NamedTuple):
    """A batch split into what the model takes, the labels, and the samples' ids; None for what it does not have."""

    inputs: Batch
    labels: Any = None
    ids: Any = None


def split_batch(item: Any, model: nn.Module | None = None) -> BatchParts:
    """Split what a loader yields into inputs, labels and ids, as they are: `anydepth.passes.batches` checks them.

    Args:
        item: a dict with "labels" (see `split_labels`) and "id", if there are any; a pair (x, y); or the inputs alone,
            also in a tuple of one, as torch's TensorDataset yields them.
        model: whose own names of labels are set aside too.

    Example:
        >>> split_batch({"input_ids": [[5, 6]], "label": [1], "id": ["a"]})
        BatchParts(inputs={'input_ids': [[5, 6]]}, labels=[1], ids=['a'])
    """
    if isinstance(item, Mapping):
        content = dict(item)
        ids = content.pop("id", None)
        return BatchParts(*split_labels(content, model), ids)
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        inputs, *labels = item
        return BatchParts(dict(inputs) if isinstance(inputs, Mapping) else inputs, *labels)
    return BatchParts(item)


def call_model(model: nn.Module, batch: Batch, labels: Any = None) -> Any:
    """Run the model on a batch without its labels, so that it computes no loss of its own, unless they are given."""
    if isinstance(batch, Mapping):
        inputs = split_labels(batch, model)[0]
        if labels is None and _takes_mapping(model, inputs):
            return model(dict(inputs))  # a copy: the modules of a SentenceTransformer add their outputs to it
        return model(**inputs) if labels is None else model(**inputs, labels=labels)
    return model(batch)


def _takes_mapping(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the forward takes a whole batch as its only argument: it names none of what the batch holds."""
    parameters = _parameters(model)
    return not inputs.keys() & parameters.keys() and len(_required(parameters)) == 1


def split_labels(batch: Mapping[str, Any], model: nn.Module | None = None) -> tuple[dict[str, Any], Any]:
    """Split a batch into the model's inputs and the labels.

    Args:
        batch: by name.
        model: entries that only its loss needs are set aside too, recognised by the names that transformers' Trainer
            knows: they contain "label", or are the start and end of an answer in a text. Arguments that its forward
            requires are inputs, and so are labels of inputs ("input_labels"). An encoder-decoder is given the labels so
            far, made as transformers makes them, where the batch holds none.

    Returns:
        The batch without any of them; and the entry under the first of `LABELS` that is there, else None.

    Example:
        >>> split_labels({"input_ids": [[5, 6]], "label_ids": [1]})
        ({'input_ids': [[5, 6]]}, [1])
    """
    aside = {name for name in batch if name in LABELS or (model is not None and _is_label(name))}
    if aside and model is not None:
        aside -= _required(_parameters(model))
    labels = next((batch[name] for name in LABELS if name in aside and batch[name] is not None), None)
    inputs = {name: value for name, value in batch.items() if name not in aside}
    return {**inputs, **_decoder_inputs(model, inputs, labels)}, labels


def _decoder_inputs(model: nn.Module | None, inputs: Mapping[str, Any], labels: Any) -> dict[str, Any]:
    """The labels so far, which an encoder-decoder that writes is given where a batch has no other text for it."""
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if not getattr(model, "can_generate", bool)():
        return {}  # a tagger's labels are no text
    if not callable(shifted) or not isinstance(labels, Tensor) or labels.ndim != 2:
        return {}
    if any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
        return {}
    return {"decoder_input_ids": shifted(labels=labels)}


def _is_label(name: str) -> bool:
    return ("label" in name and not name.startswith("input")) or name in _SPANS


def _required(parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    """The names of parameters that have no default and stand for one argument."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    empty = inspect.Parameter.empty
    return {name for name, each in parameters.items() if each.default is empty and each.kind not in several}


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a model's forward."""
    # while a model is watched, its class has a property in the place of the method: the one below that is its own
    own = next(method for kind in type(model).__mro__ if callable(method := vars(kind).get("forward")))
    return dict(list(inspect.signature(own).parameters.items())[1:])


def predicts_next_token(model: nn.Module) -> bool:
    """Whether this is a causal language model, whose label at each position is the token after it."""
    can_generate = getattr(model, "can_generate", None)
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    hears = getattr(model, "main_input_name", "") in ("input_features", "input_values")  # CTC: no text goes in
    return bool(callable(can_generate) and can_generate() and not encoder_decoder and not hears)


def _may_be_answer(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point()


def model_output(output: Any) -> tuple[str, Tensor]:
    """Name and value of the model's answer (logits, embeddings, pooled output) in its output.

    The name is empty for a bare tensor, the first of a tuple, or the only entry of a mapping (named tuple, dataclass)
    that has real values for each sample. A loss is no answer, and neither are token ids and masks that are handed on
    (CrossEncoder). Of several entries under unknown names, it is the first.
    """
    if isinstance(output, Tensor):
        return "", output
    named = fields_of(output)
    for name in ANSWERS:
        if isinstance(named.get(name), Tensor):
            return name, named[name]
    answers = {name: value for name, value in named.items() if _may_be_answer(value)}
    if answers:
        name = next(iter(answers))
        return name if len(answers) > 1 else "", answers[name]
    if isinstance(output, tuple | list):
        for value in output:
            if _may_be_answer(value):
                return "", value
    raise UnknownArchitecture(
        f"the model answers with {type(output).__name__}, expected a tensor, or a mapping or tuple that holds one"
    )


def answer_fields(output: Any) -> dict[str, Tensor]:
    """What a model's output says of the very rows that it answers for: the answer, and the boxes beside it."""
    answer = model_output(output)[1]
    named = {name: value for name, value in fields_of(output).items() if isinstance(value, Tensor)}
    rows = answer.shape[:-1]
    return {name: value for name, value in named.items() if value.ndim == answer.ndim and value.shape[:-1] == rows}


def fields_of(output: Any) -> Mapping[str, Any]:
    """A model's output by name: a mapping, or the fields of a named tuple or a dataclass; empty for others."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {}


def output_state(output: Any) -> Tensor:
    """The hidden state in a block's output: all of it, or the first of a tuple, or of a mapping."""
    state = output_parts(output)[0]
    if not isinstance(state, Tensor):
        raise UnknownArchitecture(f"a block answers with {type(output).__name__}, expected its state, or a tuple of it")
    return state


def output_parts(output: Any) -> tuple[Any, ...]:
    """A block's output as its hidden state and what stands beside it: the entries of a tuple, mapping or dataclass."""
    if named := fields_of(output):
        return tuple(named.values())
    return tuple(output) if isinstance(output, tuple | list) and output else (output,)


def input_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state among a block's arguments: the first, or the one called "hidden_states"."""
    state = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    if not isinstance(state, Tensor):
        raise UnknownArchitecture(f"a block is given {type(state).__name__} first, expected the state as a tensor")
    return state


def call_with(block: Callable[..., Any], state: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a block on its recorded arguments with another hidden state."""
    if args:
        return block(state, *args[1:], **kwargs)
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return block(**{**kwargs, name: state})


def first_samples(batch: Batch, count: int) -> Batch:
    """The first `count` samples of a batch."""
    return samples_of(batch, slice(count))


def first_positions(batch: Batch, count: int) -> Batch:
    """The first `count` positions of a batch of texts at which none is padding yet, or no longer.

    The batch itself where it is as short, or holds anything beside its texts that has other positions.
    """
    tensors = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    ids, mask = tensors.get("input_ids"), tensors.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] <= count:
        return batch
    shapes = [value.shape for value in tensors.values() if isinstance(value, Tensor)]
    if any(shape[:2] != ids.shape and shape != ids.shape[:1] for shape in shapes):
        return batch
    first = 0 if mask is None else min(int(mask.bool().int().argmax(1).max()), ids.shape[1] - count)
    part = slice(first, first + count)
    if mask is not None and not mask[:, part].any(1).all():
        return batch
    if isinstance(batch, Tensor):
        return batch[:, part]
    return {
        name: value[:, part] if isinstance(value, Tensor) and value.ndim > 1 else value for name, value in batch.items()
    }


def samples_of(batch: Batch, which: slice | Tensor) -> Batch:
    """Some samples of a batch, by a slice or by indices in any order, repeated or not.

    Every tensor whose first axis is as long as the first tensor's is indexed.
    """

    def index(values: Tensor) -> Tensor:
        return values[which.to(values.device) if isinstance(which, Tensor) else which]

    if isinstance(batch, Tensor):
        return index(batch)
    size = sample_count(batch)
    return {
        name: index(value) if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value
        for name, value in batch.items()
    }


def sample_count(batch: Batch) -> int:
    """B: the length of the first tensor's first axis."""
    tensors = [batch] if isinstance(batch, Tensor) else [v for v in batch.values() if isinstance(v, Tensor) and v.ndim]
    if not tensors:
        raise DataError(f"a batch holds no tensor: {sorted(batch)}; expected what the model's forward takes")
    return tensors[0].shape[0]


def adapted_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that PEFT has put around one of the model's, which they keep as `base_layer`."""
    return (module for module in model.modules() if isinstance(getattr(module, "base_layer", None), nn.Module))


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter that is in memory; the CPU for one without any."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to b's largest entry (at least 1e-6); NaN in the same places is no difference."""
    if a.shape != b.shape:
        return math.inf
    # in float64, some entries at a time: answers of a language model are large
    pairs = zip(*(torch.split(values.reshape(-1), _COMPARED) for values in (a, b)), strict=True)
    differences, sizes = zip(*(_compared(x.cpu().double(), y.cpu().double()) for x, y in pairs), strict=True)
    difference = torch.stack(differences).max()
    if difference == 0:
        return 0.0
    largest = [size for size in sizes if size is not None]
    return float(difference / (torch.stack(largest).max().clamp(min=1e-6) if largest else 1.0))


def _compared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest difference of two vectors, and b's largest finite entry."""
    if not len(a):
        return a.new_zeros(()), None
    agree = (a == b) | (a.isnan() & b.isnan())
    finite = b.abs()[b.isfinite()]
    return (a - b).masked_fill_(agree, 0.0).abs().max(), finite.max() if len(finite) else None
