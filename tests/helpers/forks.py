"""Work in a process of its own that has all this one has imported: a kill, an audit hook, a rank of several."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from anydepth.errors import TraceFileError


def start(work: Callable[[], Any]) -> int:
    """Begin something in a fork of this process; returns its id."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            traceback.print_exc()
            os._exit(3 if isinstance(error, KeyboardInterrupt | TraceFileError) else 4)
    return child


def ended(child: int) -> int:
    """Wait for a fork's end; returns its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(work: Callable[[], Any]) -> int:
    """Do something in a fork; returns how that ended."""
    return ended(start(work))
