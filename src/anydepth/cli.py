"""The command line. Each verb reads its arguments, calls the library, and shows what came out.

User errors are one line on standard error and exit status 2; `--debug` shows where they came from. An interrupt ends
with status 130 and leaves what was done so far where the same command takes it up again.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from anydepth.errors import AnydepthError, DataError

if TYPE_CHECKING:
    from anydepth.collect import Progress as Reporter

app = typer.Typer(
    name="anydepth",
    help="Show what every depth of a transformer knows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_stderr = Console(stderr=True)
_INTERRUPTED = 130
_READOUTS: dict[str, Literal["tail", "raw"] | None] = {"tail": "tail", "raw": "raw", "none": None}

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a local folder, or timm:NAME.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="A hub data set id, a csv, jsonl, parquet or text file, an image folder, or 'digits'.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/MODEL-DATA.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 for an error of the user's, 130 for an interrupt.
    """
    try:
        status = int(app(args=list(arguments), standalone_mode=False, prog_name="anydepth") or 0)
    except (AnydepthError, typer.TyperException) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if message:  # there is none where the help was shown for want of arguments
            print(f"anydepth: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # typer, too, makes this of Ctrl-C
        print("anydepth: interrupted; the same command goes on where this one stopped", file=sys.stderr)
    return status


def _show_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(f"anydepth {version('anydepth')}")
        raise typer.Exit
    return asked


@app.callback()
def _anydepth(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """What stands before the verb."""


@app.command()
def trace(
    model: Model,
    data: Data,
    out: Out = None,
    split: Annotated[str | None, typer.Option(help="Which split; default test, else validation.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples, drawn by --seed.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per forward pass; no result depends on it.")] = 32,
    max_length: Annotated[int | None, typer.Option(min=2, help="Most tokens of a text.")] = None,
    measures: Annotated[
        str, typer.Option(help="Similarities between depths, separated by commas.")
    ] = "cosine,cosine_raw,cka,cka_biased",
    tokens: Annotated[
        str | None, typer.Option(help="Positions that stand for a sample: first, last, each, mean.")
    ] = None,
    readout: Annotated[str, typer.Option(help="tail, raw (no final norm below the last depth), or none.")] = "tail",
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Whether the data have labels.")] = True,
    text_column: Annotated[str | None, typer.Option(help="Column of the text; guessed if not given.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label; guessed if not given.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the image; guessed if not given.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of sample ids; default the row's number.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Dotted path of the blocks, if there are several lists.")] = None,
    keep_states: Annotated[bool, typer.Option("--keep-states", help="Keep the states, to merge or compare.")] = False,
    sums: Annotated[bool, typer.Option("--sums/--no-sums", help="Keep the sums of CKA, to merge.")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="Start over what an interrupted trace left.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; default the best there is.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Trace MODEL on DATA: similarity between depths, and what the model's own readout says at each."""
    from anydepth import data as datasets
    from anydepth import models
    from anydepth.ranks import join, leave, rank_and_count
    from anydepth.tokens import check_policy
    from anydepth.tracing import check_measures
    from anydepth.tracing import trace as run_trace

    _quiet_libraries()
    device = join() or device
    folder = out or Path("runs") / f"{_slug(model)}-{_slug(data)}"
    names = _measures(measures)
    if readout not in _READOUTS:
        raise DataError(f"unknown readout {readout!r}, expected one of {', '.join(_READOUTS)}")
    check_measures(names)  # now, not after a model was downloaded
    if tokens is not None:
        check_policy(tokens)
    loaded = models.load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    samples = datasets.load(
        data,
        split=split,
        limit=limit,
        text=text_column,
        label=label_column,
        image=image_column,
        id=id_column,
        seed=seed,
    )
    batches = datasets.batches(samples, loaded, batch_size=batch_size, max_length=max_length, labels=labels)
    with _progress(enabled=not as_json) as progress:
        found = run_trace(
            loaded.model,
            batches,
            measures=names,
            tokens=tokens,
            readout=_READOUTS[readout],
            labels=labels,
            blocks=blocks,
            out=folder,
            keep_states=keep_states,
            sums=sums,
            resume=not restart,
            seed=seed,
            describe={
                "model": loaded.name,
                "data": {"name": data, "split": samples.split},
                "notes": [*loaded.notes, *samples.notes, *batches.notes],
            },
            progress=progress,
        )
    if rank_and_count()[0] == 0:
        _show(found, folder, as_json=as_json)
    leave()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a small vision transformer on real digits, trace it, write the report. Needs no download."""
    from anydepth.demo import train_digits

    _quiet_libraries()
    folder = out / "model"
    with _progress(enabled=not as_json) as progress:
        train_digits(folder, epochs=epochs, seed=seed, progress=progress)
    trace(model=str(folder), data="digits", out=out, split="test", seed=seed, as_json=as_json, debug=debug)


def _measures(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name if Path(name).exists() else name).strip("-.") or "trace"


def _quiet_libraries() -> None:
    """No loading bars, advice and retries of the libraries below; errors still come through."""
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@contextmanager
def _progress(*, enabled: bool) -> Iterator[Reporter | None]:
    """A bar for each kind of work, on standard error, and only where somebody may be looking."""
    if not enabled or not _stderr.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr) as bars:
        task: Any = None
        shown = ""

        def report(done: int, total: int | None, what: str) -> None:
            nonlocal task, shown
            kind = what.split(",")[0]
            if kind != shown:
                task, shown = bars.add_task(what, total=total), kind
            bars.update(task, completed=done, total=total, description=what)

        yield report


def _show(found: Any, folder: Path, *, as_json: bool) -> None:
    from anydepth.show import as_plain, as_table

    if as_json:
        print(json.dumps(as_plain(found, folder), allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(as_table(found))
    for note in found.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
