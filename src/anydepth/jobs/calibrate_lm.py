"""One calibration of a language model, from names to a finished folder: what `anydepth exit` does with one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anydepth.core.model_io import device_of
from anydepth.core.stack import Stack
from anydepth.data.batching import with_text
from anydepth.data.input_settings import InputSettings
from anydepth.data.loading import LoadedData
from anydepth.data.settings import processor_fingerprint
from anydepth.errors import CertificateError
from anydepth.exits.policies import AtDepth, Policy
from anydepth.exits.saving import EXIT_OUTPUT, save_exits
from anydepth.generation.calibration import SequenceGuarantee, calibrate
from anydepth.models.loaded import LoadedModel
from anydepth.progress import Progress
from anydepth.storage.files import replacing_folder
from anydepth.storage.output_folder import PARTIAL


@dataclass(frozen=True)
class SequenceSettings:
    """How sequences are written and held against each other.

    Attributes:
        prompt_tokens: of each text, those that are the prompt.
        new_tokens: written after each.
        share: of them, what may differ from the full model's before a sequence counts as failed.
    """

    prompt_tokens: int = 32
    new_tokens: int = 64
    share: float = 0.0


@dataclass(frozen=True)
class LmCalibrateResult:
    """What the calibration of a language model came to.

    Attributes:
        folder: where the calibrated model is.
        model: what was calibrated.
        data: on what, with the split.
        policy: when a token leaves; `AtDepth(L)` if nothing could be certified.
        promise: what is promised of it.
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

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        return {
            "model": self.model,
            "data": self.data,
            "generation": self.promise.as_plain(),
            "promise": str(self.promise),
            "last": self.last,
            "notes": self.notes,
        }


def promise_named(
    loaded: LoadedModel,
    rows: LoadedData,
    policy: Policy,
    folder: Path,
    *,
    writing: SequenceSettings,
    tolerance: float,
    confidence: float,
    blocks: str | None = None,
    progress: Progress | None = None,
) -> LmCalibrateResult:
    """Calibrate a language model's exits on texts, and save it with `exit.json`.

    Args:
        loaded: the model.
        rows: texts; the start of each is a prompt.
        policy: of the kind wanted; without depths, two are tested.
        folder: to write; an interrupted calibration there goes on.
        writing: how sequences are written.
        tolerance: the probability of a sequence that fails which must not be exceeded.
        confidence: of that promise.
        blocks: see `anydepth.Stack`.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        CertificateError: too few texts that are long enough.
    """
    stack = Stack(loaded.model, blocks=blocks)
    notes = [*loaded.notes, *rows.notes]
    prompts = _prompts(loaded, with_text(rows, loaded, notes), writing.prompt_tokens, notes)
    # each test asks the head: two, at one and two thirds of the depth, unless told otherwise
    depths = policy.depths or sorted({max(1, stack.depth * part // 3) for part in (1, 2)})
    found, promise = calibrate(
        loaded.model,
        prompts,
        replace(policy, depths=tuple(depths)),
        tolerance=tolerance,
        confidence=confidence,
        new_tokens=writing.new_tokens,
        share=writing.share,
        blocks=blocks,
        keep=folder / PARTIAL,
        progress=progress,
    )
    stack.verify({"input_ids": prompts[0][None].to(device_of(loaded.model))})
    result = LmCalibrateResult(
        folder,
        loaded.name,
        f"{rows.name} ({rows.split})",
        found or AtDepth(stack.depth),
        promise,
        stack.depth,
        (*notes, *promise.notes),
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
                max_length=writing.prompt_tokens,
                columns=(str(rows.columns.text),),
                device=device_of(loaded.model).type,
            ),
        )
    return result


def _prompts(loaded: LoadedModel, rows: LoadedData, tokens: int, notes: list[str]) -> list[torch.Tensor]:
    """The first tokens of each text that has as many."""
    texts = list(rows.dataset[rows.columns.text])
    ids = loaded.processor(texts, truncation=True, max_length=tokens)["input_ids"]
    long = [torch.tensor(one) for one in ids if len(one) == tokens]
    if not long:
        raise CertificateError(f"no text of '{rows.name}' has {tokens} tokens to be a prompt: ask for fewer")
    if short := len(ids) - len(long):
        notes.append(f"{short:,} texts have fewer than {tokens} tokens and were left out")
    return long
