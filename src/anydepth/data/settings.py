"""Input settings of batches, and a fingerprint of the tokenizer or image processor, to save and compare."""

import hashlib
import json
from typing import Any

from anydepth.core.model_io import device_of
from anydepth.data.batching import Batches
from anydepth.data.input_settings import InputSettings
from anydepth.models.loaded import LoadedModel

# State that a fast tokenizer keeps of its last call.
_CALL_STATE = ("truncation", "padding")
# Fields of an image processor that do not affect its results.
_PROCESSOR_METADATA = (
    "processor_class",
    "_processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "auto_map",
    "device",
    "return_tensors",
    "transformers_version",
    "_name_or_path",
)
_PROBES = ("It was good, I'd say: 3 of 4.", "Ein zweiter Satz; ÄÖÜ é 漢字 😀\n\tand CamelCase_names 1234567890")


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
