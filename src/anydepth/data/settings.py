"""Settings of the inputs a policy was calibrated on, for which its certificate holds, to save and compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anydepth.core.model_io import device_of
from anydepth.data.batching import Batches
from anydepth.models.loaded import LoadedModel

# State that a fast tokenizer keeps of its last call.
_CALL_STATE = ("truncation", "padding")
# Fields of an image processor that do not affect its results.
_PROCESSOR_METADATA = (
    *("processor_class", "_processor_class", "image_processor_type", "feature_extractor_type", "auto_map"),
    *("device", "return_tensors", "transformers_version", "_name_or_path"),
)
_PROBES = ("It was good, I'd say: 3 of 4.", "Ein zweiter Satz; ÄÖÜ é 漢字 😀\n\tand CamelCase_names 1234567890")


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Settings by which rows of data become model inputs.

    Attributes:
        kind: "text" or "image".
        processor: a hash of what the tokenizer or image processor does; see `processor_fingerprint`.
        max_length: tokens at which texts are truncated; None for images.
        columns: the columns that are read: of texts one, or two in order.
        device: the kind of device. Another one rounds differently, which is reported and changes no guarantee.
    """

    kind: str
    processor: str
    max_length: int | None
    columns: tuple[str, ...]
    device: str

    def as_plain(self) -> dict[str, Any]:
        """The settings as values for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> InputSettings:
        """The settings that `as_plain` wrote."""
        return cls(**{**plain, "columns": tuple(plain["columns"])})

    def differences(self, now: InputSettings) -> tuple[str, ...]:
        """Differences from the settings in use now, one clause each: with any, the certificate does not hold."""
        differences = []
        if now.processor != self.processor:
            what = "tokenizer" if self.kind == "text" else "image processor"
            differences.append(f"the {what} is another than when it was calibrated")
        if now.max_length != self.max_length:
            differences.append(
                f"texts are cut at {now.max_length} tokens, and were at {self.max_length} when it was calibrated"
            )
        if now.columns != self.columns:
            new, old = (" with ".join(f"'{name}'" for name in columns) for columns in (now.columns, self.columns))
            differences.append(f"it reads {new} of the data, and read {old} when it was calibrated")
        return tuple(differences)


def settings_of(batches: Batches) -> InputSettings:
    """The input settings of batches."""
    loaded, columns = batches.model, batches.data.columns
    names = (columns.text, columns.pair) if loaded.kind == "text" else (columns.image,)
    return InputSettings(
        kind=loaded.kind,
        processor=processor_fingerprint(loaded),
        max_length=batches.max_length,
        columns=tuple(name for name in names if name is not None),
        device=device_of(loaded.model).type,
    )


def processor_fingerprint(loaded: LoadedModel) -> str:
    """A hash of everything that affects the results of a tokenizer or image processor.

    It follows from what they do, not from the bytes of their files, which say the same in several ways.
    """
    describe = _describe_tokenizer if loaded.kind == "text" else _describe_pixels
    text = json.dumps(describe(loaded.processor), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    pair = dict(tokenizer(*_PROBES, truncation=False))
    pair.pop("attention_mask", None)
    probes = {"pair": pair, "each": [tokenizer(probe, truncation=False)["input_ids"] for probe in _PROBES]}
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        return {"rules": {name: rules[name] for name in rules if name not in _CALL_STATE}, **probes}
    return {"class": type(tokenizer).__name__, "words": tokenizer.get_vocab(), **probes}


def _describe_pixels(pixels: Any) -> dict[str, Any]:
    if pixels.processor is not None:
        fields = pixels.processor.to_dict()
        return {"channels": pixels.channels, **{key: fields[key] for key in fields if key not in _PROCESSOR_METADATA}}
    transform = pixels.transform  # a partial, of timm's transform or of a size
    return {"channels": pixels.channels, "what": transform.func.__name__, **transform.keywords}
