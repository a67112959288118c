"""Load models by name: a hub id, a local folder, or `timm:NAME`.

Weights are safetensors, never pickles; code that comes with a checkpoint runs only on request; and no head is ever
random: a checkpoint without a classifier is loaded as features, with a note.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anydepth.core.heads import HEADS_FILE, Heads
from anydepth.core.model_io import device_of, first_samples, to_device
from anydepth.core.stack import Stack
from anydepth.errors import ModelError, choose, listed, one_line
from anydepth.models import image_transform as pixels
from anydepth.models.hub_errors import HUB_ID, quiet, translated
from anydepth.models.input_length import max_input_length
from anydepth.models.label_names import are_numbers, are_placeholders, match_names
from anydepth.models.loaded import Kind, LoadedModel, Task, check_folder
from anydepth.models.tasks import check_task, loader_of, task_of
from anydepth.models.timm import PREFIX as TIMM
from anydepth.models.timm import load_timm
from anydepth.passes.batches import as_batch
from anydepth.storage.output_folder import settle
from anydepth.storage.paths import entry_at, local_path

__all__ = ["LoadedModel", "Task", "check_name", "config_of", "load", "stack_of"]

_DTYPES = ("auto", "float32", "float16", "bfloat16")
# Never read by a forward pass in evaluation mode, and left out of many checkpoints.
_UNUSED_KEYS = ("mask_token",)


def load(
    name: str,
    *,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    pretrained: bool = True,
) -> LoadedModel:
    """Load a model by name.

    Args:
        name: a local folder, a hub id, `timm:NAME`, or `timm:FOLDER` for a checkpoint timm saved.
        task: one of `Task`; read from the checkpoint's `architectures` if None.
        classes: for training only: names of the classes of the classifier to train; needs a task. A checkpoint that
            has no classifier, or one for another number of classes, is given a new one with random weights: seed torch
            beforehand.
        device: as torch names it; if None the first available of CUDA, MPS and the CPU.
        dtype: "float32", "float16", "bfloat16", or "auto" for the checkpoint's own.
        trust_remote_code: run the Python code that comes with the checkpoint.
        pretrained: False for random weights of the same architecture; seed torch beforehand.

    Returns:
        The model in evaluation mode with its tokenizer or image transform.

    Raises:
        ModelError: the name leads nowhere, or the weights cannot be used.

    Example:
        >>> load("no/such/folder/here")
        Traceback (most recent call last):
        anydepth.errors.ModelError: no folder 'no/such/folder/here', and a hub id has at most one '/'
    """
    wanted = None if task is None else check_task(task)
    choose(dtype, _DTYPES, "dtype", ModelError)
    place = _device(device)
    if name.startswith(TIMM):
        if classes is not None:
            raise ModelError(
                f"'{name}' is timm's, which makes classifiers itself: timm.create_model(..., num_classes=C)"
            )
        loaded = load_timm(name, wanted, dtype, pretrained)
    else:
        check_name(name, pretrained=pretrained)
        from transformers.utils import logging

        with translated(ModelError, "model", name), quiet(logging):
            config = config_of(name, trust_remote_code=trust_remote_code)
            checkpoint = _Checkpoint(
                name=str(local_path(name)), config=config, dtype=dtype, trust_remote_code=trust_remote_code
            )
            loaded = _load_transformers(name, wanted, checkpoint, pretrained, classes)
    loaded.model.to(place).eval()
    return loaded


def stack_of(loaded: LoadedModel, batches: Iterable[Any], *, blocks: str | None = None) -> Stack:
    """A loaded model as a `Stack` that knows its blocks, with the classifiers that were trained for each depth, if any.

    Only the first of the batches is read, and only if it is to show which modules are the blocks, or if there are such
    classifiers, which raise a `ModelError` if they do not fit the model. `blocks` is the dotted name of the list of
    blocks, for a model that has several.
    """
    stack = Stack(loaded.model, blocks=blocks)
    if loaded.heads is None and stack.is_known:
        return stack
    batch = to_device(as_batch(next(iter(batches)), 0, loaded.model).inputs, device_of(loaded.model))
    if loaded.heads is None:
        stack.verify(batch)
        return stack
    few = first_samples(batch, 2)
    heads = Heads.load(loaded.heads, stack.classifier(few), stack.depth)
    return Stack(loaded.model, blocks=blocks, heads=heads)


def config_of(name: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a checkpoint of transformers, without its weights; a `ModelError` if none can be read."""
    from transformers import AutoConfig

    with translated(ModelError, "model", name):
        try:
            return AutoConfig.from_pretrained(str(local_path(name)), trust_remote_code=trust_remote_code)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise ModelError(
                    f"'{name}' brings its own Python code: read it, and if you trust it allow it (trust_remote_code)"
                ) from error
            raise


def _load_transformers(
    name: str, task: Task | None, checkpoint: "_Checkpoint", pretrained: bool, classes: Sequence[str] | None
) -> LoadedModel:
    own_task, note = task_of(checkpoint.config)
    notes = [note] if note and task is None else []
    wanted = own_task if task is None else task
    if classes is not None:
        if not wanted.endswith("classification"):
            raise ModelError(f"a classifier of {len(classes)} classes is no part of {wanted}: name a task that has one")
        checkpoint.choose_among(classes, trained=pretrained and own_task == wanted, notes=notes)
    if not pretrained:
        model = checkpoint.random(wanted)
        notes.append("the weights are random, not the checkpoint's")
    elif classes is not None:
        model = checkpoint.load_to_train(wanted, notes)
    else:
        model, wanted = checkpoint.load(wanted, notes, strict=task is not None)
    kind: Kind = "image" if model.main_input_name == "pixel_values" else "text"
    make = image_processor_of if kind == "image" else tokenizer_of
    processor = make(checkpoint.name, model, checkpoint.trust_remote_code, notes)
    folder = Path(checkpoint.name)
    return LoadedModel(
        model=model,
        processor=processor,
        kind=kind,
        task=wanted,
        name=name,
        classes=classes_of(checkpoint.config) if wanted.endswith("classification") else (),
        max_length=max_input_length(model, processor) if kind == "text" else None,
        heads=folder if pretrained and wanted != "features" and (folder / HEADS_FILE).is_file() else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    name: str
    config: Any
    dtype: str
    trust_remote_code: bool

    def load(self, task: Task, notes: list[str], strict: bool) -> tuple[Any, Task]:
        """The model for `task`, or its features if the checkpoint has no head for it (an error if strict)."""
        model, missing = self._weights(task)
        if task != "features":
            if not _head_keys(missing, model):
                self._require_complete(missing)
                return model, task
            keys = listed(sorted(missing), 3)
            if strict:
                raise ModelError(f"'{self.name}' has no trained head for {task}: its weights lack {keys}")
            notes.append(f"loaded as features: the checkpoint lacks the weights of its head ({keys})")
            model, missing = self._weights("features")
        self._require_complete({key for key in missing if "pooler" not in key})
        if missing:
            notes.append(f"the checkpoint has no pooler: {listed(sorted(missing), 3)} are random and mean nothing")
        return model, "features"

    def load_to_train(self, task: Task, notes: list[str]) -> Any:
        """The model for `task`, with new weights where the head has none or of another size."""
        model, missing = self._weights(task, resize=True)
        new = _head_keys(missing, model)
        self._require_complete(missing - new)
        if new:
            notes.append(f"new, with random weights: {listed(sorted(new), 3)}")
        return model

    def choose_among(self, classes: Sequence[str], *, trained: bool, notes: list[str]) -> None:
        """Make these the config's classes, unless its own hold them."""
        own = classes_of(self.config)
        if _fits(own, classes, trained, self.name):
            return
        if trained and len(own) == len(classes):
            pairs = [f"{before} is now {after}" for before, after in zip(own, classes, strict=True)]
            notes.append(f"the classifier goes on from the checkpoint's: {listed(pairs, 3)}")
        self.config.id2label = dict(enumerate(classes))
        self.config.label2id = {name: index for index, name in enumerate(classes)}
        self.config.problem_type = None  # a checkpoint of a regression says so here

    def random(self, task: Task) -> Any:
        """The architecture with random weights."""
        dtype = "float32" if self.dtype == "auto" else self.dtype
        return loader_of(task).from_config(
            self.config, dtype=getattr(torch, dtype), trust_remote_code=self.trust_remote_code
        )

    def _weights(self, task: Task, *, resize: bool = False) -> tuple[Any, set[str]]:
        """The model, and the names of its weights that the checkpoint lacks."""
        model, info = loader_of(task).from_pretrained(
            self.name,
            config=self.config,
            dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=resize,
            trust_remote_code=self.trust_remote_code,
        )
        missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        return model, {key for key in missing if not key.endswith(_UNUSED_KEYS)}

    def _require_complete(self, missing: Set[str]) -> None:
        if missing:
            keys = listed(sorted(missing), 3)
            raise ModelError(f"'{self.name}' is incomplete: its weights lack {keys}, and would have been made up")


def _head_keys(keys: Set[str], model: Any) -> set[str]:
    """The names outside the base model, or in its pooler."""
    prefix = model.base_model_prefix + "."
    return {key for key in keys if not key.startswith(prefix) or "pooler" in key}


def _fits(own: Sequence[str], classes: Sequence[str], trained: bool, name: str) -> bool:
    """Whether a config's classes hold those of the data, by name, or by number where the data have no names."""
    match = match_names(classes, own)
    if trained and match.partial:  # the weights of the others would go on as those of other classes
        raise ModelError(
            f"'{name}' tells apart {listed(own)}, and only some of the data's classes ({listed(classes)}) have these "
            f"names, not {listed(match.unmatched)}: rename them, or begin from a model without a classifier"
        )
    if trained and not match.unmatched:
        return True
    if are_numbers(classes) and not match.table:
        return len(classes) <= len(own) if trained else not are_placeholders(own) and len(classes) == len(own)
    return False


def tokenizer_of(name: str, model: Any, trust_remote_code: bool, notes: list[str]) -> Any:
    """The tokenizer of a checkpoint, with a padding token, of which the notes say so; `ModelError` if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"the tokenizer of '{name}' cannot be loaded: {one_line(error)}") from error
    # Where the files are missing, transformers gives a tokenizer that knows nothing but its special tokens.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"'{name}' has no tokenizer: save it beside the model with tokenizer.save_pretrained")
    require_padding(tokenizer, name, notes)
    configs = (model.config, model.config.get_text_config())
    if all(getattr(config, "pad_token_id", None) is None for config in configs):
        # In memory only, for a decoder that finds its last token by it. The folder on disk keeps its config.
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def require_padding(tokenizer: Any, name: str, notes: list[str]) -> None:
    """Give a tokenizer a padding token if it has none, of which the notes say so; `ModelError` if there can be none."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of '{name}' has neither a padding nor an end token: set its pad_token")
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"the tokenizer has no padding token: {tokenizer.eos_token} fills, and is masked out")


def image_processor_of(name: str, model: Any, trust_remote_code: bool, notes: list[str]) -> pixels.Pixels:
    """The image processor of a checkpoint, or a plain one, of which the notes say so; `ModelError` if there is none."""
    from transformers import AutoImageProcessor

    config = getattr(model.config, "vision_config", model.config)
    channels = getattr(config, "num_channels", 3)
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        size = getattr(config, "image_size", None)
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


def classes_of(config: Any) -> tuple[str, ...]:
    """Names of the classes in a config, in order; none where it names none."""
    names = config.id2label or {}
    return tuple(str(names[index]) for index in sorted(names))


def check_name(name: str, *, pretrained: bool = True) -> None:
    """Raise a ModelError for a path that leads nowhere, or a folder that is no model, without loading it."""
    if not name:
        raise ModelError("no model named: expected a folder, a hub id or timm:NAME")
    entry = entry_at(name, ModelError)
    if entry == "folder":
        settle(local_path(name))
        check_folder(local_path(name), pretrained=pretrained)
    elif entry is not None:
        raise ModelError(f"'{name}' is a file, expected the folder of a model, a hub id or timm:NAME")
    elif name.startswith((".", "~", "/")) or "\\" in name:
        raise ModelError(f"no folder '{name}'")
    elif name.count("/") > 1:
        raise ModelError(f"no folder '{name}', and a hub id has at most one '/'")
    elif not HUB_ID.fullmatch(name):
        raise ModelError(f"no folder '{name}', and a hub id is made of letters, digits, '.', '-' and '_'")


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
    if device.type == "meta":
        raise ModelError("device 'meta' holds no numbers: give another, such as 'cpu'")
    return device
