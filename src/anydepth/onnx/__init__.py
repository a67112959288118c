"""Exits as ONNX graphs: `export` writes them, `Router` runs them where torch is not installed."""

from typing import TYPE_CHECKING

from anydepth.lazy import lazy_names

if TYPE_CHECKING:
    from anydepth.onnx.exporter import export
    from anydepth.onnx.router import Router

__all__ = ["Router", "export"]
__getattr__, __dir__ = lazy_names(__name__, {"Router": "anydepth.onnx.router", "export": "anydepth.onnx.exporter"})
