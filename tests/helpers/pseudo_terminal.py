"""What comes to the screen of a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import traceback
from collections.abc import Callable
from typing import NoReturn

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_screen(show: Callable[[], object], columns: int) -> list[str]:
    """The lines that a function prints in a process of its own, whose terminal has so many columns; without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        ["true"], stdin=slave, stdout=slave, stderr=slave, restore_signals=False, preexec_fn=lambda: _run(show)
    )
    os.close(slave)
    text = _COLOUR.sub("", read_screen(master))
    assert process.wait() == 0, text
    return text.splitlines()


def read_screen(master: int) -> str:
    """All that comes to a pseudo-terminal until its other side is closed; this side is then closed, too."""
    screen = b""
    try:
        while piece := os.read(master, 65536):
            screen += piece
    except OSError:  # the other side was closed
        pass
    os.close(master)
    return screen.decode().replace("\r\n", "\n")


def _run(show: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        os.closerange(3, 65536)  # among them what tells the process before that this one runs: it waits for that
        os.environ["TERM"] = "xterm-256color"
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        show()
        status = 0
    except BaseException:
        sys.stdout.write(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(status)
