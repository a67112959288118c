"""Table 1: what a classifier for each depth adds to a model, counted on configs without any weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.core.heads import parameter_counts
from anydepth.core.stack import Stack
from anydepth.reproduce.claims import Claim, claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Plan, Recipe
from anydepth.reproduce.results import RecipeResults, Values


@dataclass(frozen=True)
class Shape:
    """A published model's shape.

    Attributes:
        config: class of its config in transformers.
        model: class that makes it, there.
        classifier: name of the classifier in it.
        settings: of the config, where they are not the class's own.
    """

    config: str
    model: str
    classifier: str
    settings: Mapping[str, Any]


def _vision(**settings: Any) -> Shape:
    return Shape("ViTConfig", "ViTForImageClassification", "classifier", {"num_labels": 1000, **settings})


def _llama(**settings: Any) -> Shape:
    return Shape("LlamaConfig", "LlamaForCausalLM", "lm_head", settings)


SHAPES: Mapping[str, Shape] = {
    "DeiT-S, ImageNet-1K": _vision(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    "ViT-B/16, ImageNet-1K": _vision(),
    "BERT-base, 2 classes": Shape("BertConfig", "BertForSequenceClassification", "classifier", {"num_labels": 2}),
    "GPT-2 small": Shape("GPT2Config", "GPT2LMHeadModel", "lm_head", {}),
    "Qwen2.5-0.5B": Shape(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        "lm_head",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-2-7B": _llama(),
    "Llama-3-8B": _llama(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
}


def measure(bench: Experiment) -> Values:
    """Every shape, on torch's meta device."""
    return {name: _counted(shape) for name, shape in SHAPES.items()}


def _counted(shape: Shape) -> dict[str, int | float]:
    import torch
    import transformers

    config = getattr(transformers, shape.config)(**shape.settings)
    make: Callable[..., Any] = getattr(transformers, shape.model)
    with torch.device("meta"):
        model = make(config)
    depth, classifier = Stack(model).depth, model.get_submodule(shape.classifier)
    counts = parameter_counts(model, classifier, depth)
    # C, D and L as the config has them, not as the model was built: so that the one can be held against the other
    classes = config.vocab_size if shape.classifier == "lm_head" else config.num_labels
    return {
        "depth": depth,
        "single": counts.single,
        "multi": counts.multi,
        "share": counts.share,
        "formula": (config.num_hidden_layers - 1) * classes * config.hidden_size,
        "biases": 0 if classifier.bias is None else (depth - 1) * len(classifier.bias),
    }


def claims(found: RecipeResults) -> Sequence[Claim]:
    """The formula, and what it comes to."""

    def of(quantity: str) -> list[float]:
        return [float(found.each(name, quantity)[0]) for name in SHAPES]

    counts = zip(of("multi"), of("single"), of("formula"), of("biases"), strict=True)
    off = max(abs(multi - single - formula - biases) for multi, single, formula, biases in counts)
    return [
        claim(
            "",
            "Table 1",
            "a classifier for each of L layers adds (L - 1) C D weights; and their biases, which the paper leaves out",
            f"parameters by which {len(SHAPES)} models miss that, at most",
            [off],
            below=1.0,
            digits=0,
            certain=True,
        ),
        claim(
            "",
            "Table 1",
            "where the classes are a vocabulary, they cost more than the model",
            "GPT-2 small: what a vocabulary for each depth adds, as a share of the model",
            found.each("GPT-2 small", "share")[:1],
            above=1.0,
            certain=True,
        ),
        claim(
            "",
            "Table 1",
            "is it worth a hundredth of the model where classes are few? (the paper's rows are of many)",
            "BERT-base, 2 classes: what a classifier for each depth adds, as a share of the model",
            found.each("BERT-base, 2 classes", "share")[:1],
            above=0.01,
            digits=5,
            certain=True,
        ),
    ]


_EXACT = ("Counted, not estimated: nothing is drawn, trained or fetched, and both scales are the same.",)


RECIPE = Recipe(
    name="parameters",
    title="Parameters of one classifier against one for each depth",
    figures=("Table 1",),
    shows="One classifier for all layers saves the parameters of the others: the more, the larger the vocabulary.",
    plans={
        "cpu": Plan({}, cost=0.1, unit="CPU minutes", notes=_EXACT),
        "full": Plan({}, cost=0.1, unit="CPU minutes", notes=_EXACT),
    },
    measure=measure,
    claims=claims,
    panels=lambda found: (),
    notes=(
        "The paper's percentages are of published model sizes, not of the counts printed beside them.",
        "The row for LLaMA-2 in the paper is no model that exists.",
    ),
    seeded=False,
)
