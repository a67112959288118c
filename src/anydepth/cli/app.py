"""The command line: its commands, the messages of errors and interrupts, and the exit status.

User errors, and failures of the world outside, are one line on standard error and exit status 2; `--debug` (or the
variable ANYDEPTH_DEBUG) shows where they came from. A bug of ours is one line that says so, and status 1. Where nobody
reads the output any more, the status is 141, as for other programs. Ctrl-C, SIGTERM and SIGHUP end with status 128 + n,
and one line that says whether the same command goes on from there. The library's messages name arguments; here, and
nowhere else, options take their place.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Literal

from anydepth.cli import commands, terminal
from anydepth.cli import error_messages as failures
from anydepth.cli.command import Command
from anydepth.cli.help import overview, page
from anydepth.cli.option_checks import check_effects, with_flags
from anydepth.cli.reproduce_command import reproduce
from anydepth.errors import AnydepthError, one_line
from anydepth.signals import Stopped, stopping

if TYPE_CHECKING:
    from cyclopts import App

# in the order of the help: what one does first comes first
_FUNCTIONS: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "trace": (commands.trace, "gpt2 --data texts.txt --lens 'The capital of France is'"),
    "align": (commands.align, "bert-base-uncased --data reviews.csv --out runs/aligned"),
    "compare": (commands.compare, "runs/before runs/after"),
    "exit": (commands.exit_early, "runs/aligned --data reviews.csv --out runs/exits"),
    "predict": (commands.predict, "runs/exits --data new.csv"),
    "generate": (commands.generate, "gpt2 --prompt 'Once upon' --draft-depth auto --stats"),
    "truncate": (commands.truncate, "runs/aligned --depth auto --data reviews.csv"),
    "export": (commands.export, "runs/exits --out runs/onnx"),
    "demo": (commands.demo, "--epochs 5"),
    "reproduce": (reproduce, "glue --seeds 1"),
}
COMMANDS = {
    name: Command(name=name, function=function, example=example) for name, (function, example) in _FUNCTIONS.items()
}
_HELP = ("--help", "-h")


@functools.cache
def parser() -> App:
    """What reads the arguments: an app of cyclopts, whose help is never used (`anydepth.cli.help` comes sooner)."""
    from cyclopts import App

    app = App(
        name="anydepth",
        help_flags=[],
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, command in COMMANDS.items():
        app.command(f"{__name__}:run_{name}", name=name, help=command.function.__doc__)

    @app.command(name="--install-completion")
    def _install_completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
        print(f"Completion: {app.install_completion(shell=shell)}; a new shell has it")

    return app


def _version() -> str:
    from importlib.metadata import version

    return f"anydepth {version('anydepth')}"


def __getattr__(name: str) -> Callable[..., None]:
    """What cyclopts runs, which it asks for by name: the options of one command are made, not those of all."""
    if not name.startswith("run_") or name.removeprefix("run_") not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return COMMANDS[name.removeprefix("run_")].runner(check_effects)


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
            if not arguments or arguments[0] in _HELP:
                print(overview(COMMANDS, get_terminal_size().columns))
                return 0 if arguments else 2
            if arguments[0] in COMMANDS and set(_HELP) & set(arguments):
                print(page(COMMANDS[arguments[0]], get_terminal_size().columns))
                return 0
            command = _command_in(arguments)
            words = list(arguments) if command is None else command.with_values(arguments)
            parser()(words, exit_on_error=False, print_error=False)
        return 0
    except BrokenPipeError:
        return _UNREAD
    except (Stopped, KeyboardInterrupt) as stop:
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


def _command_in(arguments: Sequence[str]) -> Command | None:
    return next((COMMANDS[word] for word in arguments if word in COMMANDS), None)


def _with_flags(message: str, arguments: Sequence[str]) -> str:
    command = _command_in(arguments)
    return message if command is None else with_flags(message, command)


def _failed(error: BaseException, arguments: Sequence[str], *, debug: bool) -> int:
    """Print one line on what went wrong; returns the exit status."""
    if debug:
        import traceback

        terminal.say("".join(traceback.format_exception(error)).rstrip())
    from cyclopts import CycloptsError

    message: str | None
    if isinstance(error, CycloptsError):
        message = str(error)
    elif isinstance(error, AnydepthError):
        message = _with_flags(str(error), arguments)
    else:
        message = failures.described(error)
    if message is None:
        terminal.say(f"anydepth: {_of_bug(error)}")
        return 1
    terminal.say(f"anydepth: {' '.join(message.split())}")
    return 2


def _of_bug(error: BaseException) -> str:
    """The message of a bug; its traceback is kept in a file, since it may not come again."""
    import tempfile
    import traceback

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
