"""The task a checkpoint was saved for or can be trained for, and the class of transformers that loads it."""

from collections.abc import Iterable
from typing import Any, get_args

from anydepth.errors import ModelError, choose
from anydepth.models.loaded import Task

# Parts of class names with their task, and the class that loads it.
_TASKS: dict[str, tuple[Task, str]] = {
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForImageClassification": ("image-classification", "AutoModelForImageClassification"),
    "ForObjectDetection": ("object-detection", "AutoModelForObjectDetection"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForCausalLM": ("causal-lm", "AutoModelForCausalLM"),
    "LMHeadModel": ("causal-lm", "AutoModelForCausalLM"),
}
LOADERS: dict[str, str] = {**dict(_TASKS.values()), "features": "AutoModel"}
"""The class of transformers that loads a model, by task."""


def check_task(name: str) -> Task:
    """The task of that name; raises a ModelError where there is none."""
    task: Task = choose(name, get_args(Task), "task", ModelError)
    return task


def loader_of(task: Task) -> Any:
    """The class of transformers that loads a model for a task."""
    import transformers

    return getattr(transformers, LOADERS[task])


def task_of(config: Any) -> tuple[Task, str | None]:
    """The task a checkpoint was saved for, and a note where its head is left out and it is loaded as features.

    Example:
        >>> from transformers import BertConfig
        >>> task_of(BertConfig(architectures=["BertForSequenceClassification"]))
        ('text-classification', None)
    """
    architectures = config.architectures or []
    if (task := task_among(architectures)) != "features":
        return task, None
    head = next((a for a in architectures if "For" in a), None)
    return "features", head and f"{head} is loaded as features: it has no choice among classes for a sample"


def task_among(classes: Iterable[str]) -> Task:
    """The task that the name of a model's class says, the first that does; "features" where none does."""
    tasks = (task for name in classes for part, (task, _) in _TASKS.items() if part in name)
    return next(tasks, "features")


def trainable_task(config: Any, *, labelled: bool, words: bool) -> Task:
    """The task to train a model for: that of the checkpoint, else by the data.

    The latter may be `labelled`, and have a label for each of the `words` of a text.

    Raises:
        ModelError: the checkpoint has no task, and the data no labels.

    Example:
        >>> from transformers import BertConfig, GPT2Config
        >>> trainable_task(BertConfig(architectures=["BertForMaskedLM"]), labelled=True, words=False)
        'text-classification'
        >>> trainable_task(GPT2Config(), labelled=True, words=False)
        'causal-lm'
    """
    from transformers.models.auto import modeling_auto as auto

    task, _ = task_of(config)
    if task != "features":
        return task
    if config.model_type in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image-classification"
    if config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not fills_masks(config):
        return "causal-lm"
    if not labelled:
        raise ModelError(
            f"a {config.model_type} learns from labels, and none are known in the data: name their column (label)"
        )
    return "token-classification" if words else "text-classification"


def fills_masks(config: Any) -> bool:
    """Whether a model of this kind is bidirectional: it sees the next token, which it would only have to copy."""
    from transformers.models.auto import modeling_auto as auto

    return config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
