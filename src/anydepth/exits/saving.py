"""A calibrated policy on disk: `exit.json`, beside the model it was calibrated for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt64
from torch import nn

from anydepth.core.heads import HEADS_FILE, Heads
from anydepth.core.provenance import class_names, describe_config, describe_model, now, stack_fingerprint, versions
from anydepth.core.stack import Stack
from anydepth.data.settings import InputSettings
from anydepth.errors import AnydepthError, CertificateError, ModelError, PolicyError, TraceFileError, one_line
from anydepth.exits.calibration import Calibration
from anydepth.exits.policies import Policy, as_plain, from_plain
from anydepth.models.hub_errors import translated
from anydepth.models.loading import load
from anydepth.models.towers import with_saved_texts
from anydepth.models.zero_shot import ENTRY
from anydepth.stats.certificates import Certificate, Failures
from anydepth.storage.checksums import read_sealed, with_checksum
from anydepth.storage.files import plain, write_json
from anydepth.storage.output_folder import SETTINGS, OutputKind, settle

FILE = "exit.json"
_FORMAT = 2
_RENAMED = {"proved_failures": "held_out_failures", "proved_depth": "held_out_depth"}  # by 0.1 -> now
CURVE, REPORT, SAMPLES = "curve.json", "report.html", "samples.npy"
EXIT_OUTPUT = OutputKind(
    job="exit",
    mark=FILE,
    names=(CURVE, REPORT, SAMPLES, SETTINGS),
    alone="holds something else already",
    error=CertificateError,
)


@dataclass(frozen=True, kw_only=True)
class ExitFile:
    """Contents of `exit.json`.

    Attributes:
        policy: when a sample exits.
        calibration: of the policy; None if it was never calibrated.
        model: the model it is for: `anydepth.core.provenance.describe_model`, the dotted name of its classifier, its
            config and dtype.
        about: anything else that was stored: data, costs, notes.
        inputs: how the inputs of the calibration were made; None if unknown.
    """

    policy: Policy
    calibration: Calibration | None
    model: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    inputs: InputSettings | None = None

    @classmethod
    def of(cls, stack: Stack, policy: Policy, calibration: Calibration | None, name: str | None = None) -> ExitFile:
        """What `exit.json` says of a model, which has a name of its own where it was loaded by one."""
        described = describe_model(stack, name) | {
            "classifier": stack.classifier_path,
            "config": describe_config(stack.model),
            "dtype": _dtype_of(stack.model),
        }
        return cls(policy=policy, calibration=calibration, model=described)

    def write(self, folder: Path) -> None:
        """Write `exit.json`."""
        content = {
            "format": _FORMAT,
            "created": now(),
            "versions": versions(),
            "model": self.model,
            "policy": as_plain(self.policy),
            "calibration": plain(self.calibration),
            "inputs": None if self.inputs is None else self.inputs.as_plain(),
            "about": plain(self.about),
        }
        write_json(folder / FILE, with_checksum(content))

    @classmethod
    def read(cls, folder: Path) -> ExitFile:
        """Read `exit.json` of a folder; raises a `TraceFileError` if it is missing, of another format, or changed."""
        settle(folder)
        path = folder / FILE
        content = read_sealed(path, known=_FORMAT, again="calibrate again, its guarantee would not hold")
        try:
            policy, calibration = from_plain(content["policy"]), content["calibration"]
            if calibration is not None:
                certificate = calibration["certificate"]
                calibration["certificate"] = None if certificate is None else Certificate(**certificate)
                for name in _RENAMED.keys() & calibration.keys():
                    calibration[_RENAMED[name]] = calibration.pop(name)
                calibration["samples"] = tuple(calibration["samples"])
                calibration["classes"] = tuple(Failures(**failures) for failures in calibration["classes"])
                calibration["notes"] = tuple(calibration["notes"])
                calibration = Calibration(**calibration)
            inputs = None if content["inputs"] is None else InputSettings.from_plain(content["inputs"])
            model, about = content["model"], content["about"]
            return cls(policy=policy, calibration=calibration, model=model, about=about, inputs=inputs)
        except (KeyError, TypeError, AttributeError, AnydepthError) as problem:
            raise TraceFileError(f"{path} is no calibrated policy: {problem}; calibrate again") from None

    @staticmethod
    def calibrated_on(folder: Path, digests: UInt64[np.ndarray, " n"]) -> int:
        """How many samples, by `anydepth.passes.batches.digest`, are among those that calibrated; 0 if unknown."""
        if not (folder / SAMPLES).is_file():
            return 0
        try:
            return int(np.isin(digests, np.load(folder / SAMPLES, allow_pickle=False)).sum())
        except (ValueError, OSError, EOFError) as problem:
            raise TraceFileError(f"{folder / SAMPLES} is damaged ({one_line(problem)}): calibrate again") from None

    def source(self, folder: Path) -> str:
        """Where to load the model from: the folder, if transformers can read it there, else the model's own name."""
        return str(folder) if (folder / "config.json").is_file() else str(self.model["name"])

    def stack(self, folder: Path) -> Stack:
        """Load the model beside `exit.json`; raises a `ModelError` if transformers alone can read none there."""
        import transformers

        if ENTRY in self.model["config"]:
            model = with_saved_texts(load(str(folder), device="cpu"), self.model["config"]).model
            return Stack(model, blocks=self.model["blocks"])
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
        """Raise a `PolicyError` for another model than that of the thresholds, by depth, dtype, weights or config."""
        saved, name = self.model, f"'{self.model['name']}'"
        if stack.is_known and stack.depth != saved["depth"]:
            raise _other_model(f"a model of {saved['depth']} blocks, and this one has {stack.depth}")
        if (dtype := _dtype_of(stack.model)) != saved["dtype"]:
            raise _other_model(f"{saved['dtype']} weights, and these are {dtype}")
        if stack_fingerprint(stack) != saved["fingerprint"]:
            raise _other_model(f"{name} with other weights than this {saved['class']} has (its fingerprint differs)")
        before, config = saved["config"], describe_config(stack.model)
        changed = sorted(key for key in {*before, *config} if before.get(key) != config.get(key))
        if changed:
            differs = ", ".join(changed[:3])
            raise _other_model(f"{name} with another config than this {saved['class']} has ({differs})")

    def calibration_for(self, stack: Stack, inputs: InputSettings | None = None) -> Calibration | None:
        """The calibration of a model that `require_same` accepts; None if it never was calibrated.

        The certificate is withheld, with the reason, where its classes have other names or its inputs are made
        otherwise than in the calibration. `inputs` is None where the caller makes them.
        """
        if self.calibration is None or self.calibration.certificate is None:
            return self.calibration
        reasons = self._differences(stack, inputs)
        return self.calibration.without_certificate("; ".join(reasons)) if reasons else self.calibration

    def _differences(self, stack: Stack, inputs: InputSettings | None) -> list[str]:
        reasons, before, classes = [], self.model["classes"], class_names(stack.model)
        changed = [index for index in {*classes, *before} if classes.get(index) != before.get(index)]
        if changed:
            index = min(changed, key=int)
            name, old = classes.get(index), before.get(index)
            reasons.append(f"class {index} is called {name!r}, and was {old!r} when it was calibrated")
        if inputs is not None and self.inputs is None:
            reasons.append("it was calibrated in Python, on batches made there in an unknown way")
        elif inputs is not None and self.inputs is not None:
            reasons += self.inputs.differences(inputs)
        return reasons


def _other_model(difference: str) -> PolicyError:
    return PolicyError(f"the thresholds are for {difference}: calibrate it")


def _dtype_of(model: nn.Module) -> str:
    """Name of the dtype of the first floating-point weights."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return str(next(dtypes, torch.get_default_dtype())).removeprefix("torch.")


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

    Raises:
        PolicyError: the model has adapters, or heads and has seen no batch yet, so their place is unknown.
    """
    model = stack.model
    if stack.heads is not None and stack.classifier_path is None:
        raise PolicyError("the model has a head for each depth, and no batch has shown yet where it goes: run one")
    if hasattr(model, "peft_config"):
        raise PolicyError(f"{type(model).__name__} holds adapters: merge them (merge_and_unload) before it is saved")
    content = replace(ExitFile.of(stack, policy, calibration, name), about=about or {}, inputs=inputs)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)  # type: ignore[operator]  # a model of transformers
    else:
        from safetensors.torch import save_model

        save_model(model, str(folder / "model.safetensors"))
    if stack.heads is not None:
        stack.heads.save(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    content.write(folder)
