"""ONNX graph of the segment of a forward between two exits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch, sample_count, samples_of
from anydepth.core.overrides import shared_lock
from anydepth.errors import ExportError, one_line
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.onnx.router import LOGITS, SCORE, memory_at, state_at

OPSET = 20
"""Of the graphs. Fixed, so that they stay the same when torch's default moves on; runtimes keep reading old ones."""
_EXPORTING = shared_lock()
_BARE = "input"  # name in the graphs of the one tensor of a model that takes no names
_LARGEST = 1_900_000_000  # protobuf holds 2 GB; weights beyond go to a file beside the graph


@dataclass(frozen=True)
class Inputs:
    """A batch to trace with, and its dynamic axes.

    Attributes:
        batch: of at least two samples: torch takes a size of 1 for a constant.
        axes: of each tensor by name, the axes that may have other lengths and their names.
    """

    batch: Batch
    axes: dict[str, dict[int, str]]

    @classmethod
    def of(cls, batch: Batch) -> Inputs:
        """The inputs of a batch without labels."""
        if sample_count(batch) < 2:
            batch = samples_of(batch, torch.zeros(2, dtype=torch.int64))
        named = _named(batch)
        tokens = {value.shape[1] for value in named.values() if value.ndim == 2 and not value.is_floating_point()}
        axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in named}
        if len(tokens) == 1:
            for name, value in named.items():
                if value.ndim == 2 and value.shape[1] in tokens:
                    axes[name][1] = "sequence"
        return cls(batch, axes)

    @property
    def length(self) -> int:
        """T of the batch; 0 where there are no tokens."""
        return max((self.named()[name].shape[1] for name, axes in self.axes.items() if 1 in axes), default=0)

    def named(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """The tensors of this batch, or of another like it, by name."""
        return _named(self.batch if batch is None else batch)

    def like(self, named: Mapping[str, Tensor]) -> Batch:
        """The batch with these tensors in the place of its own."""
        return named[_BARE] if isinstance(self.batch, Tensor) else {**self.batch, **named}

    def others(self) -> Iterator[Batch]:
        """This batch; one sample of it without padding, and shorter; twice as many samples, with more padding."""
        yield self.batch
        named, length = self.named(), self.length
        valid = torch.arange(length)
        if "attention_mask" in named and 1 in self.axes["attention_mask"]:
            valid = named["attention_mask"][0].nonzero()[:, 0]
        kept = valid if 0 < len(valid) < length else torch.arange(max(1, length - 1))
        yield self.like({name: value[:1, kept] if 1 in self.axes[name] else value[:1] for name, value in named.items()})
        twice = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in named.items()}
        if "attention_mask" in twice:
            twice["attention_mask"][::2, length - length // 3 :] = 0
        yield self.like(twice)


def _named(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch with a row for each sample, by name."""
    if isinstance(batch, Tensor):
        return {_BARE: batch}
    count = sample_count(batch)
    return {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.shape[:1] == (count,)}


class Segment(nn.Module):
    """Blocks start + 1..stop, with the readout and score of the exit after them, as a module to trace.

    The first segment starts from the inputs (start = 0). At the last one all samples exit: it has no score, and no
    state to hand on. `remembers` says whether the policy has a memory of the exit before.
    """

    def __init__(
        self, reader: PolicyReader, inputs: Inputs, start: int, stop: int, *, last: bool, remembers: bool
    ) -> None:
        super().__init__()
        self.model = reader.stack.model  # a child, so that its weights become the graph's
        self.heads = reader.stack.heads
        self._reader, self._inputs = reader, inputs
        self.start, self.stop = start, stop
        self._last, self._remembers = last, remembers and not last

    def takes(self) -> list[str]:
        """Names of the inputs; the state comes first, so that sizes are read off it and not off dead inputs."""
        carried = [state_at(self.start)] if self.start else []
        memory = [memory_at(self.start)] if self._remembers else []
        return [*carried, *memory, *self._inputs.named()]

    def gives(self, count: int) -> list[str]:
        """Names of the first `count` outputs."""
        return [LOGITS, SCORE, state_at(self.stop), memory_at(self.stop)][:count]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of `gives`, of inputs in the order of `takes`."""
        named = dict(zip(self.takes(), tensors, strict=True))
        batch = self._inputs.like({name: named[name] for name in self._inputs.named()})
        replay = self._reader.stack.replay(batch)
        state = named[state_at(self.start)] if self.start else replay.state
        for depth in range(self.start + 1, self.stop + 1):
            state = replay.step(state, depth)
        logits = self._reader.logits(state, batch, self.stop)
        if self._last:
            return (logits,)
        seen = self._reader.seen(state, batch, logits)
        # A sample that is all padding would have no row. There is none, so this is as long as the batch.
        torch._check(seen.shape[0] == state.shape[0])
        score, memory = self._reader.policy.scores(self.stop, seen, named.get(memory_at(self.start)))
        return (logits, score, state) if memory is None else (logits, score, state, memory)

    def axes(self, named: Mapping[str, Tensor]) -> list[dict[int, str]]:
        """The dynamic axes of each input and their names, in the order of `takes`."""
        state = {0: "batch"}
        if self.start and (length := self._inputs.length) and named[state_at(self.start)].ndim == 3:
            state[1] = "sequence" if named[state_at(self.start)].shape[1] == length else "positions"
        carried = {state_at(self.start): state, memory_at(self.start): {0: "batch"}}
        return [self._inputs.axes.get(name) or carried[name] for name in self.takes()]


def write_segment(segment: Segment, named: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Trace a segment, in evaluation mode, on an example of each of its inputs, and write its graph.

    Weights beyond 2 GB go to a file beside the graph. Returns the outputs of the segment in torch, by name; one that
    cannot be traced raises an `ExportError`.
    """
    tensors, axes = tuple(named[name] for name in segment.takes()), segment.axes(named)
    outputs = segment(*tensors)
    names = segment.gives(len(outputs))
    try:
        with _EXPORTING, warnings.catch_warnings():  # one at a time: filters of warnings are the whole process's
            warnings.simplefilter("ignore")  # of torch's exporter to its authors
            program = torch.onnx.export(
                segment,
                tensors,
                input_names=segment.takes(),
                output_names=names,
                dynamic_shapes=(tuple(axes),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            weights = _tidy(program.model, dict(zip(segment.takes(), axes, strict=True)))
            program.save(path, external_data=weights > _LARGEST)
    except Exception as problem:  # torch's exporter raises whatever the model's code does, wrapped in its own
        raise ExportError(
            f"{type(segment.model).__name__}: blocks {segment.start + 1}..{segment.stop} cannot be traced to ONNX: "
            f"{one_line(_first_cause(problem))}"
        ) from problem
    return dict(zip(names, outputs, strict=True))


def _tidy(model: Any, axes: Mapping[str, Mapping[int, str]]) -> int:
    """Remove dead inputs, and metadata with paths of this machine; returns the size of the weights in bytes."""
    graph = model.graph
    only_sized = [value for value in graph.inputs if all(use.node.op_type == "Shape" for use in value.uses())]
    live = [value for value in graph.inputs if value not in only_sized]
    for value in only_sized:
        for use in list(value.uses()):
            _size_off(use.node, axes[value.name], live, axes)
        if not value.uses():
            graph.inputs.remove(value)
    for holder in (model, graph, *graph.all_nodes()):
        holder.metadata_props.clear()
        holder.doc_string = None
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)


def _size_off(shape: Any, own: Mapping[int, str], live: list[Any], axes: Mapping[str, Mapping[int, str]]) -> None:
    """Take a size from a live input that has an axis of the same name, if there is one.

    Of an input whose values are not used only the size may be: a segment should not require images to count them.
    """
    from onnx_ir import AttrInt64

    start, end = (shape.attributes.get_int(name, None) for name in ("start", "end"))
    if start is None or end != start + 1:
        return
    places = ((value, axis) for value in live for axis, name in axes[value.name].items() if name == own.get(start))
    for value, axis in places:
        shape.replace_input_with(0, value)
        shape.attributes["start"], shape.attributes["end"] = AttrInt64("start", axis), AttrInt64("end", axis + 1)
        return


def _first_cause(problem: BaseException) -> BaseException:
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return problem
