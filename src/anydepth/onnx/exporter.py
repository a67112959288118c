"""Export of a model with early exit to ONNX: one graph for each segment between two exits.

A segment is traced from what early exit runs in torch: the blocks on the arguments that the model's own forward gives
them, the model's own readout, the policy's own score. So there is one implementation of each, and what a segment does
not need (the embeddings, in all but the first) is dead code that drops out of its graph. `anydepth.onnx.router` runs
them without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from anydepth.core.model_io import Batch, distance, split_batch
from anydepth.core.patching import evaluating
from anydepth.core.provenance import describe_model, now, versions
from anydepth.core.stack import Stack
from anydepth.dependencies import require
from anydepth.errors import ExportError
from anydepth.exits.policies import Policy, Reads
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.onnx.router import FORMAT, MANIFEST, Router, memory_at, plain_level
from anydepth.onnx.segments import Inputs, Segment, write_segment
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table
from anydepth.storage.checksums import file_record, with_checksum
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind
from anydepth.storage.sizes import in_words

TOLERANCE = 1e-4
"""How far onnxruntime may be from torch: logits relative to the largest of them, scores to the largest or 1."""
EXPORT_OUTPUT = OutputKind(job="export", mark=MANIFEST, alone="holds something already", error=ExportError)
_EXTRAS = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ExportResult(Result):
    """Result of an export.

    Attributes:
        folder: of the export; `anydepth.onnx.Router` runs it.
        policy: when samples exit, as Python would write it.
        exits: the depths where they do, ascending.
        last: L.
        files: the graph of each segment.
        bytes: size of each graph, with its weights.
        apart: largest difference between onnxruntime and torch: logits relative to the largest, and scores.
        batches: shapes of the first input of the batches that were compared.
    """

    folder: Path
    model: str
    policy: str
    exits: tuple[int, ...]
    last: int
    files: tuple[str, ...]
    bytes: tuple[int, ...]
    apart: float
    batches: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """The model, its policy and its exits."""
        return f"{self.model}: {self.policy}, exits {', '.join(map(str, self.exits))} of {self.last}"

    def tables(self) -> tuple[Table, ...]:
        """The graphs with their sizes."""
        starts = (0, *self.exits)
        columns = (
            Column(head="blocks", cells=tuple(f"{a + 1}–{b}" for a, b in zip(starts, self.exits, strict=False))),
            Column(head="graph", cells=self.files, kind="text"),
            Column(head="size", cells=tuple(map(in_words, self.bytes))),
        )
        return (Table(title=f"{self.model}: {self.policy}", columns=columns),)

    def sentences(self) -> tuple[str, ...]:
        """How closely onnxruntime agrees with torch."""
        shapes = ", ".join(" × ".join(map(str, shape)) for shape in self.batches)
        return (f"onnxruntime answers as torch does, to {self.apart:.1e}, on inputs of {shapes}",)

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def export(
    model: nn.Module | Stack,
    policy: Policy,
    batch: Any,
    out: Path | str,
    *,
    name: str | None = None,
    classes: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    blocks: str | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a model as ONNX segments, one from each tested depth to the next.

    Args:
        model: a classifier of texts or images, in float32 on the CPU; or a `Stack` of one.
        policy: when samples exit. With `AtDepth(k)` there is one graph, from the inputs to the readout of h[k].
        batch: any batch of it; at least 2 positions where it is text. The first axis of every tensor may later have any
            length, and of tokens the second. Images keep their size.
        out: the folder. An earlier export there is replaced; a folder that holds anything else is refused.
        name: of the model; its own if None.
        classes: names of the classes; those of the model's config if left out.
        about: more to store, as values that JSON holds: the certificate of the policy, say.
        blocks: the dotted name of the list of blocks, for a model that has several.
        progress: called with what is done, how much there is, and what it is.

    Returns:
        The files written, after onnxruntime was compared with torch: on the batch, on one sample of it without
        padding, and on twice as many samples with more.

    Raises:
        ExportError: torch cannot trace the model, onnxruntime answers differently, a package is missing, or the folder
            holds something. Nothing is written then.
        PolicyError: the policy tests a depth beyond L.
        UnsupportedHead: the model predicts for every position, or chooses no class.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth.exits.policies import AtDepth
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> model, images = ViTForImageClassification(config).eval(), torch.rand(7, 1, 8, 8)
        >>> with TemporaryDirectory() as folder:
        ...     result = export(model, AtDepth(1), {"pixel_values": images[:3]}, f"{folder}/out")
        ...     answer = Router(result.folder)({"pixel_values": images.numpy()})
        >>> result.files, answer.logits.shape, answer.depth.tolist()
        (('blocks-1-1.onnx',), (7, 5), [1, 1, 1, 1, 1, 1, 1])
    """
    require_extras()
    stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
    require_float32(stack.model)
    inputs, reader = Inputs.of(split_batch(batch, stack.model).inputs), PolicyReader(stack, policy)
    with evaluating(stack.model):
        reader.prepare(inputs.batch)
        stack.require_one_stage("its export")
        with torch.no_grad(), replacing_folder(Path(out), EXPORT_OUTPUT) as beside:
            reader.logits(stack.states(inputs.batch)[-1], inputs.batch, stack.depth)  # no classifier, no graph
            segments = _write_segments(reader, inputs, beside, progress)
            content = _manifest(reader, inputs, segments, beside)
            content["model"] = describe_model(stack, name)
            if classes:
                content["model"]["classes"] = {str(index): label for index, label in enumerate(classes)}
            content["about"] = dict(about or {})
            write_json(beside / MANIFEST, with_checksum(content))
            router, others = Router(beside), list(inputs.others())
            apart = max(_largest_difference(reader, router, inputs, other) for other in others)
    return ExportResult(
        folder=Path(out),
        model=content["model"]["name"],
        policy=content["policy"],
        exits=router.exits,
        last=stack.depth,
        files=tuple(segment["file"] for segment in segments),
        bytes=tuple(_size(content["files"], segment["file"]) for segment in segments),
        apart=apart,
        batches=tuple(tuple(next(iter(inputs.named(other).values())).shape) for other in others),
    )


def require_extras() -> None:
    """Raise an `ExportError` for missing packages, a `DependencyError` if the installed torch exports differently."""
    missing = [package for package in _EXTRAS if find_spec(package) is None]
    if missing:
        raise ExportError(f"an export takes {', '.join(missing)}: pip install 'anydepth[onnx]'")
    require("torch")


def require_float32(model: nn.Module) -> None:
    """Raise an `ExportError` if weights are not in float32 on the CPU."""
    placed = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    for dtype, device in placed - {(torch.float32, "cpu")}:
        raise ExportError(
            f"{type(model).__name__} has {str(dtype).removeprefix('torch.')} weights on {device}, expected float32 on "
            "cpu: model.float().cpu()"
        )


def _write_segments(
    reader: PolicyReader, inputs: Inputs, folder: Path, progress: Progress | None
) -> list[dict[str, Any]]:
    """Write the graphs of all segments; returns their entries in the manifest."""
    stops = (*reader.tested, reader.stack.depth)
    if reader.policy.reads == Reads.NOTHING:  # all exit at the first
        stops = stops[:1]
    tensors, entries = inputs.named(), []
    for number, (start, stop) in enumerate(pairwise((0, *stops)), start=1):
        last, remembers = number == len(stops), memory_at(start) in tensors
        segment = Segment(reader, inputs, start, stop, last=last, remembers=remembers)
        file = f"blocks-{start + 1}-{stop}.onnx"
        tensors = tensors | write_segment(segment.eval(), tensors, folder / file)
        entries.append({"file": file, "start": start, "stop": stop})
        if progress:
            progress(number, len(stops), "segments")
    return entries


def _manifest(reader: PolicyReader, inputs: Inputs, segments: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Contents of `export.json` for the graphs in a folder."""
    return {
        "format": FORMAT,
        "created": now(),
        "versions": versions() | {package: version(package) for package in _EXTRAS},
        "policy": repr(reader.policy),
        # JSON has no infinity: a level that all samples reach, or none, is written as a word.
        "level": plain_level(reader.policy.level) if len(segments) > 1 else None,
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [inputs.axes[name].get(axis, size) for axis, size in enumerate(value.shape)],
            }
            for name, value in inputs.named().items()
        },
        "segments": segments,
        "files": {path.name: file_record(path) for path in sorted(folder.iterdir())},
    }


def _size(files: Mapping[str, Mapping[str, Any]], graph: str) -> int:
    """Bytes of a graph, and of the weights beside it if it has any there."""
    return sum(int(record["bytes"]) for name, record in files.items() if name.startswith(graph))


def _largest_difference(reader: PolicyReader, router: Router, inputs: Inputs, batch: Batch) -> float:
    """The largest difference between onnxruntime and torch at the exits of a batch, at most `TOLERANCE`."""
    states, memory, worst = reader.stack.states(batch), None, 0.0
    arrays = {name: value.numpy() for name, value in inputs.named(batch).items()}
    for output in router.look(arrays):
        depth, state = output.depth, states[output.depth]
        logits = reader.logits(state, batch, depth)
        apart = distance(torch.from_numpy(output.logits), logits)
        if output.score is not None:
            score, memory = reader.policy.scores(depth, reader.seen(state, batch, logits), memory)
            apart = max(apart, _score_difference(output.score, score.numpy()))
        if not apart <= TOLERANCE:
            first = next(iter(arrays.values())).shape
            raise ExportError(
                f"{type(reader.stack.model).__name__}: at depth {depth} onnxruntime is {apart:.2g} from torch, "
                f"expected at most {TOLERANCE:.0e} (inputs of shape {first}): the model does what a graph cannot hold"
            )
        worst = max(worst, apart)
    return worst


def _score_difference(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, over the largest score above 1; infinities of one sign, and two NaN, are no difference.

    Log-odds grow with the logits, whose difference is relative to the largest of them, too.
    """
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    apart = np.abs(np.subtract(actual, expected, where=~same, out=np.zeros_like(expected))).max(initial=0.0)
    return float(apart / np.abs(expected[np.isfinite(expected)]).max(initial=1.0))
