"""Text from a language model by name, in whichever way saves time: what `anydepth generate` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from anydepth.core.model_io import device_of
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.data.decoding import require_text
from anydepth.data.settings import processor_fingerprint
from anydepth.errors import GenerationError
from anydepth.exits.policies import AtDepth
from anydepth.exits.saving import ExitFile
from anydepth.generation import GenerationStats, at_depth, dynamic_exit, self_speculative
from anydepth.generation.costs import Advice, advise
from anydepth.generation.modes import GenerationMethod, positions_of
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.storage.paths import local_path


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        sampled: drawn, rather than the likeliest taken.
        temperature: logits are divided by it.
        top_k: only the likeliest so many; None for the model's own setting.
        top_p: only the likeliest that together have this probability; None likewise.
        seed: of the draws.
    """

    sampled: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """As `generate` takes them."""
        if not self.sampled:
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        given = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {"do_sample": True, **{name: value for name, value in given.items() if value is not None}}


@dataclass(frozen=True)
class GenerateSettings:
    """What is to be written, by which model, and in which way. One way at most; none is the plain one.

    Attributes:
        model: see `anydepth.models.loading.load`.
        prompts: what to write on from, one after the other.
        depth: generate at this depth.
        draft_depth: speculate with drafts from this depth; "auto" measures which pays.
        draft_length: drafts in a round; None to go by what is accepted.
        exits: a folder that `anydepth exit` wrote for a language model.
        new_tokens: at most so many for each prompt, and no more than the model has positions for.
        sampling: how a token is chosen.
        blocks: the dotted name of the list of blocks, for a model that has several.
        device: as torch names it; if None the first there is.
        trust_remote_code: run the Python code that comes with the checkpoint.
    """

    model: str
    prompts: tuple[str, ...]
    depth: int | None = None
    draft_depth: int | str | None = None
    draft_length: int | None = None
    exits: str | None = None
    new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    blocks: str | None = None
    device: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class GenerateResult:
    """What was written, and what it took.

    Attributes:
        model: by what.
        way: in words.
        prompts: what it was written on from.
        texts: what was written after each.
        tokens: that were written.
        seconds: by the clock, without loading and measuring.
        spent: tokens, blocks and the like, over all prompts; None for the plain way, which counts nothing.
        advice: what was measured, where drafts were left to be chosen.
        notes: what a reader should know, one sentence each.
    """

    model: str
    way: str
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    tokens: int
    seconds: float
    spent: GenerationStats | None
    advice: Advice | None
    notes: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """As values that JSON holds."""
        return {**asdict(self), "tokens_per_second": self.tokens / self.seconds}


def speak(wish: GenerateSettings, *, say: Callable[[str], None] | None = None) -> GenerateResult:
    """Write on from each prompt.

    Args:
        wish: what, and how.
        say: called with each piece of text as it is decided, the prompts' too.

    Raises:
        GenerationError: no prompt or an empty one, more than one way, a model that writes nothing.
        PolicyError: exits of another model.
    """
    ways = [name for name in ("depth", "draft_depth", "exits") if getattr(wish, name) is not None]
    if len(ways) > 1:
        raise GenerationError(f"{' and '.join(ways)} came together, expected one way to generate")
    if not wish.prompts or not all(prompt.strip() for prompt in wish.prompts):
        raise GenerationError("a prompt is empty: expected some text to write on from")
    loaded = models.load(wish.model, device=wish.device, trust_remote_code=wish.trust_remote_code)
    if loaded.task != "causal-lm":
        raise GenerationError(
            f"'{wish.model}' is a {type(loaded.model).__name__} ({loaded.task}), which writes no text: expected a "
            "causal language model"
        )
    model: Any = loaded.model
    prompts = [_encoded(loaded, prompt) for prompt in wish.prompts]
    with evaluating(model), torch.inference_mode():
        mode, way, advice = _way(wish, loaded, prompts)
        torch.manual_seed(wish.sampling.seed)
        texts, tokens, seconds, spent = [], 0, 0.0, GenerationStats()
        for prompt in prompts:
            streamer = None if say is None else _streamer(loaded.processor, say)
            start = time.perf_counter()
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=min(wish.new_tokens, positions_of(model) - prompt.shape[1]),
                pad_token_id=loaded.processor.pad_token_id,
                **wish.sampling.options,
                **_with(mode, streamer),
            )
            seconds += time.perf_counter() - start
            new = output[0, prompt.shape[1] :]
            texts.append(loaded.processor.decode(new, skip_special_tokens=True))
            tokens += len(new)
            spent += GenerationStats() if mode is None else mode.spent
    return GenerateResult(
        wish.model,
        way,
        wish.prompts,
        tuple(texts),
        tokens,
        seconds,
        None if mode is None else spent,
        advice,
        loaded.notes,
    )


def _encoded(loaded: LoadedModel, prompt: str) -> Tensor:
    """A prompt as token ids, (1, T)."""
    require_text(prompt, "the prompt")
    ids = loaded.processor(prompt, return_tensors="pt")["input_ids"]
    if not ids.shape[1]:
        raise GenerationError(f"the prompt {prompt!r:.40} becomes no tokens, expected some text to write on from")
    if ids.shape[1] >= (room := positions_of(loaded.model)):
        raise GenerationError(
            f"a prompt has {ids.shape[1]:,} tokens, and '{loaded.name}' has positions for {room:,}: expected one that "
            "leaves room for a token"
        )
    found: Tensor = ids.to(device_of(loaded.model))
    return found


def _way(
    wish: GenerateSettings, loaded: LoadedModel, prompts: list[Tensor]
) -> tuple[GenerationMethod | None, str, Advice | None]:
    """The mode to generate with, None for the plain one; what it is, in words; and what was measured for it."""
    if wish.depth is not None:
        return at_depth(wish.depth, blocks=wish.blocks), f"at depth {wish.depth}", None
    if wish.draft_depth == "auto":
        advice = advise(loaded.model, prompts, blocks=wish.blocks)
        if advice.depth is None:
            return None, str(advice), advice
        mode = self_speculative(advice.depth, draft_length=wish.draft_length or advice.length, blocks=wish.blocks)
        return mode, str(advice), advice
    if wish.draft_depth is not None:
        depth = int(wish.draft_depth)
        return self_speculative(depth, draft_length=wish.draft_length, blocks=wish.blocks), f"drafts at {depth}", None
    if wish.exits is None:
        return None, "all blocks", None
    saved = ExitFile.read(local_path(wish.exits))
    stack = Stack(loaded.model, blocks=saved.model["blocks"])
    saved.require_same(stack)
    promise = _promise(saved, loaded)
    if "generation" not in saved.about:
        raise GenerationError(
            f"the exits in '{wish.exits}' are not a language model's: calibrate one with anydepth exit"
        )
    if isinstance(saved.policy, AtDepth):
        return None, promise, None
    return dynamic_exit(saved.policy, blocks=saved.model["blocks"]), promise, None


def _promise(saved: ExitFile, loaded: LoadedModel) -> str:
    """What is promised of the exits, of prompts of the tokenizer that they were calibrated with."""
    if saved.inputs is not None and processor_fingerprint(loaded) != saved.inputs.processor:
        return "nothing is promised: the tokenizer is another than when it was calibrated"
    return str(saved.about.get("promise", "never calibrated"))


def _with(mode: GenerationMethod | None, streamer: Any) -> dict[str, Any]:
    """What `generate` is to be given for a mode; its streamer goes the way of the mode."""
    if mode is None:
        return {"streamer": streamer}
    mode.streamer = streamer
    return {"custom_generate": mode}


def _streamer(tokenizer: Any, say: Callable[[str], None]) -> Any:
    """Hands on text as soon as no further token can change it."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            say(text + ("\n" if stream_end else ""))

    return Streamer(tokenizer, skip_special_tokens=True)
