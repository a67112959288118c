"""Tiny language models that draft well enough to be followed now and then, prompts for them, and what they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tiny_models
import torch
from torch import Tensor, nn

from anydepth.core.stack import Stack
from anydepth.dependencies import cache_name

NAMES = ("gpt2", "llama", "qwen3", "gemma2", "gemma3_text")
"""One of each shape that is promised; Gemma's attend to windows of 4 positions, in part of their blocks or in all."""
BLOCKS, SHALLOW = tiny_models.BLOCKS, 2
CACHE = cache_name()


def speaker(name: str, *, seed: int = 1, later: float = 0.5) -> Any:
    """A causal language model in eval mode, which no token makes end; at depth 2 it says the same every other time.

    Args:
        name: of `tiny_models.DECODERS`.
        seed: of its weights.
        later: how much the blocks behind depth 2 have to say.
    """
    model, _ = tiny_models.build(name, seed)
    with torch.no_grad():
        for block in blocks_of(model)[SHALLOW:]:
            for parameter in block.parameters():
                parameter.mul_(later)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def blocks_of(model: nn.Module) -> nn.Module:
    return model.get_submodule(Stack(model).path)


def prompts(count: int, *, seed: int = 0, longest: int = 10) -> list[Tensor]:
    """Of 1 to `longest` tokens, (1, T) each."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(5, tiny_models.VOCABULARY, (1, length), generator=draw) for length in lengths]


def together(texts: Sequence[Tensor]) -> dict[str, Tensor]:
    """A batch with padding on the left."""
    longest = max(text.shape[1] for text in texts)
    pads = [longest - text.shape[1] for text in texts]
    ids = [nn.functional.pad(text, (pad, 0)) for pad, text in zip(pads, texts, strict=True)]
    mask = [nn.functional.pad(torch.ones_like(text), (pad, 0)) for pad, text in zip(pads, texts, strict=True)]
    return {"input_ids": torch.cat(ids), "attention_mask": torch.cat(mask)}


def greedy(model: Any, prompt: Any, count: int, mode: Any = None, **settings: Any) -> Any:
    """What is generated of `count` new tokens, the likeliest each time unless the settings say otherwise."""
    # without a mask, transformers takes tokens of a text for padding that happen to be the token for it
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)} if isinstance(prompt, Tensor) else prompt
    return model.generate(
        **inputs, **{"max_new_tokens": count, "do_sample": False, "custom_generate": mode, **settings}
    )


@dataclass
class Ran:
    """What a model ran, by its own hooks.

    Attributes:
        started: of each block, how many tokens it was given, call by call.
        finished: of each block, how often it came to its end.
        heads: how often the head answered with scores.
    """

    started: list[list[int]] = field(default_factory=lambda: [[] for _ in range(BLOCKS)])
    finished: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    heads: int = 0


@contextmanager
def watched(model: Any) -> Iterator[Ran]:
    """Counts what runs inside."""
    ran = Ran()

    def starts(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            ran.started[index].append((args[0] if args else kwargs["hidden_states"]).shape[1])

        return hook

    def ends(index: int) -> Any:
        def hook(*_: Any) -> None:
            ran.finished[index] += 1

        return hook

    def read(module: nn.Module, args: Any, output: Tensor) -> None:
        ran.heads += output.shape[-1] == tiny_models.VOCABULARY

    handles = [model.get_output_embeddings().register_forward_hook(read)]
    for index, block in enumerate(blocks_of(model)):
        handles.append(block.register_forward_pre_hook(starts(index), with_kwargs=True))
        handles.append(block.register_forward_hook(ends(index)))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def lengths(cache: Any) -> list[int]:
    """Positions in each layer."""
    return [layer.get_seq_length() for layer in cache.layers]


class Streamed:
    """Keeps what a streamer is given."""

    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.ends = 0

    def put(self, tokens: Tensor) -> None:
        self.puts.append(tokens.flatten().tolist())

    def end(self) -> None:
        self.ends += 1


def looks_of(model: nn.Module) -> dict[str, Any]:
    """All that a generation could leave changed, to compare before with after."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "forwards": [name for name, module in model.named_modules() if "forward" in module.__dict__],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "configs": [config.to_dict() for config in configs.values()],
        "generation": model.generation_config.to_dict(),
    }
