"""Export a model to ONNX graphs: the job of `anydepth export`."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.inputs import check_vocabulary, pixel_input
from anydepth.data.settings import InputSettings, processor_fingerprint
from anydepth.early_exit.classifier import EarlyExit
from anydepth.errors import ExportError, ModelError
from anydepth.exits.policies import AtDepth, Policy, policy_named
from anydepth.exits.saving import FILE, ExitFile
from anydepth.jobs.inputs import JobInputs
from anydepth.jobs.keywords import takes
from anydepth.jobs.settings import ExportSettings
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.models.objects import stack_in
from anydepth.models.towers import with_saved_texts
from anydepth.onnx.exporter import EXPORT_OUTPUT, ExportResult, require_extras
from anydepth.progress import Progress
from anydepth.storage.paths import entry_at, local_path

_TEXTS = ("The film was good.", "It was not, and I would not see it again for any money.", "Why?")
_PIXELS = 64


@takes(ExportSettings)
def export(
    model: Any,
    out: str | Path,
    *,
    batch: Any = None,
    processor: Any = None,
    progress: Any = None,
    **settings: Any,
) -> ExportResult:
    """Export a model to ONNX graphs, between which samples may exit: what `anydepth export` does.

    Args:
        model: as `anydepth.trace` takes it; a folder that `anydepth.calibrate` or `EarlyExit.save` wrote; or an
            `EarlyExit`. One in memory is on the CPU.
        out: the folder; see `anydepth.onnx.export`.
        batch: what the graphs are traced with; a made-up one by default, where the model has a processor.
        processor: the tokenizer or image processor, where the model comes without one.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        **settings: as `ExportSettings` has them.

    Raises:
        ExportError: no exits are named, or others than the model was calibrated for; and as `anydepth.onnx.export`.
        PolicyError: there is no such policy, or no such depth.
        TraceFileError: `exit.json` was changed.

    Example:
        >>> from torch import nn
        >>> export(nn.Linear(2, 2), "runs/onnx")
        Traceback (most recent call last):
        anydepth.errors.ExportError: 'Linear' is not calibrated: name its exits (exits), or one for all (depth); ...
    """
    wanted = ExportSettings(model=model, **settings)
    given = JobInputs(settings=wanted, processor=processor)
    require_extras()
    if given.model_name is not None:
        entry_at(wanted.model, ModelError)  # before anything is read of it
    with given.output(out, EXPORT_OUTPUT) as opened:
        result = _export(given, out, batch, progress)
        with opened.publish(adds=True) as beside:
            wanted.save(beside)
        return result


def _export(given: JobInputs, out: str | Path, batch: Any, progress: Progress | None) -> ExportResult:
    settings: ExportSettings = given.settings
    saved, source = _saved(settings.model)
    name = given.model_name or type(getattr(stack_in(settings.model), "model", settings.model)).__name__
    policy, notes = _policy(settings, saved, name)
    loaded = given.model(source, device="cpu", dtype="float32" if saved is None else "auto")
    if saved is not None:
        loaded = with_saved_texts(loaded, saved.model["config"], trust_remote_code=settings.trust_remote_code)
    if batch is None:
        batch = sample_batch(loaded)
    blocks = settings.blocks if saved is None else saved.model["blocks"]
    stack = stack_in(settings.model) or models.stack_of(loaded, [batch], blocks=blocks)
    exits = EarlyExit(stack, policy)
    if saved is not None:
        saved.require_same(stack)
        # whoever runs the graphs cuts texts and reads columns: the settings go with them
        calibration = None if settings.depth is not None else saved.calibration_for(stack, _inputs(saved, loaded))
        exits = EarlyExit(stack, policy, calibration=calibration, inputs=saved.inputs)
    result = exits.export(out, batch, name=name, classes=loaded.classes, progress=progress)
    return replace(result, notes=(*loaded.notes, *result.notes, *notes))


def _saved(model: Any) -> tuple[ExitFile | None, str | None]:
    """What is known of the exits of a model that was calibrated, and where to load it from, if not by its name."""
    if isinstance(model, EarlyExit):
        return model.exit_file, None
    if not isinstance(model, str) or not (local_path(model) / FILE).is_file():
        return None, None
    saved = ExitFile.read(local_path(model))
    return saved, saved.source(local_path(model))


def _inputs(saved: ExitFile, loaded: LoadedModel) -> InputSettings | None:
    """How inputs of this model are made now."""
    return None if saved.inputs is None else replace(saved.inputs, processor=processor_fingerprint(loaded))


def sample_batch(loaded: LoadedModel) -> dict[str, Any]:
    """A batch of three made-up samples for a loaded model: texts of three lengths, or noise images.

    Raises:
        ExportError: the inputs of the model are not known.
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
        parameters = inspect.signature(loaded.model.forward).parameters
        return {name: tensor for name, tensor in tokens.items() if name in parameters}
    if loaded.kind == "image":
        from PIL import Image

        noise = np.random.default_rng(0).integers(0, 256, (3, _PIXELS, _PIXELS, 3), dtype=np.uint8)
        name, dtype = pixel_input(loaded)
        return {name: loaded.processor([Image.fromarray(pixels) for pixels in noise]).to(dtype)}
    raise ExportError(f"'{loaded.name}' takes tensors: use anydepth.onnx.export in Python, with a batch of yours")


def _policy(settings: ExportSettings, saved: ExitFile | None, name: str) -> tuple[Policy, tuple[str, ...]]:
    """The exit policy, and notes on it."""
    if settings.depth is not None:
        if (settings.exits, settings.policy, settings.threshold) != (None, None, None):
            raise ExportError(
                f"depth={settings.depth} is one exit for all: leave out the others (exits, policy, threshold)"
            )
        return AtDepth(settings.depth), ()
    if saved is None:
        return _uncalibrated_policy(settings, name)
    if settings.policy is not None or settings.threshold is not None:
        raise ExportError(
            f"'{name}' has a calibrated policy: give no other (policy, threshold), or export the plain model"
        )
    depth = saved.model["depth"]
    tested = saved.policy.tested(depth)
    if settings.exits is not None and set(settings.exits) - {depth} != set(tested):
        raise ExportError(
            f"'{name}' was calibrated for exits at {', '.join(map(str, tested)) or 'no depth'}: give no "
            "others (exits), or calibrate it for them with anydepth exit"
        )
    return saved.policy, ()


def _uncalibrated_policy(settings: ExportSettings, name: str) -> tuple[Policy, tuple[str, ...]]:
    if settings.exits is None:
        raise ExportError(
            f"'{name}' is not calibrated: name its exits (exits), or one for all (depth); or calibrate it "
            "first, with anydepth exit"
        )
    policy, threshold = policy_named(settings.policy or "confidence", depths=settings.exits), settings.threshold
    if threshold is None:
        if settings.policy is not None:
            raise ExportError(f"the threshold of {settings.policy} is missing: give it (threshold)")
        threshold = 0.9
    policy = replace(policy, threshold=threshold)
    return policy, (f"{policy} is not calibrated: it has no guarantee, see anydepth exit",)
