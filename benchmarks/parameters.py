"""Parameters of one classifier for all depths against one for each, for shapes as published (the paper's Table 1).

    python benchmarks/parameters.py

No weights are made or fetched: models are built from their configs on torch's meta device.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    ViTConfig,
)

from anydepth.blocks import find_blocks
from anydepth.heads import parameter_counts

RESULTS = Path(__file__).parent / "results" / "parameters.json"
_IMAGENET = {"num_labels": 1000}

SHAPES: dict[str, tuple[Any, Callable[[Any], nn.Module], str]] = {
    "DeiT-S, ImageNet-1K": (
        ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, **_IMAGENET),
        AutoModelForImageClassification.from_config,
        "classifier",
    ),
    "ViT-B/16, ImageNet-1K": (ViTConfig(**_IMAGENET), AutoModelForImageClassification.from_config, "classifier"),
    "BERT-base, 2 classes": (BertConfig(num_labels=2), AutoModelForSequenceClassification.from_config, "classifier"),
    "GPT-2 small": (GPT2Config(), AutoModelForCausalLM.from_config, "lm_head"),
    "Qwen2.5-0.5B": (
        Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        AutoModelForCausalLM.from_config,
        "lm_head",
    ),
    "Llama-2-7B": (LlamaConfig(), AutoModelForCausalLM.from_config, "lm_head"),
    "Llama-3-8B": (
        LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
        AutoModelForCausalLM.from_config,
        "lm_head",
    ),
}


def row(name: str) -> dict[str, Any]:
    config, make, classifier = SHAPES[name]
    with torch.device("meta"):
        model = make(config)
    depth = len(find_blocks(model)[1])
    counts = parameter_counts(model, model.get_submodule(classifier), depth)
    return {"model": name, "depth": depth, "single": counts.single, "multi": counts.multi, "share": counts.share}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    settings = parser.parse_args()
    rows = [row(name) for name in SHAPES]
    print("| model | L | one classifier | one for each depth | more |\n|---|---|---|---|---|")
    for one in rows:
        print(
            f"| {one['model']} | {one['depth']} | {one['single']:,} | {one['multi']:,} | {one['share'] * 100:.3g} % |"
        )
    settings.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
