"""The command line: its verbs, what becomes of errors and interrupts, and the exit status.

User errors are one line on standard error and exit status 2; `--debug` shows where they came from. Ctrl-C,
SIGTERM and SIGHUP end with status 128 + n, and one line that says whether the same command goes on from there.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anydepth.errors import AnydepthError
from anydepth.signals import Stopped, stopping
from anydepth.verbs.demo import demo
from anydepth.verbs.exiting import exit_early, export, predict, truncate
from anydepth.verbs.reproducing import reproduce
from anydepth.verbs.speaking import generate
from anydepth.verbs.tracing import compare, trace
from anydepth.verbs.training import align


class _Verbs(TyperGroup):
    """Hands on what an interrupted job says of itself, where typer would make a mere exit status of it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Ctrl-C is a signal like any other."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            stop = Stopped(signal.SIGINT)
            for note in getattr(interrupt, "__notes__", ()):
                stop.add_note(note)
            raise stop from interrupt


app = typer.Typer(
    name="anydepth",
    cls=_Verbs,
    help="Show what every depth of a transformer knows, and train one classifier to work at all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 for an error of the user's, 128 + n for signal n (130 for Ctrl-C).
    """
    try:
        with stopping():
            return int(app(args=list(arguments), standalone_mode=False, prog_name="anydepth") or 0)
    except (AnydepthError, typer.TyperException) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if message:  # there is none where the help was shown for want of arguments
            print(f"anydepth: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt, typer.Abort) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        then = getattr(stop, "__notes__", ["the same command starts over"])[-1]
        print(f"anydepth: {how}; {then}", file=sys.stderr)
        return 128 + number


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
