"""The entry of Trainer's batches that holds the labels, and a check that the objective computes the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from anydepth.errors import TrainingError


def label_of(names: Sequence[str], model: str, *, given: bool) -> str:
    """The name of the entry of a batch that holds the labels, among Trainer's `label_names`.

    `given` says whether the user named them, rather than Trainer, from the forward of the class `model`.

    Raises:
        TrainingError: there are several, as for a model that predicts a first and a last position.

    Example:
        >>> label_of(["labels", "next_sentence_label"], "BertForPreTraining", given=False)
        'labels'
        >>> label_of(["start_positions", "end_positions"], "BertForQuestionAnswering", given=False)
        Traceback (most recent call last):
        anydepth.errors.TrainingError: BertForQuestionAnswering has the labels start_positions, end_positions, expec...
    """
    if not given and "labels" in names:
        return "labels"  # a batch that has others, too, is refused
    if len(names) == 1:
        return names[0]
    raise TrainingError(
        f"{model} has the labels {', '.join(names)}, expected one class for each answer under one name: name it by "
        "label_names, or train with transformers.Trainer"
    )


def labelled(inputs: Mapping[str, Any], names: Sequence[str], label: str) -> dict[str, Any]:
    """A copy of a batch in which the labels are called "labels"; those under another name raise a `TrainingError`.

    Example:
        >>> labelled({"x": 1, "target": 2}, ["target"], "target")
        {'x': 1, 'labels': 2}
    """
    others = [name for name in names if name != label and inputs.get(name) is not None]
    if others:
        raise TrainingError(
            f"a batch has {', '.join(others)} beside {label}, and an objective learns from one of them: leave the "
            "others out of the data, or train with transformers.Trainer"
        )
    if label == "labels" or inputs.get(label) is None:
        return dict(inputs)
    rest = {name: value for name, value in inputs.items() if name not in (label, "labels")}
    return {**rest, "labels": inputs[label]}


class RequireObjective(TrainerCallback):  # type: ignore[misc]
    """Stops a training in which the objective was not `called`, as in a subclass with a loss of its own."""

    def __init__(self, trainer: str) -> None:
        self._trainer, self.called = trainer, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the gradients about to be used are the objective's."""
        if not self.called:
            raise TrainingError(
                f"the loss of {self._trainer} does not come from the objective, which nothing would train: call "
                "super().compute_loss and add to it, or train with transformers.Trainer"
            )
        self.called = False
