"""Calibrate a model's early exits on data: the job of `anydepth exit`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.batching import Batches, batches
from anydepth.data.loading import load_split
from anydepth.data.settings import settings_of
from anydepth.data.sources import TO_CALIBRATE
from anydepth.early_exit.classifier import EarlyExit
from anydepth.early_exit.curve import curve_of, exit_latencies, relative_time, require_threshold
from anydepth.exits.calibration import check_request, parted
from anydepth.exits.costs import Costs, measure_costs
from anydepth.exits.exit_scores import ExitScores, PolicyInputs
from anydepth.exits.policies import policy_named
from anydepth.exits.saving import CURVE, EXIT_OUTPUT, REPORT, SAMPLES, save_exits
from anydepth.exits.summary import ExitSummary
from anydepth.jobs.calibrate_lm import LmCalibrateResult, calibrate_language_model
from anydepth.jobs.settings import CalibrateSettings
from anydepth.jobs.towers import as_asked
from anydepth.models import loading as models
from anydepth.progress import Progress
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import output

_TIMED = 6
"""Number of batches to measure time on, evenly spread over the data."""


def run_calibrate(
    settings: CalibrateSettings, out: str | Path, *, progress: Progress | None = None
) -> ExitSummary | LmCalibrateResult:
    """Calibrate a model, and save it with `exit.json`; a classifier also with its curve and a report.

    Args:
        settings: the model, the data, and which exit policy to calibrate.
        out: the folder. An interrupted calibration there goes on; a finished one is replaced.
        progress: see `anydepth.jobs`.

    Raises:
        CertificateError: a level outside (0, 1), too few samples, no labels, or a folder that holds something else.
        PolicyError: an unknown policy, or depths that the model lacks.
    """
    policy = policy_named(settings.policy, depths=settings.depths)
    check_request(policy, tolerance=settings.tolerance, confidence=settings.confidence, against=settings.against)
    with output(out, EXIT_OUTPUT, inputs={"model": settings.model, "data": settings.data}):
        loaded = models.load(settings.model, device=settings.device, trust_remote_code=settings.trust_remote_code)
        rows = load_split(settings.data, settings.split, settings.selection, TO_CALIBRATE)
        if loaded.task == "causal-lm":
            return calibrate_language_model(settings, loaded, rows, policy, Path(out), progress)
        loaded = as_asked(loaded, rows, settings)
        inputs = batches(rows, loaded, batch_size=settings.batch_size, max_length=settings.max_length)
        exits = EarlyExit(models.stack_of(loaded, inputs, blocks=settings.blocks), policy)
        return _calibrate(settings, exits, inputs, Path(out), progress)


def _calibrate(
    settings: CalibrateSettings, exits: EarlyExit, inputs: Batches, folder: Path, progress: Progress | None
) -> ExitSummary:
    require_threshold(exits)
    sampled, seed = _SampledBatches(inputs), settings.seed
    collected = exits.look(sampled, labels=inputs.labels is not None, out=folder, progress=progress)
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
    result = ExitSummary(
        folder=folder,
        model=settings.model,
        data=f"{settings.data} ({inputs.data.split})",
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
        notes=(
            *inputs.model.notes,
            *inputs.data.notes,
            *inputs.notes,
            *calibration.notes,
            *_cost_notes(costs, predicted, chosen),
        ),
    )
    _write(result, calibrated, inputs, settings, collected)
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
    result: ExitSummary,
    calibrated: EarlyExit,
    batches: Batches,
    settings: CalibrateSettings,
    collected: PolicyInputs,
) -> None:
    from anydepth.report.pages.exits import write

    loaded = batches.model
    with replacing_folder(result.folder, EXIT_OUTPUT) as beside:
        save_exits(
            calibrated.stack,
            calibrated.policy,
            calibrated.calibration,
            beside,
            name=loaded.name,
            processor=loaded.to_save,
            about=result.as_plain(),
            inputs=settings_of(batches),
        )
        if collected.digests is not None:
            np.save(beside / SAMPLES, np.unique(collected.digests), allow_pickle=False)
        write_json(beside / CURVE, result.curve.as_plain())
        write({result.model: result}, beside / REPORT)
        settings.save(beside)
