"""One export, from names to a finished folder: what `anydepth export` does."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.core.stack import Stack
from anydepth.data.inputs import check_vocabulary, pixel_input
from anydepth.data.settings import processor_fingerprint
from anydepth.errors import ExportError, ModelError
from anydepth.exits.policies import AtDepth, Policy, policy_named
from anydepth.exits.saving import FILE, ExitFile
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.onnx.exporter import EXPORT_OUTPUT, ExportResult, export, require_extras
from anydepth.progress import Progress
from anydepth.storage.output_folder import output
from anydepth.storage.paths import entry_at, local_path

_TEXTS = ("The film was good.", "It was not, and I would not see it again for any money.", "Why?")
_PIXELS = 64


@dataclass(frozen=True)
class ExportSettings:
    """What is to be exported.

    Attributes:
        model: see `anydepth.models.loading.load`; or a folder that `anydepth exit` wrote.
        exits: the depths at which samples may leave; None for those of a calibrated model.
        depth: one depth at which all leave.
        policy: a key of `anydepth.exits.policies.POLICIES`, for a model that is not calibrated.
        threshold: of that policy; None for 0.9, if that is left out too: a confidence of 0.9.
        blocks: the dotted name of the list of blocks, for a model that has several.
        trust_remote_code: run the Python code that comes with the checkpoint.
    """

    model: str
    exits: Sequence[int] | None = None
    depth: int | None = None
    policy: str | None = None
    threshold: int | float | None = None
    blocks: str | None = None
    trust_remote_code: bool = False


def ship(wish: ExportSettings, out: str | Path, *, progress: Progress | None = None) -> ExportResult:
    """Export a model by name.

    Args:
        wish: what.
        out: the folder; see `anydepth.onnx.export`.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        ExportError: no exits are named, or others than the model was calibrated for; and as `export` does.
        PolicyError: there is no such policy, or no such depth.
        TraceFileError: `exit.json` was changed.
    """
    require_extras()
    entry_at(wish.model, ModelError)  # before anything is read of it
    with output(out, EXPORT_OUTPUT, inputs={"model": wish.model}):
        return _ship(wish, out, progress)


def _ship(wish: ExportSettings, out: str | Path, progress: Progress | None) -> ExportResult:
    folder = local_path(wish.model)
    saved = ExitFile.read(folder) if (folder / FILE).is_file() else None
    policy, notes = _policy(wish, saved)
    loaded = models.load(
        wish.model if saved is None else saved.source(folder),
        device="cpu",
        dtype="float32" if saved is None else "auto",
        trust_remote_code=wish.trust_remote_code,
    )
    batch = sample_batch(loaded)
    stack = models.stack_of(loaded, [batch], blocks=wish.blocks if saved is None else saved.model["blocks"])
    about: dict[str, Any] = {}
    if saved is not None:
        saved.require_same(stack)
        about, why = _about(wish, saved, stack, loaded)
        notes = (*why, *notes)
    found = export(stack, policy, batch, out, name=wish.model, classes=loaded.classes, about=about, progress=progress)
    return replace(found, notes=(*loaded.notes, *notes))


def _about(
    wish: ExportSettings, saved: ExitFile, stack: Stack, loaded: LoadedModel
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the graphs are to say of inputs and promise, and what to know about that."""
    if saved.inputs is None:
        found = saved.calibration_for(stack)
    else:
        # how texts will be cut and columns be read is the server's affair: the settings go with the graphs
        now = replace(saved.inputs, processor=processor_fingerprint(loaded))
        found = saved.calibration_for(stack, now)
    about: dict[str, Any] = {} if saved.inputs is None else {"inputs": saved.inputs.as_plain()}
    if wish.depth is not None or found is None:
        return about, ()
    if found.withheld is not None:
        return about, (found.withheld,)
    return about | {"promise": found.promise}, (found.promise,)


def sample_batch(loaded: LoadedModel) -> dict[str, Any]:
    """A batch of a loaded model, of made-up samples: texts of three lengths, or noise.

    Raises:
        ExportError: nobody knows what the model takes.
    """
    if loaded.kind == "text":
        tokens = loaded.processor(
            list(_TEXTS),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=loaded.max_length,
            return_tensors="pt",
        )
        check_vocabulary(int(tokens["input_ids"].max()), loaded)
        takes = inspect.signature(loaded.model.forward).parameters
        return {name: tensor for name, tensor in tokens.items() if name in takes}
    if loaded.kind == "image":
        from PIL import Image

        noise = np.random.default_rng(0).integers(0, 256, (3, _PIXELS, _PIXELS, 3), dtype=np.uint8)
        name, dtype = pixel_input(loaded)
        return {name: loaded.processor([Image.fromarray(one) for one in noise]).to(dtype)}
    raise ExportError(f"'{loaded.name}' takes tensors: use anydepth.onnx.export in Python, with a batch of yours")


def _policy(wish: ExportSettings, saved: ExitFile | None) -> tuple[Policy, tuple[str, ...]]:
    """When samples leave, and what to know about that."""
    if wish.depth is not None:
        if (wish.exits, wish.policy, wish.threshold) != (None, None, None):
            raise ExportError("--depth is one exit for all: leave out --exits, --policy and --threshold")
        return AtDepth(wish.depth), ()
    if saved is None:
        return _given(wish)
    if wish.policy is not None or wish.threshold is not None:
        raise ExportError(
            f"'{wish.model}' has a calibrated policy: leave out --policy and --threshold, or export the plain model"
        )
    tested = saved.policy.tested(saved.model["depth"])
    if wish.exits is not None and set(wish.exits) - {saved.model["depth"]} != set(tested):
        raise ExportError(
            f"'{wish.model}' was calibrated for exits at {', '.join(map(str, tested)) or 'no depth'}: leave out "
            "--exits, or calibrate it for others with anydepth exit --depths"
        )
    return saved.policy, ()


def _given(wish: ExportSettings) -> tuple[Policy, tuple[str, ...]]:
    """The policy of a model that is not calibrated."""
    if wish.exits is None:
        raise ExportError(
            f"'{wish.model}' is not calibrated: name the exits with --exits, or one for all with --depth; or calibrate "
            "it first, with anydepth exit"
        )
    policy = policy_named(wish.policy or "confidence", depths=tuple(wish.exits))
    if wish.threshold is not None:
        policy = replace(policy, threshold=wish.threshold)
    elif wish.policy is None:
        policy = replace(policy, threshold=0.9)
    else:
        raise ExportError(f"the threshold of {wish.policy} is missing: give it with --threshold")
    return policy, (f"{policy} is not calibrated: nothing is promised of it, see anydepth exit",)
