"""The wheel: what is in it, what it says of itself, and that it works where nothing else of the project is."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import checkpoints
import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the project, and give what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: the build needs nothing but hatchling, which the test environment has.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it.

    Its dependencies are lent by the environment of the tests, through a path file. What that environment knows of
    anydepth stays out: path files in a folder that a path file names are not read.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "pip", "--python", binaries / "python", *install(wheel), cwd=folder)
    packages = Path(run(binaries / "python", "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip())
    (packages / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return binaries


def install(wheel: Path) -> Sequence[str]:
    return ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel))


def test_everything_of_the_package_is_in_it(wheel):
    package = ROOT / "src" / "anydepth"
    written = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == written
    assert "anydepth/py.typed" in packed
    assert any(name.startswith("anydepth/report/") and not name.endswith(".py") for name in packed)  # its templates


def test_metadata(metadata):
    assert (metadata["Name"], metadata["Requires-Python"]) == ("anydepth", ">=3.11")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"timm", "onnx", "demo", "dev"}
    assert metadata.get_payload().startswith("# anydepth")  # the README


def test_dependencies_are_ranges(metadata):
    required = metadata.get_all("Requires-Dist", [])
    bare = [line for line in required if "extra ==" not in line]
    assert any(re.match("torch<[0-9.]+,>=", line) for line in bare)
    assert [line for line in required if "==" in line.split(";")[0]] == []
    assert not any(line.startswith(("timm", "torchvision", "onnx", "scikit-learn", "pytest")) for line in bare)


def test_it_is_the_wheel_that_runs(clean, metadata, tmp_path):
    found = run(clean / "python", "-c", "import anydepth; print(anydepth.__file__)", cwd=tmp_path).strip()
    assert Path(found).is_relative_to(clean.parent)
    code = "from importlib.metadata import version; print(version('anydepth'))"
    assert run(clean / "python", "-c", code, cwd=tmp_path).strip() == metadata["Version"]


def test_its_command_runs(clean, tmp_path):
    printed = run(clean / "anydepth", "--help", cwd=tmp_path)
    assert "trace" in printed
    assert "demo" in printed


def test_it_traces(clean, tmp_path):
    model = checkpoints.vit(tmp_path / "model", num_labels=10)
    run(clean / "anydepth", "trace", model, "--data", "digits", "--limit", "20", "--out", "traced", cwd=tmp_path)
    assert (tmp_path / "traced" / "report.html").stat().st_size > 100_000
