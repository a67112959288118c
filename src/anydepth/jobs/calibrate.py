"""One calibration, from names to a finished folder: what `anydepth exit` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.batching import Batches, batches
from anydepth.data.loading import DataSelection, load_split
from anydepth.data.settings import settings_of
from anydepth.exits.calibration import check_request, parted
from anydepth.exits.costs import Costs, measure_costs
from anydepth.exits.curve import curve_of, relative_time, require_threshold
from anydepth.exits.early_exit import EarlyExit
from anydepth.exits.exit_scores import ExitScores
from anydepth.exits.policies import Policy, policy_named
from anydepth.exits.saving import CURVE, EXIT_OUTPUT, REPORT, save_exits
from anydepth.exits.summary import ExitSummary
from anydepth.jobs.calibrate_lm import LmCalibrateResult, SequenceSettings, promise_named
from anydepth.models import loading as models
from anydepth.progress import Progress
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import output

_TIMED = 6
"""Batches that the clock is on, evenly spread over the data."""


@dataclass(frozen=True)
class CalibrateSettings:
    """What is to be calibrated, on what, and how.

    Attributes:
        model: see `anydepth.models.loading.load`.
        data: see `anydepth.data.sources.splits`.
        split: which; by default test, else validation, else the only one.
        wanted: columns, a limit, and the seed of what is drawn and how it is split.
        batch_size: samples of a forward; the costs are those of such batches.
        max_length: tokens at which texts are cut.
        policy: a key of `anydepth.exits.policies.POLICIES`.
        depths: those to test; None to choose them by what testing costs.
        tolerance: the probability of a failure that must not be exceeded.
        confidence: of that promise.
        against: "model" or "labels"; see `anydepth.stats.certificates.fails`.
        tune: whether to choose temperatures and tested depths.
        writing: how a language model's sequences are written; it is calibrated against itself.
        blocks: the dotted name of the list of blocks, for a model that has several.
        device: as torch names it; if None the first there is.
        trust_remote_code: run the Python code that comes with the checkpoint.
    """

    model: str
    data: str
    split: str | None = None
    wanted: DataSelection = field(default_factory=DataSelection)
    batch_size: int = 32
    max_length: int | None = None
    policy: str = "confidence"
    depths: tuple[int, ...] | None = None
    tolerance: float = 0.01
    confidence: float = 0.95
    against: str = "model"
    tune: bool = True
    writing: SequenceSettings = field(default_factory=SequenceSettings)
    blocks: str | None = None
    device: str | None = None
    trust_remote_code: bool = False


def calibrate_named(
    job: CalibrateSettings, out: str | Path, *, progress: Progress | None = None
) -> ExitSummary | LmCalibrateResult:
    """Calibrate a model by name, and save it with `exit.json`; a classifier also with its curve and a report.

    Args:
        job: what, on what, and how.
        out: the folder. An interrupted calibration there goes on; a finished one is replaced.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        CertificateError: a level outside (0, 1), too few samples, no labels, or a folder that holds something else.
        PolicyError: an unknown policy, or depths that the model lacks.
    """
    policy = policy_named(job.policy, depths=job.depths)
    check_request(policy, tolerance=job.tolerance, confidence=job.confidence, against=job.against)
    with output(out, EXIT_OUTPUT, inputs={"model": job.model, "data": job.data}):
        return _calibrate(job, policy, Path(out), progress)


def _calibrate(
    job: CalibrateSettings, policy: Policy, folder: Path, progress: Progress | None
) -> ExitSummary | LmCalibrateResult:
    loaded = models.load(job.model, device=job.device, trust_remote_code=job.trust_remote_code)
    rows = load_split(job.data, job.split, job.wanted)
    if loaded.task == "causal-lm":
        return promise_named(
            loaded,
            rows,
            policy,
            folder,
            writing=job.writing,
            tolerance=job.tolerance,
            confidence=job.confidence,
            blocks=job.blocks,
            progress=progress,
        )
    found = batches(rows, loaded, batch_size=job.batch_size, max_length=job.max_length)
    exits = EarlyExit(models.stack_of(loaded, found, blocks=job.blocks), policy)
    require_threshold(exits)
    passing = _Passing(found)
    looked = exits.look(passing, labels=found.labels is not None, out=folder, progress=progress)
    costs = measure_costs(exits.stack, passing.kept[0])
    calibrated = exits.calibrate(
        looked,
        tolerance=job.tolerance,
        confidence=job.confidence,
        against=job.against,
        costs=costs if job.tune else None,
        tune=job.tune,
        seed=job.wanted.seed,
    )
    assert calibrated.calibration is not None
    # where nothing could be certified, the curve is of the policy as it came
    drawn = exits if calibrated.calibration.level is None else calibrated
    shown = parted(looked, job.wanted.seed)[2].under(drawn.policy)
    proof = _Proof(shown, np.inf if calibrated.calibration.level is None else calibrated.calibration.level)
    predicted = costs.share(proof.depth, calibrated.tested, reads=drawn.policy.reads)
    chosen = job.tune and job.depths is None
    result = ExitSummary(
        folder=folder,
        model=job.model,
        data=f"{job.data} ({rows.split})",
        policy=calibrated.policy,
        calibration=calibrated.calibration,
        curve=curve_of(drawn, shown, passing.kept, costs=costs, progress=progress),
        leaving=tuple(np.bincount(proof.depth, minlength=exits.stack.depth + 1)[1:].tolist()),
        agreement=proof.agreement,
        accuracy=proof.accuracy(proof.answers),
        full_accuracy=proof.accuracy(shown.predictions[:, -1]),
        predicted=predicted,
        measured=relative_time(calibrated, passing.kept),
        readout_in_blocks=costs.readout_in_blocks,
        notes=(
            *loaded.notes,
            *rows.notes,
            *found.notes,
            *calibrated.calibration.notes,
            *_on_costs(costs, predicted, calibrated.tested if chosen else ()),
        ),
    )
    _write(result, calibrated, found)
    return result


class _Proof:
    """What a level does on the samples that had no say in it."""

    def __init__(self, shown: ExitScores, level: float) -> None:
        self._shown = shown
        self.depth, self.answers = shown.depth_of(level), shown.answers(level)
        self.agreement = float((self.answers == shown.predictions[:, -1]).mean())

    def accuracy(self, answers: np.ndarray) -> float | None:
        return None if self._shown.labels is None else float((answers == self._shown.labels).mean())


class _Passing:
    """Batches on their way; a few, evenly spread, are kept."""

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


def _on_costs(costs: Costs, predicted: float, chosen: tuple[int, ...]) -> Iterator[str]:
    """What the measured costs say of testing."""
    yield f"one readout costs {costs.readout_in_blocks:.2f} blocks here, in batches of {costs.batch}"
    if chosen:
        yield f"tested depths, chosen by what testing costs here: {', '.join(map(str, chosen))}"
    if predicted > 1:
        yield (
            f"leaving early does not pay here: in batches of {costs.batch} it is predicted to take "
            f"{predicted:.2f} times as long as the plain model; test fewer depths, or truncate"
        )


def _write(result: ExitSummary, calibrated: EarlyExit, batches: Batches) -> None:
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
        write_json(beside / CURVE, result.curve.as_plain())
        write({result.model: result}, beside / REPORT)
