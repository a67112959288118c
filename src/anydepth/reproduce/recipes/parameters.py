"""Table 1: what a classifier for each depth adds to a model, counted on configs without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from anydepth.core.heads import parameter_counts
from anydepth.core.stack import Stack
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Plan, Recipe
from anydepth.reproduce.results import RecipeResults, Values

SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "DeiT-S, ImageNet-1K": (
        "ViTForImageClassification",
        {"num_labels": 1000, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    ),
    "ViT-B/16, ImageNet-1K": ("ViTForImageClassification", {"num_labels": 1000}),
    "BERT-base, 2 classes": ("BertForSequenceClassification", {"num_labels": 2}),
    "GPT-2 small": ("GPT2LMHeadModel", {}),
    "Qwen2.5-0.5B": (
        "Qwen2ForCausalLM",
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
    "Llama-2-7B": ("LlamaForCausalLM", {}),
    "Llama-3-8B": (
        "LlamaForCausalLM",
        {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
    ),
}
"""Published models: the class that makes each, in transformers, and its config where it is not the class's own."""
claim = partial(Claim, where="Table 1", certain=True)


def measure(bench: Experiment) -> Values:
    """Every shape, on torch's meta device."""
    return {name: _counted(*shape) for name, shape in SHAPES.items()}


def _counted(model_class: str, settings: Mapping[str, Any]) -> dict[str, int | float]:
    import torch
    import transformers

    build: Any = getattr(transformers, model_class)
    config = build.config_class(**settings)
    with torch.device("meta"):
        model = build(config)
    depth, classifier = Stack(model).depth, model.get_output_embeddings() or model.classifier
    counts = parameter_counts(model, classifier, depth)
    # C, D and L as the config has them, not as the model was built: so that the one can be held against the other
    classes = config.num_labels if "Classification" in model_class else config.vocab_size
    return {
        "depth": depth,
        "single": counts.single,
        "multi": counts.multi,
        "share": counts.share,
        "formula": (config.num_hidden_layers - 1) * classes * config.hidden_size,
        "biases": 0 if classifier.bias is None else (depth - 1) * len(classifier.bias),
    }


def claims(results: RecipeResults) -> list[Claim]:
    """The formula, and what it comes to."""

    def of(quantity: str) -> list[float]:
        return [float(results.each(name, quantity)[0]) for name in SHAPES]

    counts = zip(of("multi"), of("single"), of("formula"), of("biases"), strict=True)
    off = max(abs(multi - single - formula - biases) for multi, single, formula, biases in counts)
    return [
        claim(
            paper="a classifier for each of L layers adds (L - 1) C D weights; and their biases, which the paper "
            "leaves out",
            measured=f"parameters by which {len(SHAPES)} models miss that, at most",
            values=(off,),
            below=1.0,
            digits=0,
        ),
        claim(
            paper="where the classes are a vocabulary, they cost more than the model",
            measured="GPT-2 small: what a vocabulary for each depth adds, as a share of the model",
            values=results.each("GPT-2 small", "share")[:1],
            above=1.0,
        ),
        claim(
            paper="is it worth a hundredth of the model where classes are few? (the paper's rows are of many)",
            measured="BERT-base, 2 classes: what a classifier for each depth adds, as a share of the model",
            values=results.each("BERT-base, 2 classes", "share")[:1],
            above=0.01,
            digits=5,
        ),
    ]


_PLAN = Plan(
    {},
    cost=0.1,
    unit="CPU minutes",
    notes=("Counted, not estimated: nothing is drawn, trained or fetched, and both scales are the same.",),
)
RECIPE = Recipe(
    name="parameters",
    title="Parameters of one classifier against one for each depth",
    figures=("Table 1",),
    shows="One classifier for all layers saves the parameters of the others: the more, the larger the vocabulary.",
    cpu=_PLAN,
    full=_PLAN,
    measure=measure,
    claims=claims,
    panels=lambda results: (),
    notes=(
        "The paper's percentages are of published model sizes, not of the counts printed beside them.",
        "The row for LLaMA-2 in the paper is no model that exists.",
    ),
    seeded=False,
)
