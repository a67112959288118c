"""A classifier for each depth (early-exit heads): the usual alternative to one classifier for all depths."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from anydepth.errors import ModelError, ObjectiveError
from anydepth.storage.disk import write_errors

HEADS_FILE = "heads.safetensors"
ATTACHED = "depth_heads"
"""The name of the heads in a model, while both are trained."""


class Heads(nn.Module):
    """Classifiers for the depths 1..L-1; at depth L the model's own is used.

    Each takes the input of the model's own classifier (after final norm and pooler) and runs in its place:
    `Stack(model, heads=heads).readout(state, batch, depth=l)`.

    Args:
        classifiers: for depth 1, 2, ... L-1.

    Example:
        >>> heads = Heads([nn.Linear(4, 3), nn.Linear(4, 3)])
        >>> len(heads), heads[2].out_features
        (2, 3)
    """

    def __init__(self, classifiers: Iterable[nn.Module]) -> None:
        super().__init__()
        # named children, not a ModuleList, which would be a candidate for the list of blocks
        for depth, classifier in enumerate(classifiers, start=1):
            self.add_module(str(depth), classifier)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, depth: int) -> nn.Module:
        return self.get_submodule(str(depth))

    def save(self, folder: Path | str) -> Path:
        """Write the weights to `heads.safetensors` in a model's folder; returns the file's path."""
        from safetensors.torch import save_model

        path = Path(folder) / HEADS_FILE
        with write_errors(path):
            save_model(self, str(path))
        return path

    @classmethod
    def load(cls, folder: Path | str, classifier: nn.Module, depth: int) -> Heads:
        """Heads of the same kind as a model's own classifier, with the weights that `save` wrote.

        Args:
            folder: the model's folder.
            classifier: the model's own.
            depth: L.

        Raises:
            ModelError: the file is missing, corrupt, or does not fit the model.
        """
        heads = cls(copy.deepcopy(classifier) for _ in range(1, depth))
        heads.restore(folder)
        return heads

    def restore(self, folder: Path | str) -> None:
        """Load the weights that `save` wrote into these heads.

        Raises:
            ModelError: the file is missing, corrupt, or of other heads.
        """
        from safetensors.torch import load_model

        path = Path(folder) / HEADS_FILE
        try:
            load_model(self, path)
        except Exception as error:  # safetensors raises its own, torch RuntimeError, the disk OSError
            raise ModelError(
                f"'{path}' holds no heads for this model of {len(self) + 1} blocks: "
                f"{' '.join(str(error).split())[:200]}; train them with the objective 'heads', or use the model alone"
            ) from error


def separate_heads(classifier: nn.Module, depth: int) -> Heads:
    """Heads for the depths 1..L-1 (`depth` is L), each a copy of the model's own classifier.

    Raises:
        ObjectiveError: the classifier is frozen, so copies of it would be too.
    """
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise ObjectiveError("the classifier is frozen, so heads copied from it would not learn: unfreeze it first")
    return Heads(copy.deepcopy(classifier) for _ in range(1, depth))


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model with its one classifier (`single`) and with one for each of its L depths (`multi`)."""

    single: int
    multi: int

    @property
    def share(self) -> float:
        """Parameters of the additional classifiers, as a share of the model's."""
        return self.multi / self.single - 1


def parameter_counts(model: nn.Module, classifier: nn.Module, depth: int) -> ParameterCounts:
    """Parameters of a model with one classifier and with L (the paper's Table 1: single + (L - 1) C D, and biases).

    Shared parameters (a tied embedding) of the model count once; copies of a tied classifier share nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
        >>> parameter_counts(model, model[1], depth=3)
        ParameterCounts(single=32, multi=56)
    """
    single = sum(parameter.numel() for parameter in model.parameters())
    per_head = sum(parameter.numel() for parameter in classifier.parameters())
    return ParameterCounts(single, single + (depth - 1) * per_head)
