"""The command line: its verbs, what becomes of errors and interrupts, and the exit status.

User errors are one line on standard error and exit status 2; `--debug` shows where they came from. An interrupt ends
with status 130 and leaves what was done so far where the same command takes it up again.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from anydepth.errors import AnydepthError
from anydepth.verbs.demo import demo
from anydepth.verbs.exiting import exit_early, export, predict, truncate
from anydepth.verbs.reproducing import reproduce
from anydepth.verbs.speaking import generate
from anydepth.verbs.tracing import compare, trace
from anydepth.verbs.training import align

app = typer.Typer(
    name="anydepth",
    help="Show what every depth of a transformer knows, and train one classifier to work at all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130


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
        again = "the same command with --resume" if "align" in arguments[:1] else "the same command"
        print(f"anydepth: interrupted; {again} goes on where this one stopped", file=sys.stderr)
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


# in the order of the help: what one does first comes first
app.command()(trace)
app.command()(align)
app.command()(compare)
app.command("exit")(exit_early)
app.command()(predict)
app.command()(generate)
app.command()(truncate)
app.command()(export)
app.command()(demo)
app.command()(reproduce)
