"""`EarlyExit`: a classifier that stops computing, sample by sample; its forward is in `exits/forward.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch, call_model, device_of, split_batch, to_device
from anydepth.core.patching import in_eval_mode
from anydepth.core.provenance import class_names, describe_config, stack_fingerprint, weights_stamp
from anydepth.core.stack import Stack
from anydepth.data.settings import InputSettings
from anydepth.errors import AnydepthError, DataError, ExportError, PolicyError, UnsupportedHead, one_line
from anydepth.exits.calibration import Calibration, calibrate, check_request
from anydepth.exits.costs import Costs
from anydepth.exits.exit_output import ExitOutput
from anydepth.exits.exit_scores import PolicyInputs, look
from anydepth.exits.forward import ExitForward
from anydepth.exits.policies import Policy
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.exits.prefix_slicing import PrefixSlicer
from anydepth.exits.saving import EXIT_OUTPUT, ExitFile, save_exits
from anydepth.progress import Progress
from anydepth.storage.files import replacing_folder

if TYPE_CHECKING:
    from anydepth.onnx.exporter import ExportResult

_CHANGED = "the model was changed after it was calibrated"


class EarlyExit:
    """A classifier that stops computing, for each sample by itself, as soon as a policy is satisfied.

    Blocks run one by one on the model's own arguments. A sample that exits takes its state, its mask and everything
    else of its own out of the batch, so the blocks after it do not run on it. Its logits are the readout at its exit
    depth, whatever else is in the batch.

    Args:
        model: a classifier with one prediction for each sample, or a `Stack` of one; with heads, each depth is read
            out by its own.
        policy: when a sample exits. `tested` are the depths at which it may.
        blocks: the dotted name of the list of blocks, for a model that has several.
        calibration: of the policy; see `calibrate`. Its certificate is gone once the model is changed.
        inputs: how the inputs of the calibration were made, if that is known; saved and exported with it.

    Raises:
        PolicyError: the policy tests a depth beyond L.
        UnsupportedHead: when called, a model that predicts for every position, or chooses no class.

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
        inputs: InputSettings | None = None,
    ) -> None:
        self.stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
        self.policy, self._calibration, self.inputs = policy, calibration, inputs
        self._calibrated = None if calibration is None or calibration.certificate is None else _Calibrated(self.stack)
        self._prepare()

    def _prepare(self) -> None:
        self._reader = PolicyReader(self.stack, self.policy)
        self._prefix_slicer = PrefixSlicer(self.stack)

    def __repr__(self) -> str:
        state = "not calibrated" if self._calibration is None else "calibrated"
        return f"EarlyExit({type(self.stack.model).__name__}, {self.policy!r}, {state})"

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the policy; without its certificate, and with a note on that, once the model was changed."""
        if self._calibration is None or self._calibrated is None or self._calibrated.still(self.stack):
            return self._calibration
        return self._calibration.without_certificate(f"{_CHANGED}: calibrate it again")

    @property
    def tested(self) -> tuple[int, ...]:
        """The depths below L at which samples may exit, ascending."""
        return self._reader.tested

    @property
    def exit_file(self) -> ExitFile:
        """What `exit.json` says of it."""
        return replace(ExitFile.of(self.stack, self.policy, self.calibration), inputs=self.inputs)

    @property
    def device(self) -> torch.device:
        """Where the model is; batches are moved there."""
        return device_of(self.stack.model)

    @property
    def config(self) -> Any:
        """The config of the model, if it is one of transformers; else an `AttributeError`."""
        return self.stack.model.config

    def to(
        self,
        *target: torch.device | torch.dtype | str | int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> EarlyExit:
        """Move the model, in place, to a device or dtype; returns itself.

        The certificate stays on another device, which may round otherwise, and is gone in another dtype.
        """
        named = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        for module in filter(None, (self.stack.model, self.stack.heads)):
            module.to(*target, **named)
        self._prepare()
        return self

    def eval(self) -> EarlyExit:
        """Set the model to evaluation mode, in which it answers in any case; returns itself."""
        return self.train(False)

    def train(self, mode: bool = True) -> EarlyExit:
        """Only `train(False)`, the same as `eval`: what trains is the model itself.

        Raises:
            PolicyError: `mode` is True.
        """
        if mode:
            raise PolicyError("early exit always answers in evaluation mode: train the model itself (stack.model)")
        self.stack.model.eval()
        return self

    def __call__(self, batch: Any = None, /, **inputs: Any) -> ExitOutput[Tensor]:
        """Logits and exit depths of a batch, given as one or by names; its labels, if it has any, are ignored."""
        if (batch is None) == (not inputs):
            came = "nothing" if batch is None else f"a batch and {', '.join(inputs)}"
            raise DataError(f"{came} came, expected a batch (exits(batch)), or its tensors by name (exits(**batch))")
        return self._run(inputs if batch is None else batch)

    def _run(self, batch: Any) -> ExitOutput[Tensor]:
        model = self.stack.model
        inputs = to_device(split_batch(batch, model).inputs, device_of(model))
        self._reader.prepare(inputs)
        with in_eval_mode(self.stack.model), torch.inference_mode(), _refusing_parts(model, inputs):
            return ExitForward(self._reader, self._prefix_slicer, inputs).run()

    def look(
        self,
        data: Iterable[Any],
        *,
        labels: bool = False,
        out: Path | None = None,
        progress: Progress | None = None,
    ) -> PolicyInputs:
        """Collect the policy inputs of all samples at all tested depths, in one pass without early exit.

        Batches are as `anydepth.trace` takes them, with labels if `labels`. The folder `out` keeps the rows of an
        interrupted pass, for the next one to go on from.
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
        """Calibrate the threshold of the policy: the loosest one that can be certified.

        Args:
            data: batches as `anydepth.trace` takes them, or their policy inputs from `look`; independent samples that
                were not trained on, drawn like those to come. Contents that repeat count once, and all rows must keep
                to the tolerance as well.
            tolerance: the maximum probability of a failure, in (0, 1).
            confidence: level of the certificate over the draw of the data, in (0, 1).
            against: "model": a failure is another prediction than the full model's. "labels": one that is wrong where
                the full model is right.
            costs: from `measure_costs`, to drop depths whose test costs more than it saves.
            tune: whether to choose temperatures, and with costs the tested depths, where the policy names none.
            seed: of the split into samples that tune, certify and are held out.
            progress: called with what is done, how much there is, and what it is.

        Returns:
            The same model with the calibrated policy, or with `AtDepth(L)` if no threshold could be certified; see its
            `calibration`.

        Raises:
            CertificateError: a level outside (0, 1), too few samples, no labels, or nothing to calibrate (`AtDepth`).
        """
        check_request(self.policy, tolerance=tolerance, confidence=confidence, against=against)
        if not isinstance(data, PolicyInputs):
            data = self.look(data, labels=against == "labels", progress=progress)
        policy, calibration = calibrate(
            self.policy,
            data,
            tolerance=tolerance,
            confidence=confidence,
            against=against,
            costs=costs,
            tune=tune,
            seed=seed,
            names=tuple(class_names(self.stack.model).values()),
        )
        calibrated = EarlyExit(self.stack, policy, calibration=calibration)
        calibrated._reader.example = self._reader.example
        return calibrated

    def save(self, folder: Path | str, *, processor: Any = None, about: dict[str, Any] | None = None) -> Path:
        """Write the model and `exit.json`, which holds the policy and its calibration.

        Args:
            folder: what an earlier call wrote there is replaced, and everything else stays.
            processor: the tokenizer or image processor to put beside the model.
            about: more to store, as values that JSON holds.

        Returns:
            The folder. A model of transformers is saved as by `save_pretrained`, any other as its state dict.

        Raises:
            PolicyError: the policy is of a kind of your own, or the model was changed after it was calibrated.
            TraceFileError: it cannot be written, or holds files of such names that are not of an earlier call.
        """
        if self._calibrated is not None and not self._calibrated.still(self.stack):
            raise PolicyError(f"{_CHANGED}: calibrate it again before it is saved")
        with replacing_folder(Path(folder), replace(EXIT_OUTPUT, alone="")) as beside:
            save_exits(
                self.stack, self.policy, self.calibration, beside, processor=processor, about=about, inputs=self.inputs
            )
        return Path(folder)

    def export(
        self,
        folder: Path | str,
        batch: Any = None,
        *,
        name: str | None = None,
        classes: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> ExportResult:
        """Write the model as ONNX graphs, with its guarantee; `anydepth.onnx.Router` runs them without torch.

        Args:
            folder: what an earlier export wrote there is replaced; a folder that holds anything else is refused.
            batch: any batch, to trace the graphs with; by default two samples of the first that this has seen.
            name: of the model; its own if None.
            classes: names of the classes; those of the model's config if left out.
            progress: called with what is done, how much there is, and what it is.

        Raises:
            ExportError: no batch came yet; and as `anydepth.onnx.export`.
        """
        from anydepth.onnx.exporter import export

        batch = self._reader.example if batch is None else batch
        if batch is None:
            raise ExportError("no batch came yet to trace the graphs with: give one (batch), or run one first")
        about: dict[str, Any] = {} if self.inputs is None else {"inputs": self.inputs.as_plain()}
        notes = () if (calibration := self.calibration) is None else (calibration.guarantee,)
        if calibration is not None and calibration.withheld is None:
            about["promise"] = calibration.guarantee
        result = export(
            self.stack, self.policy, batch, folder, name=name, classes=classes, about=about, progress=progress
        )
        return replace(result, notes=notes)

    @classmethod
    def load(cls, folder: Path | str, *, model: nn.Module | Stack | None = None) -> EarlyExit:
        """Read a model that `save` wrote.

        Args:
            folder: with `exit.json`, and with the model unless `model` is given.
            model: the one the policy was calibrated for, with its heads if it has them; needed if it is not of
                transformers. None to read it from the folder, on the CPU.

        Raises:
            TraceFileError: `exit.json` is missing, of another format, or was changed.
            PolicyError: the model is another than the one the policy was calibrated for: in its weights, their dtype,
                its depth or its config. One whose classes have other names is taken, without the certificate.
            ModelError: the folder holds no model that can be read.
        """
        saved = ExitFile.read(Path(folder))
        if model is None:
            model = saved.stack(Path(folder))
        stack = model if isinstance(model, Stack) else Stack(model, blocks=saved.model["blocks"])
        saved.require_same(stack)
        return cls(stack, saved.policy, calibration=saved.calibration_for(stack), inputs=saved.inputs)


@contextmanager
def _refusing_parts(model: nn.Module, inputs: Batch) -> Iterator[None]:
    """Context manager: what a model raises that runs on the whole batch, once samples have left it, is a refusal."""
    try:
        yield
    except (AnydepthError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of the model's own code
        call_model(model, inputs)  # what fails on the whole batch, too, is raised as it is
        raise UnsupportedHead(
            f"{type(model).__name__} does not go on with some of a batch's samples ({one_line(error)}): expected "
            "inputs that have one entry for each; exit with single samples (batches of 1), or truncate"
        ) from error


class _Calibrated:
    """What identifies a model as it was when it was calibrated."""

    def __init__(self, stack: Stack) -> None:
        self._fingerprint, self._stamp = stack_fingerprint(stack), weights_stamp(stack)
        self._config = describe_config(stack.model), class_names(stack.model)

    def still(self, stack: Stack) -> bool:
        """Whether it is still that model."""
        if (describe_config(stack.model), class_names(stack.model)) != self._config:
            return False
        stamp = weights_stamp(stack)
        if stamp == self._stamp and all(version >= 0 for *_, version in stamp):
            return True
        return stack_fingerprint(stack) == self._fingerprint
