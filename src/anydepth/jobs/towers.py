"""What a job runs of a model of images and texts (CLIP): one of its towers, or images with labels as texts."""

from __future__ import annotations

from anydepth.data.loading import LoadedData
from anydepth.errors import ModelError
from anydepth.jobs.settings import CalibrateSettings, TraceSettings
from anydepth.models.loaded import LoadedModel
from anydepth.models.towers import as_tower, as_zero_shot
from anydepth.models.zero_shot import compares

_KINDS = ("image", "text")


def as_asked(loaded: LoadedModel, rows: LoadedData, settings: TraceSettings | CalibrateSettings) -> LoadedModel:
    """A loaded model as the settings ask for it; any other than one of images and texts as it is.

    Without labels as texts it is the tower that is named as the blocks, else the one that the data are for.

    Raises:
        ModelError: labels as texts for a model without images or texts, or for its text tower; data with images and
            texts, and no tower named.
    """
    trust, blocks = settings.trust_remote_code, settings.blocks
    if settings.labels_as_texts is not None:
        if blocks == "text":
            raise ModelError(
                "blocks is 'text', and labels_as_texts reads images out at the depths of the image tower: leave out one"
            )
        return as_zero_shot(loaded, rows.label_names, settings.labels_as_texts, trust_remote_code=trust)
    if not compares(loaded.model):
        return loaded
    kinds = [blocks] if blocks in _KINDS else [kind for kind in _KINDS if getattr(rows.columns, kind) is not None]
    if len(kinds) != 1:
        raise ModelError(
            f"{type(loaded.model).__name__} compares images with texts, and '{rows.name}' has "
            f"{'both' if kinds else 'neither'}: name a tower (blocks='image', blocks='text'), or read images out as "
            "texts of their labels (labels_as_texts)"
        )
    return as_tower(loaded, str(kinds[0]), trust_remote_code=trust)
