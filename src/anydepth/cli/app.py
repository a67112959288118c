"""The command line: its commands, the messages of errors and interrupts, and the exit status.

User errors, and failures of the world outside, are one line on standard error and exit status 2; `--debug` (or the
variable ANYDEPTH_DEBUG) shows where they came from. A bug of ours is one line that says so, and status 1. Where nobody
reads the output any more, the status is 141, as for other programs. Ctrl-C, SIGTERM and SIGHUP end with status 128 + n,
and one line that says whether the same command goes on from there. The library's messages name arguments; here, and
nowhere else, options take their place.
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
from anydepth.cli.option_checks import checked, with_flags
from anydepth.errors import AnydepthError, one_line
from anydepth.signals import Stopped, stopping


class _Commands(TyperGroup):
    """Commands whose interrupts keep the notes of the job, where typer would make a mere exit status of them."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C is a signal like any other."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            stop = Stopped(signal.SIGINT)
            for note in getattr(interrupt, "__notes__", ()):
                stop.add_note(note)
            raise stop from interrupt


app = typer.Typer(
    name="anydepth",
    cls=_Commands,
    help="Show what every depth of a transformer knows, and train one classifier to work at all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UNREAD = 141
_PATIENCE = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit status."""
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
        note = getattr(stop, "__notes__", ["the same command starts over"])[-1]
        terminal.say(f"anydepth: {how}; {_with_flags(note, arguments)}")
        return 128 + number
    except BaseException as error:
        if not isinstance(error, Exception) and not failures.is_panic(error):
            raise
        return _failed(error, arguments, debug=debug)


def _end_within(seconds: float, status: int) -> None:
    """End the process with a status after some seconds, if it has not ended by itself.

    A signal may come while a library hands work to its threads, in the middle of a lock. The interpreter waits for
    those threads at its end, and they would wait for that lock for ever.
    """

    def end() -> None:
        time.sleep(seconds)
        os._exit(status)

    threading.Thread(target=end, daemon=True).start()


def _with_flags(message: str, arguments: Sequence[str]) -> str:
    command = next((_COMMANDS[word] for word in arguments if word in _COMMANDS), None)
    return message if command is None else with_flags(message, command)


def _failed(error: BaseException, arguments: Sequence[str], *, debug: bool) -> int:
    """Print one line on what went wrong; returns the exit status."""
    if debug:
        terminal.say("".join(traceback.format_exception(error)).rstrip())
    message: str | None
    if isinstance(error, typer.TyperException):
        message = error.format_message()
    elif isinstance(error, AnydepthError):
        message = _with_flags(str(error), arguments)
    else:
        message = failures.described(error)
    if message is None:
        terminal.say(f"anydepth: {_of_bug(error)}")
        return 1
    if message:  # there is none where the help was shown for want of arguments
        terminal.say(f"anydepth: {' '.join(message.split())}")
    return 2


def _of_bug(error: BaseException) -> str:
    """The message of a bug; its traceback is kept in a file, since it may not come again."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    message = f"this is a bug in anydepth, {type(error).__name__} at {where}: {one_line(error)}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="anydepth-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{message}; please report it with what --debug shows"
    return f"{message}; please report it with {file.name}"


def _flushed(status: int) -> int:
    """Flush standard output and error; returns the exit status."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except BrokenPipeError:
        status = _UNREAD
    except OSError as error:
        status = _failed(error, (), debug=False)
    else:
        return status
    # what is still in the buffer can go nowhere, and the interpreter would complain of it at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _show_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"anydepth {version('anydepth')}")
        raise typer.Exit
    return wanted


@app.callback()
def _anydepth(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options before the command."""


# in the order of the help: what one does first comes first
_COMMANDS: dict[str, Callable[..., None]] = {
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
for name, command in _COMMANDS.items():
    app.command(name)(checked(command))
