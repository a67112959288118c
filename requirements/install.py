"""Install anydepth from a clone, with the versions of locked.txt.

Usage: python requirements/install.py EXTRA [PACKAGE ...]

The Makefile runs this with the Python of the environment to install into. A machine that cannot have a locked version
(an index that is capped, a platform without that wheel) is given what the package's own ranges allow, and told so.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
LOCKED = HERE / "locked.txt"
# Builds of torch differ between machines more than anything else, and bring these along in versions of their own.
TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)==")


def attempts(lock: str) -> Iterator[tuple[str, str]]:
    """The constraints to try, strictest first, and what each leaves out."""
    yield lock, ""
    lines = lock.splitlines(keepends=True)
    yield "".join(line for line in lines if not TORCH.match(line)), "torch and what comes with it"
    yield "", "anything"


def install(wanted: Sequence[str], lock: str, call: Callable[[Sequence[str]], int] = subprocess.call) -> int:
    """Run pip with the locked versions, and with fewer of them while it fails; returns its last status.

    Args:
        wanted: what to install, as pip takes it.
        lock: the content of a constraints file.
        call: runs a command and returns its status.
    """
    status = 1
    with TemporaryDirectory() as folder:
        for number, (constraints, without) in enumerate(attempts(lock)):
            if without:
                say(f"a locked version cannot be had here (pip says why above): trying without locking {without}")
            file = Path(folder) / f"{number}.txt"
            file.write_text(constraints, encoding="utf-8")
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            status = call((*pip, "--constraint", str(file), *wanted))
            if status == 0:
                return 0
    return status


def differing(lock: str, installed: Callable[[str], str] = version) -> list[str]:
    """What is installed in another version than the locked one, in words."""
    from packaging.requirements import Requirement

    lines = (line for line in lock.splitlines() if line and not line.startswith(("#", " ")))
    found = []
    for pinned in map(Requirement, lines):
        if pinned.marker is None or pinned.marker.evaluate():
            try:
                here = installed(pinned.name)
            except PackageNotFoundError:
                continue
            if here not in pinned.specifier:
                found.append(f"{pinned.name} {here} ({pinned.specifier} is locked)")
    return found


def say(line: str) -> None:
    """Print a line where errors go."""
    print(f"anydepth: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Install an extra of the clone this file lies in, and the packages named beside it."""
    extra, *packages = arguments
    lock = LOCKED.read_text(encoding="utf-8")
    status = install(("--editable", f"{HERE.parent}[{extra}]", *packages), lock)
    if status == 0 and (others := differing(lock)):
        say(f"installed in other versions than those tested: {', '.join(others)}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
