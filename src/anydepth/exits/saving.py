"""A calibrated policy on disk: `exit.json`, beside the model it was calibrated for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anydepth.core.heads import HEADS_FILE, Heads
from anydepth.core.provenance import class_names, describe_config, describe_model, now, stack_fingerprint, versions
from anydepth.core.stack import Stack
from anydepth.data.input_settings import InputSettings
from anydepth.errors import AnydepthError, CertificateError, ModelError, PolicyError, TraceFileError
from anydepth.exits.calibration import Calibration
from anydepth.exits.policies import Policy, as_plain, from_plain
from anydepth.models.hub_errors import translated
from anydepth.stats.certificates import Certificate, Failures
from anydepth.storage.checksums import content_hash, read_sealed
from anydepth.storage.files import plain, write_json
from anydepth.storage.output_folder import OutputKind, settle

FILE = "exit.json"
_FORMAT = 2
CURVE, REPORT = "curve.json", "report.html"
EXIT_OUTPUT = OutputKind(
    job="exit", mark=FILE, names=(CURVE, REPORT), alone="holds something else already", error=CertificateError
)


@dataclass(frozen=True)
class ExitFile:
    """What `exit.json` holds.

    Attributes:
        policy: when a sample has had enough.
        calibration: what is promised of it; None if it was never calibrated.
        model: what it is for: `anydepth.core.provenance.describe_model`, the dotted name of its classifier, its config
            and dtype.
        about: whatever else was written down: data, costs, notes.
        inputs: how the inputs were made that it was calibrated on; None if nobody told.
    """

    policy: Policy
    calibration: Calibration | None
    model: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    inputs: InputSettings | None = None

    @classmethod
    def of(
        cls,
        stack: Stack,
        policy: Policy,
        calibration: Calibration | None,
        *,
        name: str | None = None,
        about: dict[str, Any] | None = None,
        inputs: InputSettings | None = None,
    ) -> ExitFile:
        """What is to be written of a model and its policy.

        Raises:
            PolicyError: the model has heads and has seen no batch yet, so nobody knows where they go.
        """
        if stack.heads is not None and stack.classifier_path is None:
            raise PolicyError("the model has a head for each depth, and no batch has shown yet where it goes: run one")
        more = {
            "classifier": stack.classifier_path,
            "config": describe_config(stack.model),
            "dtype": _dtype_of(stack.model),
        }
        return cls(policy, calibration, describe_model(stack, name) | more, about or {}, inputs)

    def write(self, folder: Path) -> Path:
        """Write it; returns the file."""
        calibration = None if self.calibration is None else asdict(self.calibration)
        content = {
            "format": _FORMAT,
            "created": now(),
            "versions": versions(),
            "model": self.model,
            "policy": as_plain(self.policy),
            "calibration": plain(calibration),
            "inputs": None if self.inputs is None else self.inputs.as_plain(),
            "about": plain(self.about),
        }
        path = folder / FILE
        write_json(path, {**content, "checksum": content_hash(content)})
        return path

    @classmethod
    def read(cls, folder: Path) -> ExitFile:
        """Read what `write` wrote.

        Raises:
            TraceFileError: it is missing, of another format, or was changed since.
        """
        settle(folder)
        path = folder / FILE
        content = read_sealed(path, known=_FORMAT, again="calibrate again, what it promises would not hold")
        try:
            policy, calibration = from_plain(content["policy"]), content["calibration"]
            if calibration is not None:
                certificate = calibration["certificate"]
                calibration["certificate"] = None if certificate is None else Certificate(**certificate)
                calibration["samples"] = tuple(calibration["samples"])
                calibration["classes"] = tuple(Failures(**one) for one in calibration["classes"])
                calibration["notes"] = tuple(calibration["notes"])
                calibration = Calibration(**calibration)
            inputs = None if content["inputs"] is None else InputSettings.from_plain(content["inputs"])
            return cls(policy, calibration, content["model"], content["about"], inputs)
        except (KeyError, TypeError, AttributeError, AnydepthError) as problem:
            raise TraceFileError(f"{path} is no calibrated policy: {problem}; calibrate again") from None

    def source(self, folder: Path) -> str:
        """The name by which to load the model: the folder, if it lies there as transformers reads it, else its own."""
        return str(folder) if (folder / "config.json").is_file() else str(self.model["name"])

    def stack(self, folder: Path) -> Stack:
        """The model that lies beside the thresholds.

        Raises:
            ModelError: there is none that transformers alone can read.
        """
        import transformers

        kind: Any = getattr(transformers, self.model["class"], None)
        if not (folder / "config.json").is_file() or not hasattr(kind, "from_pretrained"):
            raise ModelError(
                f"'{folder}' holds no model of transformers' own but the weights of a {self.model['class']}: give the "
                "model itself, EarlyExit.load(folder, model=...)"
            )
        with translated(ModelError, "model", str(folder)):
            model = kind.from_pretrained(folder).eval()
        heads = None
        if (folder / HEADS_FILE).is_file():
            heads = Heads.load(folder, model.get_submodule(self.model["classifier"]), self.model["depth"])
        return Stack(model, blocks=self.model["blocks"], heads=heads)

    def require_same(self, stack: Stack) -> None:
        """See that a model is the one the thresholds are for.

        Raises:
            PolicyError: another depth, dtype or config, other weights, or heads where there were none.
        """
        if stack.depth != self.model["depth"]:
            raise PolicyError(
                f"the thresholds are for a model of {self.model['depth']} blocks, and this one has {stack.depth}: "
                "calibrate it"
            )
        if (dtype := _dtype_of(stack.model)) != self.model["dtype"]:
            raise PolicyError(
                f"the thresholds are for {self.model['dtype']} weights, and these are {dtype}: calibrate it"
            )
        if stack_fingerprint(stack) != self.model["fingerprint"]:
            raise PolicyError(
                f"the thresholds are for '{self.model['name']}' with other weights than this {self.model['class']} "
                "has (its fingerprint differs): calibrate it"
            )
        before, config = self.model["config"], describe_config(stack.model)
        changed = sorted(name for name in {*before, *config} if before.get(name) != config.get(name))
        if changed:
            raise PolicyError(
                f"the thresholds are for '{self.model['name']}' with another config than this {self.model['class']} "
                f"has ({', '.join(changed[:3])}): calibrate it"
            )

    def calibration_for(self, stack: Stack, inputs: InputSettings | None = None) -> Calibration | None:
        """What is promised of a model that `require_same` let pass.

        Args:
            stack: the model; if its classes are called otherwise, nothing is promised.
            inputs: how its inputs are made; None if the one who asks makes them.

        Returns:
            The calibration; without its certificate, and with the reason, where something is done otherwise than when
            it was calibrated. None if it never was.
        """
        if self.calibration is None or self.calibration.certificate is None:
            return self.calibration
        reasons = self._differences(stack, inputs)
        return self.calibration.without_certificate("; ".join(reasons)) if reasons else self.calibration

    def _differences(self, stack: Stack, inputs: InputSettings | None) -> list[str]:
        reasons, classes = [], class_names(stack.model)
        for index in sorted({*classes, *self.model["classes"]}, key=int):
            was, now = self.model["classes"].get(index), classes.get(index)
            if was != now:
                reasons.append(f"class {index} is called {now!r}, and was {was!r} when it was calibrated")
                break
        if inputs is not None and self.inputs is None:
            reasons.append("it was calibrated in Python, on batches made there, and nobody told how")
        elif inputs is not None and self.inputs is not None:
            reasons += self.inputs.differences(inputs)
        return reasons


def _dtype_of(model: nn.Module) -> str:
    """Of the first weights that are floating point."""
    found = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return str(next(found, torch.get_default_dtype())).removeprefix("torch.")


def save_exits(
    stack: Stack,
    policy: Policy,
    calibration: Calibration | None,
    folder: Path,
    *,
    name: str | None = None,
    processor: Any = None,
    about: dict[str, Any] | None = None,
    inputs: InputSettings | None = None,
) -> None:
    """Fill a folder with a model, its heads, its processor, and `exit.json`.

    A model of transformers is saved as by `save_pretrained`, any other as its state dict.
    """
    saved, model = ExitFile.of(stack, policy, calibration, name=name, about=about, inputs=inputs), stack.model
    if hasattr(model, "peft_config"):
        raise PolicyError(f"{type(model).__name__} holds adapters: merge them (merge_and_unload) before it is saved")
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)  # type: ignore[operator]  # a model of transformers
    else:
        from safetensors.torch import save_model

        save_model(model, str(folder / "model.safetensors"))
    if stack.heads is not None:
        stack.heads.save(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    saved.write(folder)
