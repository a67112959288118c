"""How a clone is installed: the locked versions where they can be had, fewer of them where not, and what is said."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCK = "numpy==2.4.6 ; python_full_version < '3.12'\nnvidia-nccl-cu13==2.30.7 ; sys_platform == 'linux'\n"
LOCK += "torch==2.15.0\ntorchmetrics==1.9.0\ntriton==3.9.0\n"


@pytest.fixture(scope="module")
def requirements() -> Any:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Pip:
    """Fails as often as it is told, and keeps what it was given."""

    def __init__(self, failures: int) -> None:
        self.failures, self.constraints, self.wanted = failures, list[str](), list[Sequence[str]]()

    def __call__(self, command: Sequence[str]) -> int:
        place = command.index("--constraint")
        self.constraints.append(Path(command[place + 1]).read_text())
        self.wanted.append(command[place + 2 :])
        return int(len(self.constraints) <= self.failures)


def test_the_locked_versions_are_taken_where_they_can_be_had(requirements: Any, capfd: Any) -> None:
    pip = Pip(0)
    assert requirements.install(["--editable", ".[dev]"], LOCK, pip) == 0
    assert pip.constraints == [LOCK]
    assert pip.wanted == [("--editable", ".[dev]")]
    assert capfd.readouterr().err == ""


def test_a_machine_without_that_torch_gets_another_and_the_rest_locked(requirements: Any, capfd: Any) -> None:
    pip = Pip(1)
    assert requirements.install(["."], LOCK, pip) == 0
    assert [Requirement(line).name for line in pip.constraints[1].splitlines()] == ["numpy", "torchmetrics"]
    assert capfd.readouterr().err == (
        "anydepth: a locked version cannot be had here (pip says why above): trying without locking torch and what "
        "comes with it\n"
    )


def test_in_the_end_the_ranges_are_taken(requirements: Any, capfd: Any) -> None:
    pip = Pip(2)
    assert requirements.install(["."], LOCK, pip) == 0
    assert pip.constraints[2] == ""
    assert "without locking anything" in capfd.readouterr().err


def test_a_failure_is_one(requirements: Any) -> None:
    assert requirements.install(["."], LOCK, Pip(9)) == 1


def test_other_versions_are_told(requirements: Any) -> None:
    here = {"numpy": "2.4.6", "torch": "2.14.1", "torchmetrics": "1.9.0"}

    def installed(name: str) -> str:
        if name not in here:
            raise PackageNotFoundError(name)
        return here[name]

    lock = LOCK.replace("python_full_version < '3.12'", "python_full_version >= '3.11'")
    assert requirements.differing(lock, installed) == ["torch 2.14.1 (==2.15.0 is locked)"]
    other = "numpy==1.0 ; python_full_version < '3'\n# torch==1.0\n"
    assert requirements.differing(other, installed) == []


def test_pip_takes_the_lock(tmp_path: Path) -> None:
    """As the real pip reads it: a package that is here in its locked version has nothing to be done for it."""
    lock = ROOT / "requirements" / "locked.txt"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "--constraint", lock]
    done = subprocess.run([*command, "packaging"], capture_output=True, text=True, cwd=tmp_path)
    pinned = re.search(r"^packaging==(\S+)", lock.read_text(), re.MULTILINE)
    assert pinned is not None
    assert (done.returncode == 0) == (version("packaging") == pinned[1]), done.stderr


# --- the lock itself --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pins() -> dict[str, list[Requirement]]:
    """What is locked, by name; several where Pythons differ."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements" / "locked.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pins.setdefault(Requirement(line).name, []).append(Requirement(line))
    return pins


def wanted() -> list[Requirement]:
    """All that pyproject.toml names, itself left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for more in project["optional-dependencies"].values() for line in more)]
    return [one for one in map(Requirement, lines) if one.name != "anydepth"]


PYTHONS = [(f"3.{minor}", system) for minor in (11, 12, 13) for system in ("linux", "darwin")]


@pytest.mark.parametrize(("python", "system"), PYTHONS)
def test_everything_is_locked_once_within_its_range(python: str, system: str, pins: Any) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": system}
    for requirement in wanted():
        (pin,) = [one for one in pins[requirement.name] if not one.marker or one.marker.evaluate(environment)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in requirement.specifier, f"{pin} is not in {requirement}"
