"""How batches are made of rows, in a form that can be written down and compared."""

import hashlib
import json
from typing import Any

from anydepth.core.model_io import device_of
from anydepth.data.batching import Batches
from anydepth.data.input_settings import InputSettings
from anydepth.models.loaded import LoadedModel

# What a fast tokenizer remembers of its last call.
_OF_A_CALL = ("truncation", "padding")
# What an image processor says of itself, and not of what it does to images.
_OF_ITSELF = (
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


def settings_of(found: Batches) -> InputSettings:
    """How these batches are made."""
    loaded, columns = found.model, found.data.columns
    names = (columns.text, columns.pair) if loaded.kind == "text" else (columns.image,)
    return InputSettings(
        kind=loaded.kind,
        processor=processor_fingerprint(loaded),
        max_length=found.max_length,
        columns=tuple(name for name in names if name is not None),
        device=device_of(loaded.model).type,
    )


def processor_fingerprint(loaded: LoadedModel) -> str:
    """A hash of all that decides what a tokenizer or image processor gives for a text or an image.

    It follows from what they do, not from the bytes of their files, which say the same in several ways.
    """
    told = _of_tokenizer(loaded.processor) if loaded.kind == "text" else _of_pixels(loaded.processor)
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    encoded = {
        name: values
        for name, values in tokenizer(_PROBES[0], _PROBES[1], truncation=False).items()
        if name != "attention_mask"
    }
    alone = [tokenizer(probe, truncation=False)["input_ids"] for probe in _PROBES]
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        return {
            "rules": {name: rules[name] for name in rules if name not in _OF_A_CALL},
            "pair": encoded,
            "each": alone,
        }
    return {"class": type(tokenizer).__name__, "words": tokenizer.get_vocab(), "pair": encoded, "each": alone}


def _of_pixels(pixels: Any) -> dict[str, Any]:
    if pixels.processor is not None:
        kept = pixels.processor.to_dict()
        return {"channels": pixels.channels, **{name: kept[name] for name in kept if name not in _OF_ITSELF}}
    transform = pixels.transform  # a partial, of timm's transform or of a size
    return {"channels": pixels.channels, "what": transform.func.__name__, **transform.keywords}
