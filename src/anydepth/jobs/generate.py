"""Generate text with a language model, in fewer blocks where possible: the job of `anydepth generate`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anydepth.core.model_io import device_of
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.data.decoding import lines_of, read_text, require_text
from anydepth.data.settings import processor_fingerprint
from anydepth.errors import AnydepthWarning, DataError, GenerationError
from anydepth.exits.policies import AtDepth
from anydepth.exits.saving import ExitFile
from anydepth.generation import GenerationStats, at_depth, dynamic_exit, self_speculative
from anydepth.generation.costs import Advice, advise
from anydepth.generation.modes import GenerationMethod, positions_of
from anydepth.jobs.settings import GenerateSettings
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.results.result import Result
from anydepth.storage.paths import local_path


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class GenerateResult(Result):
    """Generated texts, and statistics.

    Attributes:
        model: name of the model.
        way: the method, in words.
        prompts: what each text continues.
        texts: what was generated after each prompt.
        tokens: number of generated tokens.
        seconds: wall time, without loading and measuring.
        spent: tokens, blocks and the like, over all prompts; None with all blocks, where nothing is counted.
        advice: measurements, where the draft depth was chosen by them.
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

    def line(self) -> str:
        """How many texts and tokens were generated, and how."""
        return f"{self.model}, {self.way}: {len(self.texts):,} texts, {self.tokens:,} tokens in {self.seconds:.2f} s"

    def sentences(self) -> tuple[str, ...]:
        """Time and blocks that the texts took."""
        speed = f"{self.tokens / self.seconds:.1f} tokens per second"
        sentences = [self.way, f"{self.tokens:,} tokens in {self.seconds:.2f} s: {speed}"]
        if (counts := self.spent) is None:
            return tuple(sentences)
        sentences.append(f"blocks run: {counts.blocks:,}, readouts: {counts.readouts:,}")
        if counts.filled:
            sentences.append(f"blocks that only wrote keys and values: {counts.filled:,}")
        if counts.depths:
            sentences.append(f"mean depth: {sum(counts.depths) / len(counts.depths):.2f}")
        if counts.drafted:
            accepted = f"{counts.accepted:,} of {counts.drafted:,} drafts accepted ({counts.acceptance:.0%})"
            sentences.append(f"{accepted}, {counts.rounds:,} rounds")
        return tuple(sentences)

    def as_plain(self) -> dict[str, Any]:
        """As values that JSON holds."""
        return {**asdict(self), "tokens_per_second": self.tokens / self.seconds}


def run_generate(settings: GenerateSettings, *, say: Callable[[str], None] | None = None) -> GenerateResult:
    """Generate a continuation of each prompt.

    Args:
        settings: the model, the prompts, and the method.
        say: called with each piece of text as soon as it is final, the prompts' too.

    Raises:
        GenerationError: no prompt or an empty one, more than one method, a model that generates no text.
        PolicyError: exits of another model.
    """
    methods = [name for name in ("depth", "draft_depth", "exit") if getattr(settings, name) is not None]
    if len(methods) > 1:
        raise GenerationError(f"more than one way to generate came ({', '.join(methods)}), expected one")
    given = (*settings.prompt, *(_lines(settings.prompts) if settings.prompts else ()))
    if not given or not all(prompt.strip() for prompt in given):
        raise GenerationError("a prompt is empty: expected some text to continue")
    loaded = models.load(settings.model, device=settings.device, trust_remote_code=settings.trust_remote_code)
    if loaded.task != "causal-lm":
        raise GenerationError(
            f"'{settings.model}' is a {type(loaded.model).__name__} ({loaded.task}), which generates no text: expected "
            "a causal language model"
        )
    prompts = [_encoded(loaded, prompt) for prompt in given]
    with evaluating(loaded.model), torch.inference_mode():
        method, description, advice = _method(settings, loaded, prompts)
        torch.manual_seed(settings.seed)
        texts, tokens, seconds, stats = [], 0, 0.0, GenerationStats()
        for prompt in prompts:
            streamer = None if say is None else _streamer(loaded.processor, say)
            start = time.perf_counter()
            new = _generated(settings, loaded, prompt, method, streamer)
            seconds += time.perf_counter() - start
            texts.append(loaded.processor.decode(new, skip_special_tokens=True))
            tokens += len(new)
            stats += GenerationStats() if method is None else method.spent
    return GenerateResult(
        model=settings.model,
        way=description,
        prompts=given,
        texts=tuple(texts),
        tokens=tokens,
        seconds=seconds,
        spent=None if method is None else stats,
        advice=advice,
        notes=loaded.notes,
    )


def _lines(file: str) -> list[str]:
    """The prompts in a file, one on each line that is not blank.

    Raises:
        GenerationError: it cannot be read, or holds none.
    """
    try:
        text, notes = read_text(Path(file))
    except DataError as error:
        raise GenerationError(f"the prompts in '{file}' cannot be read: {error}") from error
    for note in notes:
        warnings.warn(note, AnydepthWarning, stacklevel=2)
    prompts = [line for line in lines_of(text) if line.strip()]
    if not prompts:
        raise GenerationError(f"'{file}' holds no prompt: expected one on each line")
    return prompts


def _sampling(settings: GenerateSettings) -> dict[str, Any]:
    """Keyword arguments on how tokens are chosen, for `generate` of transformers."""
    if not settings.sample:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    limits = {"top_k": settings.top_k, "top_p": settings.top_p}
    limits = {name: value for name, value in limits.items() if value is not None}
    return {"do_sample": True, "temperature": settings.temperature, **limits}


def _generated(
    settings: GenerateSettings, loaded: LoadedModel, prompt: Tensor, method: GenerationMethod | None, streamer: Any
) -> Tensor:
    """The token ids, (T',), that are generated after a prompt, (1, T)."""
    how: dict[str, Any] = {"streamer": streamer}
    if method is not None:
        method.streamer, how = streamer, {"custom_generate": method}
    model: Any = loaded.model
    output: Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=min(settings.max_new_tokens, positions_of(model) - prompt.shape[1]),
        pad_token_id=loaded.processor.pad_token_id,
        **_sampling(settings),
        **how,
    )
    return output[0, prompt.shape[1] :]


def _encoded(loaded: LoadedModel, prompt: str) -> Tensor:
    """A prompt as token ids, (1, T)."""
    require_text(prompt, "the prompt")
    ids = loaded.processor(prompt, return_tensors="pt")["input_ids"]
    if not ids.shape[1]:
        raise GenerationError(f"the prompt {prompt!r:.40} becomes no tokens, expected some text to continue")
    if ids.shape[1] >= (room := positions_of(loaded.model)):
        raise GenerationError(
            f"a prompt has {ids.shape[1]:,} tokens, and '{loaded.name}' has positions for {room:,}: expected one that "
            "leaves room for a token"
        )
    on_device: Tensor = ids.to(device_of(loaded.model))
    return on_device


def _method(
    settings: GenerateSettings, loaded: LoadedModel, prompts: list[Tensor]
) -> tuple[GenerationMethod | None, str, Advice | None]:
    """The method to generate with, None for all blocks; its description; and what was measured to choose it."""
    depth, length, blocks = settings.draft_depth, settings.draft_length, settings.blocks
    if settings.depth is not None:
        return at_depth(settings.depth, blocks=blocks), f"at depth {settings.depth}", None
    if depth == "auto":
        advice = advise(loaded.model, prompts, blocks=blocks)
        if advice.depth is None:
            return None, str(advice), advice
        method = self_speculative(advice.depth, draft_length=length or advice.length, blocks=blocks)
        return method, str(advice), advice
    if depth is not None:
        return self_speculative(int(depth), draft_length=length, blocks=blocks), f"drafts at {int(depth)}", None
    if settings.exit is None:
        return None, "all blocks", None
    saved = ExitFile.read(local_path(settings.exit))
    saved.require_same(Stack(loaded.model, blocks=saved.model["blocks"]))
    if "generation" not in saved.about:
        raise GenerationError(
            f"the exits in '{settings.exit}' are not a language model's: calibrate one with anydepth exit"
        )
    guarantee = _guarantee(saved, loaded)
    if isinstance(saved.policy, AtDepth):
        return None, guarantee, None
    return dynamic_exit(saved.policy, blocks=saved.model["blocks"]), guarantee, None


def _guarantee(saved: ExitFile, loaded: LoadedModel) -> str:
    """The guarantee of saved exits in words, which holds for the tokenizer that they were calibrated with."""
    if saved.inputs is not None and processor_fingerprint(loaded) != saved.inputs.processor:
        return "no guarantee: the tokenizer is another than at calibration"
    return str(saved.about.get("promise", "never calibrated"))


def _streamer(tokenizer: Any, say: Callable[[str], None]) -> Any:
    """A streamer that calls `say` with text as soon as no further token can change it."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            say(text + ("\n" if stream_end else ""))

    return Streamer(tokenizer, skip_special_tokens=True)
