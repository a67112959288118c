"""Signals that ask a job to stop: Ctrl-C, and what schedulers send (SIGTERM, SIGHUP) before they kill."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_RESEND_AFTER = 0.05  # seconds, by which the code that lost an exception has returned


class Stopped(BaseException):
    """A signal asked the process to stop: a shell expects 128 + `number` as the exit status.

    It is not an `Exception`, as `KeyboardInterrupt` is none.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Context manager: call `handler` with the number of a signal that asks to stop, in place of the usual handlers.

    A signal that is ignored stays ignored (`nohup` ignores SIGHUP). Outside the main thread, where Python does not
    allow handlers, nothing changes; nor in forked processes, such as those that load data: their parent ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, _: object) -> None:
        if os.getpid() == process:
            handler(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    # None is a handler that was not set from Python, and could not be restored
    replaced = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in replaced:
            signal.signal(number, handle)
        yield
    finally:
        for number, old in replaced.items():
            signal.signal(number, old)


@contextmanager
def stopping() -> Iterator[None]:
    """Context manager: a signal that asks to stop raises `Stopped`.

    If it arrives while compiled code of a library calls back into Python, the exception may get lost there: the signal
    is then sent once more. Or that code raises an exception of its own, which becomes `Stopped`, too.
    """
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        raise Stopped(number)

    with handling(stop), _resend_lost():
        try:
            yield
        except Exception as error:
            if not received:
                raise
            stopped = Stopped(received[0])
            stopped.add_note("give the same command again")
            raise stopped from error


@contextmanager
def _resend_lost() -> Iterator[None]:
    """Context manager: send a signal again whose `Stopped` was lost in compiled code."""
    before, timers = sys.unraisablehook, list[threading.Timer]()

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Stopped):
            timers.append(threading.Timer(_RESEND_AFTER, os.kill, (os.getpid(), lost.exc_value.number)))
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
    """Context manager: delay signals that ask to stop until the end of the block, for steps of a few milliseconds."""
    received: list[int] = []
    with handling(received.append):
        yield
    for number in received[:1]:
        signal.raise_signal(number)
