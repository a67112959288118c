"""A calibrated policy on disk: `exit.json`, beside the model it was calibrated for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anydepth.certificates import Certificate
from anydepth.errors import AnydepthError, CertificateError, ModelError, PolicyError, TraceFileError
from anydepth.exits.calibration import Calibration
from anydepth.exits.policies import Policy, as_plain, from_plain
from anydepth.heads import HEADS_FILE, Heads
from anydepth.hub import translated
from anydepth.intact import read_sealed, seal
from anydepth.outputs import OutputKind, settle
from anydepth.provenance import describe_model, now, versions
from anydepth.stack import Stack
from anydepth.store import write_json

FILE = "exit.json"
_FORMAT = 1
CURVE, REPORT = "curve.json", "report.html"
EXIT_OUTPUT = OutputKind(
    job="exit", mark=FILE, names=(CURVE, REPORT), alone="holds something else already", error=CertificateError
)


@dataclass(frozen=True)
class Saved:
    """What `exit.json` holds.

    Attributes:
        policy: when a sample has had enough.
        calibration: what is promised of it; None if it was never calibrated.
        model: what it is for: `anydepth.provenance.describe_model`, and the dotted name of its classifier.
        about: whatever else was written down: data, costs, notes.
    """

    policy: Policy
    calibration: Calibration | None
    model: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        stack: Stack,
        policy: Policy,
        calibration: Calibration | None,
        *,
        name: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> Saved:
        """What is to be written of a model and its policy.

        Raises:
            PolicyError: the model has heads and has seen no batch yet, so nobody knows where they go.
        """
        if stack.heads is not None and stack.classifier_path is None:
            raise PolicyError("the model has a head for each depth, and no batch has shown yet where it goes: run one")
        return cls(
            policy, calibration, describe_model(stack, name) | {"classifier": stack.classifier_path}, about or {}
        )

    def write(self, folder: Path) -> Path:
        """Write it; returns the file."""
        calibration = None if self.calibration is None else asdict(self.calibration)
        content = {
            "format": _FORMAT,
            "created": now(),
            "versions": versions(),
            "model": self.model,
            "policy": as_plain(self.policy),
            "calibration": calibration,
            "about": self.about,
        }
        path = folder / FILE
        write_json(path, {**content, "checksum": seal(content)})
        return path

    @classmethod
    def read(cls, folder: Path) -> Saved:
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
                calibration = Calibration(**calibration)
            return cls(policy, calibration, content["model"], content["about"])
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
            PolicyError: another depth, other weights, or heads where there were none.
        """
        if stack.depth != self.model["depth"]:
            raise PolicyError(
                f"the thresholds are for a model of {self.model['depth']} blocks, and this one has {stack.depth}: "
                "calibrate it"
            )
        if describe_model(stack)["fingerprint"] != self.model["fingerprint"]:
            raise PolicyError(
                f"the thresholds are for '{self.model['name']}' with other weights than this {self.model['class']} "
                "has (its fingerprint differs): calibrate it"
            )


def save_exits(
    stack: Stack,
    policy: Policy,
    calibration: Calibration | None,
    folder: Path,
    *,
    name: str | None = None,
    processor: Any = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Fill a folder with a model, its heads, its processor, and `exit.json`.

    A model of transformers is saved as by `save_pretrained`, any other as its state dict.
    """
    saved, model = Saved.of(stack, policy, calibration, name=name, about=about), stack.model
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
