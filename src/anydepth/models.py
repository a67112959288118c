"""What MODEL means on the command line: a hub id, a local folder, or `timm:NAME`.

Weights are safetensors, never pickles; code that comes with a checkpoint runs only if asked for; and no head is ever
made up: a checkpoint without a classifier is loaded as features, and says so.
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from anydepth import pixels
from anydepth.errors import ModelError, one_line
from anydepth.hub import translated

Task = Literal["text-classification", "image-classification", "token-classification", "causal-lm", "features"]
Kind = Literal["text", "image", "tensor"]

# The part of a class name that tells the task, and the class that loads it.
_TASKS: dict[str, tuple[Task, str]] = {
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForImageClassification": ("image-classification", "AutoModelForImageClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForCausalLM": ("causal-lm", "AutoModelForCausalLM"),
    "LMHeadModel": ("causal-lm", "AutoModelForCausalLM"),
}
_LOADERS: dict[Task, str] = {**dict(_TASKS.values()), "features": "AutoModel"}
_DTYPES = ("auto", "float32", "float16", "bfloat16")
# Never read by a forward pass in evaluation mode, and left out of many checkpoints.
_UNUSED_KEYS = ("mask_token",)
_TIMM = "timm:"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what is needed to feed it.

    Attributes:
        model: in evaluation mode, on its device.
        processor: the tokenizer of a text model, or `Pixels` of an image model; None if it takes tensors.
        kind: what the model takes.
        task: what it was trained to give.
        name: as the user gave it.
        classes: names of the classes in the classifier's order; empty where there is no classifier.
        max_length: most tokens the model takes; None if nothing says so.
        notes: what a reader of the results should know, one sentence each.
    """

    model: nn.Module
    processor: Any
    kind: Kind
    task: Task
    name: str
    classes: tuple[str, ...] = ()
    max_length: int | None = None
    notes: tuple[str, ...] = ()


def load(
    name: str,
    *,
    task: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    pretrained: bool = True,
) -> LoadedModel:
    """Load a model by name.

    Args:
        name: a local folder, a hub id, `timm:NAME`, or `timm:FOLDER` for a checkpoint timm saved.
        task: one of `Task`; read from the checkpoint's `architectures` if None.
        device: as torch names it; if None the first there is of CUDA, MPS and the CPU.
        dtype: "float32", "float16", "bfloat16", or "auto" for the checkpoint's own.
        trust_remote_code: run the Python code that comes with the checkpoint.
        pretrained: False for random weights of the same architecture (a baseline); seed torch beforehand.

    Returns:
        The model in evaluation mode with its tokenizer or image transform.

    Raises:
        ModelError: the name leads nowhere, or the weights cannot be used.

    Example:
        >>> load("no/such/folder/here")
        Traceback (most recent call last):
        anydepth.errors.ModelError: no folder 'no/such/folder/here', and a hub id has at most one '/'
    """
    if task is not None and task not in get_args(Task):
        raise ModelError(f"unknown task '{task}', expected one of {', '.join(get_args(Task))}")
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype '{dtype}', expected one of {', '.join(_DTYPES)}")
    place = _device(device)
    if name.startswith(_TIMM):
        loaded = _load_timm(name, cast(Task | None, task), dtype, pretrained)
    else:
        _check_name(name, pretrained)
        with translated(ModelError, "model", name), _quiet():
            loaded = _load_transformers(name, cast(Task | None, task), dtype, trust_remote_code, pretrained)
    loaded.model.to(place).eval()
    return loaded


# --- transformers ---------------------------------------------------------------------------------------------------


def _load_transformers(
    name: str, task: Task | None, dtype: str, trust_remote_code: bool, pretrained: bool
) -> LoadedModel:
    from transformers import AutoConfig

    source = str(Path(name).expanduser())
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"'{name}' brings its own Python code: read it, and if you trust it allow it with --trust-remote-code"
            ) from error
        raise
    found, why = _task(config)
    notes = [why] if why and task is None else []
    wanted = found if task is None else task
    checkpoint = _Checkpoint(source, config, dtype, trust_remote_code)
    if pretrained:
        model, wanted = checkpoint.load(wanted, notes, strict=task is not None)
    else:
        model = checkpoint.random(wanted)
        notes.append("the weights are random, not the checkpoint's")
    kind: Kind = "image" if model.main_input_name == "pixel_values" else "text"
    make = _image_processor if kind == "image" else _tokenizer
    processor = make(source, model, trust_remote_code, notes)
    return LoadedModel(
        model=model,
        processor=processor,
        kind=kind,
        task=wanted,
        name=name,
        classes=_classes(config) if wanted.endswith("classification") else (),
        max_length=_max_length(model, processor) if kind == "text" else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Checkpoint:
    name: str
    config: Any
    dtype: str
    trust_remote_code: bool

    def load(self, task: Task, notes: list[str], strict: bool) -> tuple[Any, Task]:
        """The model for `task`, or its features if the checkpoint has no head for it (an error if strict)."""
        model, missing = self._weights(task)
        if task != "features":
            prefix = model.base_model_prefix + "."
            if not any(not key.startswith(prefix) or "pooler" in key for key in missing):
                self._refuse(missing)
                return model, task
            if strict:
                raise ModelError(f"'{self.name}' has no trained head for {task}: its weights lack {_names(missing)}")
            notes.append(f"loaded as features: the checkpoint lacks the weights of its head ({_names(missing)})")
            model, missing = self._weights("features")
        self._refuse({key for key in missing if "pooler" not in key})
        if missing:
            notes.append(f"the checkpoint has no pooler: {_names(missing)} are random and mean nothing")
        return model, "features"

    def random(self, task: Task) -> Any:
        """The architecture with freshly drawn weights."""
        dtype = "float32" if self.dtype == "auto" else self.dtype
        return self._loader(task).from_config(
            self.config, dtype=getattr(torch, dtype), trust_remote_code=self.trust_remote_code
        )

    def _weights(self, task: Task) -> tuple[Any, set[str]]:
        model, info = self._loader(task).from_pretrained(
            self.name,
            config=self.config,
            dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=self.trust_remote_code,
        )
        return model, {key for key in info["missing_keys"] if not key.endswith(_UNUSED_KEYS)}

    def _loader(self, task: Task) -> Any:
        import transformers

        return getattr(transformers, _LOADERS[task])

    def _refuse(self, missing: Set[str]) -> None:
        if missing:
            raise ModelError(
                f"'{self.name}' is incomplete: its weights lack {_names(missing)}, and would have been made up"
            )


def _task(config: Any) -> tuple[Task, str | None]:
    """The task a checkpoint was saved for, and a note where it is one that is read as features."""
    architectures = config.architectures or []
    for architecture in architectures:
        for part, (task, _) in _TASKS.items():
            if part in architecture:
                return task, None
    head = next((a for a in architectures if "For" in a), None)
    return "features", head and f"{head} is loaded as features: it has no choice among classes for a sample"


def _tokenizer(name: str, model: Any, trust_remote_code: bool, notes: list[str]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"the tokenizer of '{name}' cannot be loaded: {one_line(error)}") from error
    # Where the files are missing, transformers gives a tokenizer that knows nothing but its special tokens.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"'{name}' has no tokenizer: save it beside the model with tokenizer.save_pretrained")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of '{name}' has neither a padding nor an end token: set its pad_token")
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"the tokenizer has no padding token: {tokenizer.eos_token} fills, and is masked out")
    if getattr(model.config, "pad_token_id", None) is None:
        # In memory only, for a decoder that finds its last token by it. The folder on disk keeps its config.
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _image_processor(name: str, model: Any, trust_remote_code: bool, notes: list[str]) -> pixels.Pixels:
    from transformers import AutoImageProcessor

    channels = getattr(model.config, "num_channels", 3)
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        size = getattr(model.config, "image_size", None)
        if size is None:
            raise ModelError(
                f"'{name}' has no image processor and its config no image_size: {one_line(error)}"
            ) from error
        height, width = (size, size) if isinstance(size, int) else size
        notes.append(
            f"no image processor beside the model: images are resized to {height} × {width}, scaled to [0, 1], "
            "then (x - 0.5) / 0.5"
        )
        return pixels.plain((height, width), channels)
    return pixels.from_transformers(processor, channels)


def _classes(config: Any) -> tuple[str, ...]:
    names = config.id2label
    return tuple(str(names[index]) for index in sorted(names))


def _max_length(model: Any, processor: Any) -> int | None:
    """Most tokens the model takes: what its positions hold, and what its tokenizer says."""
    limits = [processor.model_max_length] if processor.model_max_length < 10**9 else []
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _reserved_positions(model, positions))
    return min(limits, default=None)


def _reserved_positions(model: nn.Module, positions: int) -> int:
    """RoBERTa and its kin count positions from the padding index + 1, so their table holds fewer than it says."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in path and module.num_embeddings == positions:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


# --- timm -----------------------------------------------------------------------------------------------------------


def _load_timm(name: str, task: Task | None, dtype: str, pretrained: bool) -> LoadedModel:
    if task not in (None, "image-classification", "features"):
        raise ModelError(f"'{name}' is an image model, and {task} is a task of text models")
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"'{name}' needs timm and torchvision: pip install 'anydepth[timm]'") from error
    architecture = name.removeprefix(_TIMM)
    if architecture and Path(architecture).is_dir():
        _check_folder(Path(architecture), pretrained)
        architecture, overlay = f"local-dir:{architecture}", None
    else:
        _check_timm_name(architecture, pretrained)
        overlay = {"hf_hub_filename": "model.safetensors"}  # timm would fall back to a pickle otherwise
    head = {"num_classes": 0} if task == "features" else {}
    with translated(ModelError, "model", name):
        model = timm.create_model(
            architecture, pretrained=pretrained, pretrained_cfg_overlay=overlay if pretrained else None, **head
        )
    if dtype != "auto":
        model.to(getattr(torch, dtype))
    if task == "image-classification" and not model.num_classes:
        raise ModelError(f"'{name}' has no classifier: leave the task out to read its features")
    return LoadedModel(
        model=model,
        processor=pixels.from_timm(model),
        kind="image",
        task="image-classification" if model.num_classes else "features",
        name=name,
        classes=tuple(model.pretrained_cfg.get("label_names") or _generic(model.num_classes)),
        notes=() if pretrained else ("the weights are random, not the checkpoint's",),
    )


def _generic(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))


def _check_timm_name(architecture: str, pretrained: bool) -> None:
    import difflib

    import timm

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ModelError(f"timm has no model '{architecture}'" + (f": did you mean {', '.join(near)}?" if near else ""))
    if pretrained:
        with translated(ModelError, "model", _TIMM + architecture):
            config = timm.get_pretrained_cfg(architecture)
        if config is None or not config.hf_hub_id:
            raise ModelError(
                f"timm has no safetensors weights for '{architecture}': take a name with weights on the hub"
            )


# --- shared ---------------------------------------------------------------------------------------------------------


def _check_name(name: str, pretrained: bool) -> None:
    """Refuse early what can be seen without loading: a path that leads nowhere, a folder that is no model."""
    path = Path(name).expanduser()
    if not name:
        raise ModelError("no model named: expected a folder, a hub id or timm:NAME")
    if path.is_file():
        raise ModelError(f"'{name}' is a file, expected the folder of a model, a hub id or timm:NAME")
    if path.is_dir():
        _check_folder(path, pretrained)
    elif name.startswith((".", "~", "/")) or "\\" in name:
        raise ModelError(f"no folder '{name}'")
    elif name.count("/") > 1:
        raise ModelError(f"no folder '{name}', and a hub id has at most one '/'")


def _check_folder(folder: Path, pretrained: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"'{folder}' is no model: it holds no config.json")
    if not pretrained or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"the weights in '{folder}' are pickles ({pickles[0]}), which can run code when loaded: "
            "save them as safetensors, as save_pretrained does"
        )
    raise ModelError(f"'{folder}' holds no weights (*.safetensors)")


def _device(name: str | None) -> torch.device:
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device '{name}' cannot be used here: {one_line(error)}") from error
    return device


def _names(keys: Set[str]) -> str:
    shown = sorted(keys)[:3]
    return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' tables about missing weights, which are said as notes or errors here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
