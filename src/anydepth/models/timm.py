"""Load image models of timm, named `timm:NAME`, with their transform."""

import torch

from anydepth.errors import ModelError, suggestion
from anydepth.models import image_transform as pixels
from anydepth.models.hub_errors import translated
from anydepth.models.loaded import LoadedModel, Task, check_folder
from anydepth.storage.paths import entry_at, local_path

PREFIX = "timm:"


def load_timm(name: str, task: Task | None, dtype: str, pretrained: bool) -> LoadedModel:
    """Load a timm model, and raise, as `anydepth.models.loading.load`, which moves it to its device.

    Without a task, it is "image-classification" if the model has a classifier, else "features".
    """
    if task not in (None, "image-classification", "features"):
        raise ModelError(f"'{name}' is an image model, and {task} is a task of text models")
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"'{name}' needs timm and torchvision: pip install 'anydepth[timm]'") from error
    architecture = name.removeprefix(PREFIX)
    if architecture and entry_at(architecture, ModelError) == "folder":
        folder = local_path(architecture)
        check_folder(folder, pretrained=pretrained)
        architecture, overlay = f"local-dir:{folder}", None
    else:
        _check_name(architecture, pretrained)
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
        classes=tuple(model.pretrained_cfg.get("label_names") or (f"LABEL_{i}" for i in range(model.num_classes))),
        notes=() if pretrained else ("the weights are random, not the checkpoint's",),
    )


def _check_name(architecture: str, pretrained: bool) -> None:
    import timm

    if not timm.is_model(architecture):
        raise ModelError(f"timm has no model '{architecture}'" + suggestion(architecture, timm.list_models(), n=3))
    if pretrained:
        with translated(ModelError, "model", PREFIX + architecture):
            config = timm.get_pretrained_cfg(architecture)
        if config is None or not config.hf_hub_id:
            raise ModelError(
                f"timm has no safetensors weights for '{architecture}': take a name with weights on the hub"
            )
