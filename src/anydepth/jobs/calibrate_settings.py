"""Settings of a calibration: of any model, and those of a language model's sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

from anydepth.data.loading import DataSelection


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """How sequences are generated and compared with the full model's.

    Attributes:
        prompt_tokens: first tokens of each text, which are the prompt.
        new_tokens: tokens generated after each prompt.
        share: of these, what may differ from the full model's before a sequence counts as failed.
    """

    prompt_tokens: int = 32
    new_tokens: int = 64
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Model, data, and which exit policy to calibrate; see `anydepth.jobs` for the fields that are not here.

    Attributes:
        batch_size: samples of a forward pass; the measured costs are those of such batches.
        policy: a key of `anydepth.exits.policies.POLICIES`.
        depths: tested depths; None to choose them by what testing costs.
        tune: whether to choose temperatures and tested depths.
        writing: of a language model, which is calibrated against its own full depth.
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
