"""The maximum number of tokens a model takes."""

from __future__ import annotations

from typing import Any

from torch import nn


def max_input_length(model: nn.Module, tokenizer: Any = None) -> int | None:
    """The maximum number of tokens: what the model's positions hold, and what its tokenizer states; None if unknown.

    Models with several parts (text and images, say) state the positions of their texts in a nested config. RoBERTa and
    its kin count positions from the padding index + 1, so their table holds fewer tokens than it has rows.

    Example:
        >>> from transformers import RobertaConfig, RobertaModel
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
        >>> max_input_length(RobertaModel(RobertaConfig(max_position_embeddings=514, vocab_size=9, **sizes)))
        512
    """
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    positions = getattr(text_config, "max_position_embeddings", None)
    limits = []
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _reserved_positions(model, positions))
    if tokenizer is not None and tokenizer.model_max_length < 10**9:  # above, transformers means that nothing is known
        limits.append(tokenizer.model_max_length)
    return min(limits, default=None)


def _reserved_positions(model: nn.Module, positions: int) -> int:
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in path and module.num_embeddings == positions:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
