"""The command line: its verbs, what becomes of errors and interrupts, and the exit status.

User errors, and failures of the world outside, are one line on standard error and exit status 2; `--debug` (or the
variable ANYDEPTH_DEBUG) shows where they came from. A bug of ours is one line that says so, and status 1. Where nobody
reads what is printed any more, the status is 141, as a shell has it of other programs. Ctrl-C, SIGTERM and SIGHUP end
with status 128 + n, and one line that says whether the same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anydepth.cli import error_messages as failures
from anydepth.cli import terminal
from anydepth.cli.commands.align import align
from anydepth.cli.commands.compare import compare
from anydepth.cli.commands.demo import demo
from anydepth.cli.commands.exit import exit_early
from anydepth.cli.commands.export import export
from anydepth.cli.commands.generate import generate
from anydepth.cli.commands.predict import predict
from anydepth.cli.commands.reproduce import reproduce
from anydepth.cli.commands.trace import trace
from anydepth.cli.commands.truncate import truncate
from anydepth.cli.option_checks import checked
from anydepth.errors import AnydepthError, one_line
from anydepth.signals import Stopped, stopping


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

_UNREAD = 141
_PATIENCE = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    terminal.prepare_streams()
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # of standard error: there is nobody to say anything to
        status = _UNREAD
    status = _flushed(status)
    if status > 128:
        _end_within(_PATIENCE, status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 for an error of the user's or a failure outside, 1 for a bug, 128 + n for signal n (130
        for Ctrl-C).
    """
    debug = "--debug" in arguments or os.environ.get("ANYDEPTH_DEBUG", "0") not in ("", "0")
    try:
        with stopping():
            return int(app(args=list(arguments), standalone_mode=False, prog_name="anydepth") or 0)
    except BrokenPipeError:
        return _UNREAD
    except SystemExit as stop:  # rich's, where typer prints the help and nobody reads it
        if isinstance(stop.__context__, BrokenPipeError):
            return _UNREAD
        raise
    except (Stopped, KeyboardInterrupt, typer.Abort) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        then = getattr(stop, "__notes__", ["the same command starts over"])[-1]
        terminal.say(f"anydepth: {how}; {then}")
        return 128 + number
    except BaseException as error:
        if not isinstance(error, Exception) and not failures.is_panic(error):
            raise
        return _failed(error, debug=debug)


def _end_within(seconds: float, status: int) -> None:
    """Have the process end with a status, even if it cannot of itself.

    A signal may come while a library hands work to its threads, in the middle of a lock. The interpreter waits for
    those threads at its end, and they would wait for that lock for ever.
    """

    def end() -> None:
        time.sleep(seconds)
        os._exit(status)

    threading.Thread(target=end, daemon=True).start()


def _failed(error: BaseException, *, debug: bool) -> int:
    """Say in one line what went wrong; returns the exit status."""
    if debug:
        terminal.say("".join(traceback.format_exception(error)).rstrip())
    message: str | None = str(error)
    if isinstance(error, typer.TyperException):
        message = error.format_message()
    elif not isinstance(error, AnydepthError):
        message = failures.described(error)
    if message is None:
        terminal.say(f"anydepth: {_of_bug(error)}")
        return 1
    if message:  # there is none where the help was shown for want of arguments
        terminal.say(f"anydepth: {' '.join(message.split())}")
    return 2


def _of_bug(error: BaseException) -> str:
    """What to say of an error that nobody foresaw; its traceback is kept in a file, since it may not come again."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    said = f"this is a bug in anydepth, {type(error).__name__} at {where}: {one_line(error)}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="anydepth-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{said}; please report it with what --debug shows"
    return f"{said}; please report it with {file.name}"


def _flushed(status: int) -> int:
    """Write out what was printed while somebody may still read it; returns the exit status."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except BrokenPipeError:
        status = _UNREAD
    except OSError as error:
        status = _failed(error, debug=False)
    else:
        return status
    # what is still in the buffer can go nowhere, and the interpreter would complain of it at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
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
_VERBS: dict[str, Callable[..., None]] = {
    "trace": trace,
    "align": align,
    "compare": compare,
    "exit": exit_early,
    "predict": predict,
    "generate": generate,
    "truncate": truncate,
    "export": export,
    "demo": demo,
    "reproduce": reproduce,
}
for name, verb in _VERBS.items():
    app.command(name)(checked(verb))
