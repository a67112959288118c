"""Signals that ask a job to stop: Ctrl-C, and what schedulers send (SIGTERM, SIGHUP) before they kill."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_A_MOMENT = 0.05  # after which the code that lost an exception has returned


class Stopped(BaseException):
    """A signal asked the process to stop. Not an `Exception`, as `KeyboardInterrupt` is none.

    Attributes:
        number: of the signal; a shell expects 128 + number as the exit status.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Context manager: hand the signals that ask to stop to `handler`; afterwards they are handled as before.

    A signal that is ignored stays so (`nohup` ignores SIGHUP). Outside the main thread, where Python lets nobody handle
    signals, nothing changes; nor in processes forked inside, such as those that load data: their parent ends them.

    Args:
        handler: takes the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def handle(number: int, _: object) -> None:
        if os.getpid() == own:
            handler(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    # None is a handler that was not set from Python, and could not be put back
    taken = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in taken:
            signal.signal(number, handle)
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


@contextmanager
def stopping() -> Iterator[None]:
    """Context manager: a signal that asks to stop raises `Stopped`.

    Where it comes while compiled code of a library calls back into Python, the exception may get lost there: the signal
    is then sent once more. Or that code may fail for want of an answer: whatever it raises then is `Stopped`, too.
    """
    came: list[int] = []

    def stop(number: int) -> None:
        came.append(number)
        raise Stopped(number)

    with handling(stop), _lost_ones_sent_again():
        try:
            yield
        except Exception as error:
            if not came:
                raise
            stopped = Stopped(came[0])
            stopped.add_note("give the same command again")
            raise stopped from error


@contextmanager
def _lost_ones_sent_again() -> Iterator[None]:
    before, timers = sys.unraisablehook, list[threading.Timer]()

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Stopped):
            timers.append(threading.Timer(_A_MOMENT, os.kill, (os.getpid(), lost.exc_value.number)))
            timers[-1].start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


@contextmanager
def held_back() -> Iterator[None]:
    """Context manager: signals that ask to stop wait until the end of the block, for steps of a few milliseconds."""
    came: list[int] = []
    with handling(came.append):
        yield
    for number in came[:1]:
        signal.raise_signal(number)
