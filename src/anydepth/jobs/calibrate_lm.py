"""Calibrate the exits of a language model on texts: what the job of `anydepth exit` does with one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anydepth.core.model_io import device_of
from anydepth.core.stack import Stack
from anydepth.data.batching import with_text
from anydepth.data.loading import LoadedData
from anydepth.data.settings import InputSettings, processor_fingerprint
from anydepth.errors import CertificateError
from anydepth.exits.policies import AtDepth, Policy
from anydepth.exits.saving import EXIT_OUTPUT, save_exits
from anydepth.generation.calibration import SequenceGuarantee, calibrate
from anydepth.jobs.settings import CalibrateSettings
from anydepth.models.loaded import LoadedModel
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, sentence
from anydepth.storage.files import replacing_folder
from anydepth.storage.output_folder import PARTIAL


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LmCalibrateResult(Result):
    """The certified exits of a language model.

    Attributes:
        folder: where the calibrated model is.
        model: its name.
        data: name and split of the texts.
        policy: when a token exits; `AtDepth(L)` if nothing could be certified.
        promise: its guarantee.
        last: L.
        notes: what a reader of the result should know, one sentence each.
    """

    folder: Path
    model: str
    data: str
    policy: Policy
    promise: SequenceGuarantee
    last: int
    notes: tuple[str, ...]

    def line(self) -> str:
        """The model, its policy, and how many thresholds are certified."""
        certified = f"{self.promise.passed} of {len(self.promise.steps)} thresholds certified"
        return f"{self.model} on {self.data}: {self.policy!r}, {certified}"

    def tables(self) -> tuple[Table, ...]:
        """The tested thresholds, from strict to loose, with their failures."""
        steps, passed = self.promise.steps, self.promise.passed
        columns = (
            Column(head="threshold", cells=tuple(f"{step.threshold:g}" for step in steps)),
            Column(head="sequences that fail", cells=tuple(f"{step.failures:,}" for step in steps)),
            Column(head="tokens that differ", cells=tuple(f"{step.differing:.2%}" for step in steps), rank=2),
            Column(head="mean depth", cells=tuple(f"{step.depth:.2f}" for step in steps), rank=1),
            Column(
                head="",
                cells=tuple("certified" if place < passed else "not certified" for place in range(len(steps))),
                kind="text",
            ),
        )
        return (Table(title=f"{self.model} on {self.data}", columns=columns),)

    def sentences(self) -> tuple[str, ...]:
        """The guarantee."""
        guarantee = str(self.promise)
        return (sentence(guarantee),)

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        return {
            "model": self.model,
            "data": self.data,
            "generation": asdict(self.promise),
            "promise": str(self.promise),
            "last": self.last,
            "notes": self.notes,
        }


def calibrate_language_model(
    settings: CalibrateSettings,
    loaded: LoadedModel,
    rows: LoadedData,
    policy: Policy,
    folder: Path,
    progress: Progress | None,
) -> LmCalibrateResult:
    """Calibrate a language model's exits on texts, and save it with `exit.json`.

    Args:
        settings: levels, and how sequences are generated.
        loaded: the model.
        rows: texts; the start of each is a prompt.
        policy: of the kind wanted; without depths, two are tested.
        folder: the output folder; an interrupted calibration there goes on.
        progress: see `anydepth.jobs`.

    Raises:
        CertificateError: too few texts that are long enough.
    """
    stack = Stack(loaded.model, blocks=settings.blocks)
    notes = [*loaded.notes, *rows.notes]
    prompts = _prompts(loaded, with_text(rows, loaded, notes), settings.prompt_tokens, notes)
    # every tested depth costs a readout per token: two by default, at one and two thirds of the depth
    depths = policy.depths or sorted({max(1, stack.depth * part // 3) for part in (1, 2)})
    certified, guarantee = calibrate(
        loaded.model,
        prompts,
        replace(policy, depths=tuple(depths)),
        tolerance=settings.tolerance,
        confidence=settings.confidence,
        new_tokens=settings.new_tokens,
        share=settings.share,
        blocks=settings.blocks,
        keep=folder / PARTIAL,
        progress=progress,
    )
    stack.verify({"input_ids": prompts[0][None].to(device_of(loaded.model))})
    result = LmCalibrateResult(
        folder=folder,
        model=loaded.name,
        data=f"{rows.name} ({rows.split})",
        policy=certified or AtDepth(stack.depth),
        promise=guarantee,
        last=stack.depth,
        notes=(*notes, *guarantee.notes),
    )
    with replacing_folder(folder, EXIT_OUTPUT) as beside:
        save_exits(
            stack,
            result.policy,
            None,
            beside,
            name=loaded.name,
            processor=loaded.to_save,
            about=result.as_plain(),
            inputs=InputSettings(
                kind="text",
                processor=processor_fingerprint(loaded),
                max_length=settings.prompt_tokens,
                columns=(str(rows.columns.text),),
                device=device_of(loaded.model).type,
            ),
        )
        settings.save(beside)
    return result


def _prompts(loaded: LoadedModel, rows: LoadedData, tokens: int, notes: list[str]) -> list[torch.Tensor]:
    """The first tokens, (tokens,), of each text that has as many."""
    texts = list(rows.dataset[rows.columns.text])
    encoded = loaded.processor(texts, truncation=True, max_length=tokens)["input_ids"]
    prompts = [torch.tensor(ids) for ids in encoded if len(ids) == tokens]
    if not prompts:
        raise CertificateError(f"no text of '{rows.name}' has {tokens} tokens to be a prompt: ask for fewer")
    if short := len(encoded) - len(prompts):
        notes.append(f"{short:,} texts have fewer than {tokens} tokens and were left out")
    return prompts
