"""`anydepth generate`: text from a language model, in whichever way saves time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal


def generate(
    model: options.Model,
    prompt: Annotated[list[str] | None, typer.Option(help="What to write on from; give it again for another.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="A prompt on each line, besides.")] = None,
    depth: Annotated[
        int | None, typer.Option(metavar="K", help="Read every token out at depth K; nothing behind it runs.")
    ] = None,
    draft_depth: Annotated[
        str | None,
        typer.Option(metavar="K|auto", help="Draft at depth K, verify with the rest: the same text, sooner."),
    ] = None,
    draft_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens drafted in a round; default by how many are accepted.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option("--exit", metavar="DIR", help="Leave token by token, as `anydepth exit` calibrated.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most so many for each prompt.")] = 64,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float, typer.Option(help="Of --sample.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of --sample.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of --sample.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell what it took: time, blocks, accepted drafts.")] = False,
    blocks: options.Blocks = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write on from a prompt with the language model MODEL, at a depth, with drafts of its own, or leaving early."""
    from anydepth.cli.render import show_spoken
    from anydepth.errors import GenerationError
    from anydepth.jobs.generate import GenerateSettings, Sampling, speak

    terminal.quiet_libraries()
    if draft_depth is not None and draft_depth != "auto" and not re.fullmatch(r"-?\d+", draft_depth):
        raise GenerationError(f"--draft-depth is {draft_depth!r}, expected a number of blocks, or auto")
    wish = GenerateSettings(
        model,
        (*(prompt or ()), *_lines(prompts)),
        depth=depth,
        draft_depth=draft_depth if draft_depth in (None, "auto") else int(draft_depth),
        draft_length=draft_length,
        exits=exits,
        new_tokens=max_new_tokens,
        sampling=Sampling(sample, temperature, top_k, top_p, seed),
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    found = speak(wish, say=None if as_json else terminal.write)
    show_spoken(found, stats=stats, as_json=as_json)


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
