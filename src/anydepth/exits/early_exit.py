"""A model that stops computing, for each sample by itself, as soon as a policy is satisfied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anydepth.core.model_io import split_batch
from anydepth.core.patching import in_eval_mode
from anydepth.core.provenance import class_names, describe_config, stack_fingerprint, weights_stamp
from anydepth.core.stack import Stack
from anydepth.errors import PolicyError
from anydepth.exits.calibration import Calibration, calibrate, check_request
from anydepth.exits.costs import Costs
from anydepth.exits.exit_scores import PolicyInputs, look
from anydepth.exits.forward import ExitForward, ExitOutput
from anydepth.exits.policies import Policy
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.exits.prefix_slicing import PrefixSlicer
from anydepth.exits.saving import EXIT_OUTPUT, ExitFile, save_exits
from anydepth.progress import Progress
from anydepth.storage.files import replacing_folder


class EarlyExit:
    """A model that stops computing, for each sample by itself, as soon as a policy is satisfied.

    Blocks run one by one on the model's own arguments. A sample that leaves takes its state, its mask and everything
    else of its own out of the batch, so the blocks after it really do not run on it. What it answers is what the
    readout of its depth answers, whoever else is in the batch.

    Args:
        model: a classifier that answers once for each sample, or a `Stack` of one; with heads, each depth is read out
            by its own.
        policy: when a sample has had enough. `tested` are the depths at which it asks.
        blocks: the dotted name of the list of blocks, for a model that has several.
        calibration: what is known of the policy; see `calibrate`. Its certificate is gone once the model is changed.

    Raises:
        PolicyError: the policy tests a depth beyond L.
        UnsupportedHead: when called, a model that answers for every position, or chooses no class.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth.exits.policies import AtDepth
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> exits = EarlyExit(ViTForImageClassification(config).eval(), AtDepth(2))
        >>> out = exits({"pixel_values": torch.rand(3, 1, 8, 8)})
        >>> tuple(out.logits.shape), out.depth.tolist(), out.blocks.tolist()
        ((3, 5), [2, 2, 2], [3, 3, 0, 0])
    """

    def __init__(
        self,
        model: nn.Module | Stack,
        policy: Policy,
        *,
        blocks: str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
        self.policy, self._calibration = policy, calibration
        self._calibrated = None if calibration is None or calibration.certificate is None else _Calibrated(self.stack)
        self._reader = PolicyReader(self.stack, policy)
        self._lanes = PrefixSlicer(self.stack)

    @property
    def calibration(self) -> Calibration | None:
        """What is known of the policy; without its certificate once the model was changed, and then it says so."""
        if self._calibration is None or self._calibrated is None or self._calibrated.still(self.stack):
            return self._calibration
        return self._calibration.without_certificate(
            "the model was changed after it was calibrated: calibrate it again"
        )

    @property
    def tested(self) -> tuple[int, ...]:
        """The depths below L at which samples may leave, ascending."""
        return self._reader.tested

    def __call__(self, batch: Any) -> ExitOutput:
        """Answer a batch; its labels, if it has any, are set aside."""
        inputs = split_batch(batch, self.stack.model).inputs
        self._reader.prepare(inputs)
        with in_eval_mode(self.stack.model), torch.inference_mode():
            return ExitForward(self._reader, self._lanes, inputs).run()

    def look(
        self,
        data: Iterable[Any],
        *,
        labels: bool = False,
        out: Path | None = None,
        progress: Progress | None = None,
    ) -> PolicyInputs:
        """See what every tested depth shows of every sample, in one pass that lets nobody go.

        Args:
            data: batches as `anydepth.trace` takes them.
            labels: whether they must carry labels.
            out: a folder in which an interrupted pass leaves what it has, for the next one to go on from.
            progress: called with what is done, how much there is, and what it is.
        """
        return look(self._reader, data, labels=labels, out=out, progress=progress)

    def calibrate(
        self,
        data: Iterable[Any] | PolicyInputs,
        *,
        tolerance: float = 0.01,
        confidence: float = 0.95,
        against: str = "model",
        costs: Costs | None = None,
        tune: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> EarlyExit:
        """Find how loose the policy may be with a guarantee.

        Args:
            data: batches as `anydepth.trace` takes them, or what `look` saw of them; independent samples that were not
                trained on, drawn like those to come.
            tolerance: the probability of a failure that must not be exceeded, in (0, 1).
            confidence: of that promise over the draw of the data, in (0, 1).
            against: "model": a failure is another answer than the full model's. "labels": one that is wrong where the
                full model is right.
            costs: from `measure_costs`, to leave out depths whose test costs more than it saves.
            tune: whether to choose temperatures, and with costs the tested depths, where the policy names none.
            seed: of the split into samples that tune, certify and prove.
            progress: called with what is done, how much there is, and what it is.

        Returns:
            The same model with the loosest policy that could be certified, or with `AtDepth(L)` if none could; what
            was found is its `calibration`.

        Raises:
            CertificateError: a level outside (0, 1), too few samples, no labels, or nothing to calibrate (`AtDepth`).
        """
        check_request(self.policy, tolerance=tolerance, confidence=confidence, against=against)
        seen = (
            data if isinstance(data, PolicyInputs) else self.look(data, labels=against == "labels", progress=progress)
        )
        policy, found = calibrate(
            self.policy,
            seen,
            tolerance=tolerance,
            confidence=confidence,
            against=against,
            costs=costs,
            tune=tune,
            seed=seed,
            names=tuple(class_names(self.stack.model).values()),
        )
        return EarlyExit(self.stack, policy, calibration=found)

    def save(self, folder: Path | str, *, processor: Any = None, about: dict[str, Any] | None = None) -> Path:
        """Write the model and `exit.json`, which holds the policy and what is promised of it.

        Args:
            folder: where. What an earlier call wrote there is replaced, and everything else stays.
            processor: the tokenizer or image processor to put beside the model.
            about: what else to write down, as values that JSON holds.

        Returns:
            The folder. A model of transformers is saved as by `save_pretrained`, any other as its state dict.

        Raises:
            PolicyError: the policy is of a kind of your own, or the model was changed after it was calibrated.
            TraceFileError: it cannot be written, or holds files of such names that are not of an earlier call.
        """
        if self._calibrated is not None and not self._calibrated.still(self.stack):
            raise PolicyError("the model was changed after it was calibrated: calibrate it again before it is saved")
        with replacing_folder(Path(folder), replace(EXIT_OUTPUT, alone="")) as beside:
            save_exits(self.stack, self.policy, self.calibration, beside, processor=processor, about=about)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str, *, model: nn.Module | Stack | None = None) -> EarlyExit:
        """Read what `save` wrote.

        Args:
            folder: with `exit.json`, and with the model unless that is given.
            model: the one the policy was calibrated for, with its heads if it has them; needed for one that is not of
                transformers. None to read it from the folder, on the CPU.

        Raises:
            TraceFileError: `exit.json` is missing, of another format, or was changed.
            PolicyError: the model is another than the one the policy was calibrated for: in its weights, their dtype,
                its depth or its config. One whose classes are called otherwise is taken, without the certificate.
            ModelError: the folder holds no model that can be read.
        """
        saved = ExitFile.read(Path(folder))
        stack = saved.stack(Path(folder)) if model is None else model
        stack = stack if isinstance(stack, Stack) else Stack(stack, blocks=saved.model["blocks"])
        saved.require_same(stack)
        return cls(stack, saved.policy, calibration=saved.calibration_for(stack))


class _Calibrated:
    """The model as it was when it was calibrated."""

    def __init__(self, stack: Stack) -> None:
        self._fingerprint, self._stamp = stack_fingerprint(stack), weights_stamp(stack)
        self._config = describe_config(stack.model), class_names(stack.model)

    def still(self, stack: Stack) -> bool:
        """Whether it is that model yet."""
        if (describe_config(stack.model), class_names(stack.model)) != self._config:
            return False
        stamp = weights_stamp(stack)
        if stamp == self._stamp and all(version >= 0 for *_, version in stamp):
            return True
        return stack_fingerprint(stack) == self._fingerprint
