"""`anydepth generate`."""

from __future__ import annotations

import re
from pathlib import Path

from anydepth.cli import options, terminal


def generate(
    model: options.Model,
    prompt: options.Prompt = None,
    prompts: options.PromptFile = None,
    depth: options.GenerateDepth = None,
    draft_depth: options.DraftDepth = None,
    draft_length: options.DraftLength = None,
    exits: options.ExitFolder = None,
    max_new_tokens: options.MaxNewTokens = 64,
    sample: options.Sample = False,
    temperature: options.Temperature = 1.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    stats: options.Stats = False,
    blocks: options.Blocks = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt with the language model MODEL: at a depth, with drafts of its own, or with early exit."""
    from anydepth.cli.render import show_generated
    from anydepth.errors import GenerationError
    from anydepth.jobs.generate import GenerateSettings, Sampling, run_generate

    terminal.quiet_libraries()
    if draft_depth is not None and draft_depth != "auto" and not re.fullmatch(r"-?\d+", draft_depth):
        raise GenerationError(f"--draft-depth is {draft_depth!r}, expected a number of blocks, or auto")
    settings = GenerateSettings(
        model=model,
        prompts=(*(prompt or ()), *_lines(prompts)),
        depth=depth,
        draft_depth=draft_depth if draft_depth in (None, "auto") else int(draft_depth),
        draft_length=draft_length,
        exits=exits,
        new_tokens=max_new_tokens,
        sampling=Sampling(sampled=sample, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    result = run_generate(settings, say=None if as_json else terminal.write)
    show_generated(result, stats=stats, as_json=as_json)


def _lines(file: Path | None) -> list[str]:
    """The prompts in a file, one on each line that is not blank.

    Raises:
        GenerationError: it cannot be read, or holds none.
    """
    from anydepth.data.decoding import lines_of, read_text
    from anydepth.errors import DataError, GenerationError

    if file is None:
        return []
    try:
        text, notes = read_text(file)
    except DataError as error:
        raise GenerationError(f"the prompts in '{file}' cannot be read: {error}") from error
    for note in notes:
        terminal.say(f"anydepth: {note}")
    prompts = [line for line in lines_of(text) if line.strip()]
    if not prompts:
        raise GenerationError(f"'{file}' holds no prompt: expected one on each line")
    return prompts
