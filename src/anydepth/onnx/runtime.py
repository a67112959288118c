"""The module `onnxruntime`, loaded without its telemetry."""

from __future__ import annotations

import os
from typing import Any


def load_onnxruntime() -> Any:
    """Import `onnxruntime` without its telemetry, unless the user's own setting asks for that.

    It would write to the user's home folder and send from there, as soon as it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
