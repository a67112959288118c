"""What every test shares: no network, one thread per worker, a cache of its own, a browser where one is needed.

In modules whose signatures state shapes, all shapes and types are checked at every call. Checking types in the others,
too, would make the tests take half as long again, and mypy does.
"""

import functools
import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator

# Read by the libraries when they are first imported, so set before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
_HF_HOME = tempfile.mkdtemp(prefix="anydepth-hf-")  # nothing found in, or left behind in, the user's own cache
os.environ["HF_HOME"] = _HF_HOME
os.environ["HF_DATASETS_CACHE"] = os.path.join(_HF_HOME, "datasets")

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

SOURCE = Path(__file__).parents[1] / "src"
SHAPED = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if "from jaxtyping import" in path.read_text("utf-8")
]
install_import_hook(SHAPED, "beartype.beartype")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_configure() -> None:
    """Handle signals as in a terminal: `nohup`, or a script's `&`, has whatever it starts ignore some."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Set aside what all imports made: a collection of garbage, such as before each training, took half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Remove this process's cache folder (each worker of pytest-xdist makes its own)."""
    shutil.rmtree(_HF_HOME, ignore_errors=True)
    gc.unfreeze()  # compiled libraries say what of them nobody has cleared away


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium-like browser; where CI is set a missing one is a failure, elsewhere a skip."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = "no browser: install the package `chromium` to test the report in one"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return found


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the charts of a trace's report, which take two seconds; a test marked `drawn` has them all the same."""
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr("anydepth.report.pages.trace.render", lambda *_: "report")


@pytest.fixture(autouse=True, scope="module")
def unsynchronized(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave it to the system when it writes to the disk, which keeps a result waiting; the tests of storage wait."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "storage":
            patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time early exit once and on one batch, where it is nothing what comes out; tests/exits/test_curve.py has more."""
    from anydepth.exits import curve
    from anydepth.jobs import calibrate

    whole = curve.relative_time
    monkeypatch.setattr(curve, "_ROUNDS", 1)
    for module in (curve, calibrate):
        monkeypatch.setattr(module, "relative_time", lambda exits, batches: whole(exits, batches[:1]))


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands run as long as they need without a word: a busy machine may need ten seconds for any of them."""
    monkeypatch.setattr("anydepth.cli.terminal.QUIET", float("inf"))


@pytest.fixture
def charts_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw charts without comparing them with their schema, a second for each report: the tests of reports do."""
    monkeypatch.setattr("altair.utils.schemapi.DEBUG_MODE", False)


@pytest.fixture
def charts_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare every whole chart with the schema of Vega-Lite, which production leaves out."""
    import altair

    whole = altair.TopLevelMixin.to_dict

    def checked(self: Any, validate: bool = True, **settings: Any) -> Any:
        return whole(self, validate=validate or not settings.get("context"), **settings)

    monkeypatch.setattr(altair.TopLevelMixin, "to_dict", checked)


@pytest.fixture(scope="session")
def operators_listed_once() -> Iterator[None]:
    """Have torch list once how its thousand operators are written in ONNX: for each graph, that takes 1.5 seconds."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        # what is listed depends on the version of the operators alone, and an export does not change it
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
