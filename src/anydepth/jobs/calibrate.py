"""Calibrate a model's early exits on data: the job of `anydepth exit`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.sources import TO_CALIBRATE
from anydepth.early_exit.classifier import EarlyExit
from anydepth.early_exit.curve import curve_of, exit_latencies, relative_time, require_threshold
from anydepth.errors import DataError
from anydepth.exits.calibration import check_request, parted
from anydepth.exits.costs import Costs, measure_costs
from anydepth.exits.exit_scores import ExitScores, PolicyInputs
from anydepth.exits.policies import policy_named
from anydepth.exits.saving import CURVE, EXIT_OUTPUT, REPORT, SAMPLES, save_exits
from anydepth.exits.summary import ExitSummary
from anydepth.jobs.calibrate_lm import LmCalibrateResult, calibrate_language_model
from anydepth.jobs.inputs import Collate, Inputs, JobInputs
from anydepth.jobs.keywords import takes
from anydepth.jobs.settings import CalibrateSettings
from anydepth.jobs.towers import as_asked
from anydepth.progress import Progress
from anydepth.storage.files import replacing_folder, write_json

_TIMED = 6
"""Number of batches to measure time on, evenly spread over the data."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CalibrateResult(ExitSummary):
    """What was found, and the calibrated model, ready to run."""

    exits: EarlyExit = field(compare=False)


@takes(CalibrateSettings)
def calibrate(
    model: Any,
    data: Any,
    *,
    processor: Any = None,
    collate_fn: Collate | None = None,
    out: str | Path | None = None,
    progress: Any = None,
    **settings: Any,
) -> CalibrateResult | LmCalibrateResult:
    """Calibrate early exit with a guarantee on how often its answer differs from the full model's.

    What `anydepth exit` does. `EarlyExit.calibrate` chooses the threshold; here it is also tried on held-out samples,
    timed, and drawn as a curve. A language model exits token by token, and is calibrated on texts.

    Args:
        model: as `anydepth.trace` takes it.
        data: as `anydepth.trace` takes them; independent samples that were not trained on.
        processor: the tokenizer or image processor, where the model comes without one.
        collate_fn: makes a batch of a list of rows.
        out: a folder for the model with `exit.json`, its curve and a report. An interrupted calibration there goes on;
            a finished one is replaced.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        **settings: as `CalibrateSettings` has them.

    Returns:
        What was found; `exits` of it is the calibrated `EarlyExit`, of a language model `policy` the certified one.

    Raises:
        CertificateError: a level outside (0, 1), too few samples, no labels, or a folder that holds something else.
        PolicyError: an unknown policy, or depths that the model lacks.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> batches = [{"pixel_values": torch.rand(25, 1, 8, 8)} for _ in range(4)]
        >>> result = calibrate(ViTForImageClassification(config), batches, tolerance=0.5)
        >>> result.calibration.certificate is not None, result.exits(batches[0]).logits.shape
        (True, torch.Size([25, 5]))
    """
    wanted = CalibrateSettings(model=model, data=data, **settings)
    given = JobInputs(settings=wanted, processor=processor, collate_fn=collate_fn)
    policy = policy_named(wanted.policy, depths=wanted.depths)
    check_request(policy, tolerance=wanted.tolerance, confidence=wanted.confidence, against=wanted.against)
    folder = None if out is None else Path(out)
    with given.output(out, EXIT_OUTPUT):
        loaded, rows = given.model(device=wanted.device), given.rows(TO_CALIBRATE)
        if loaded.task == "causal-lm":
            if rows is None:
                raise DataError(f"'{loaded.name}' is calibrated on texts, and data are batches: give texts (data)")
            return calibrate_language_model(wanted, loaded, rows, policy, folder, progress)
        if rows is not None:
            loaded = as_asked(loaded, rows, wanted)
        inputs = given.read(loaded, rows, blocks=wanted.blocks, max_length=wanted.max_length).kept()
        return _calibrate(wanted, EarlyExit(inputs.stack, policy), inputs, folder, progress)


def _calibrate(
    settings: CalibrateSettings, exits: EarlyExit, inputs: Inputs, folder: Path | None, progress: Progress | None
) -> CalibrateResult:
    require_threshold(exits)
    sampled, seed = _SampledBatches(inputs.batches), settings.seed
    collected = exits.look(sampled, labels=inputs.labelled(), out=folder, progress=progress)
    costs = measure_costs(exits.stack, sampled.kept[0])
    calibrated = exits.calibrate(
        collected,
        tolerance=settings.tolerance,
        confidence=settings.confidence,
        against=settings.against,
        costs=costs if settings.tune else None,
        tune=settings.tune,
        seed=seed,
    )
    calibration = calibrated.calibration
    assert calibration is not None
    # where nothing could be certified, the curve is of the policy as it came
    drawn = exits if calibration.level is None else calibrated
    scores = parted(collected, seed)[2].under(drawn.policy)
    held_out = _HeldOut(scores, np.inf if calibration.level is None else calibration.level)
    predicted = costs.share(held_out.depth, calibrated.tested, reads=drawn.policy.reads)
    chosen = calibrated.tested if settings.tune and settings.depths is None else ()
    result = CalibrateResult(
        folder=folder,
        model=inputs.model.name,
        data=inputs.data,
        policy=calibrated.policy,
        calibration=calibration,
        curve=curve_of(drawn, scores, sampled.kept, costs=costs, progress=progress),
        leaving=tuple(np.bincount(held_out.depth, minlength=exits.stack.depth + 1)[1:].tolist()),
        agreement=held_out.agreement,
        accuracy=held_out.accuracy(held_out.answers),
        full_accuracy=held_out.accuracy(scores.predictions[:, -1]),
        predicted=predicted,
        measured=relative_time(calibrated, sampled.kept),
        readout_in_blocks=costs.readout_in_blocks,
        latencies=() if calibration.level is None else exit_latencies(calibrated, sampled.kept),
        notes=(*inputs.notes, *calibration.notes, *_cost_notes(costs, predicted, chosen)),
        exits=calibrated,
    )
    if folder is not None:
        _write(folder, result, inputs, settings, collected)
    return result


class _HeldOut:
    """Exit depths and answers of the held-out test samples at a level."""

    def __init__(self, scores: ExitScores, level: float) -> None:
        self._scores = scores
        self.depth, self.answers = scores.depth_of(level), scores.answers(level)
        self.agreement = float((self.answers == scores.predictions[:, -1]).mean())

    def accuracy(self, answers: np.ndarray) -> float | None:
        return None if self._scores.labels is None else float((answers == self._scores.labels).mean())


class _SampledBatches:
    """Batches that keep a few of themselves, evenly spread, while they are iterated."""

    def __init__(self, batches: Sized) -> None:
        self._batches = batches
        self._wanted = set(np.linspace(0, len(batches) - 1, _TIMED).round().astype(int).tolist())
        self.kept: list[Any] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        assert isinstance(self._batches, Iterable)
        self.kept = []
        for index, batch in enumerate(self._batches):
            if index in self._wanted:
                self.kept.append(batch)
            yield batch


def _cost_notes(costs: Costs, predicted: float, chosen: tuple[int, ...]) -> Iterator[str]:
    """Notes on what testing costs, as measured."""
    yield f"one readout costs {costs.readout_in_blocks:.2f} blocks here, in batches of {costs.batch}"
    if chosen:
        yield f"tested depths, chosen by what testing costs here: {', '.join(map(str, chosen))}"
    if predicted > 1:
        yield (
            f"early exit does not pay here: in batches of {costs.batch} it is predicted to take "
            f"{predicted:.2f} times as long as the plain model; test fewer depths, or truncate"
        )


def _write(
    folder: Path, result: CalibrateResult, inputs: Inputs, settings: CalibrateSettings, collected: PolicyInputs
) -> None:
    from anydepth.report.pages.exits import write

    with replacing_folder(folder, EXIT_OUTPUT) as beside:
        save_exits(
            result.exits.stack,
            result.policy,
            result.calibration,
            beside,
            name=inputs.model.name,
            processor=inputs.model.to_save,
            about=result.as_plain(),
            inputs=inputs.settings,
        )
        if collected.digests is not None:
            np.save(beside / SAMPLES, np.unique(collected.digests), allow_pickle=False)
        write_json(beside / CURVE, result.curve.as_plain())
        write({result.model: result}, beside / REPORT)
        settings.save(beside)
