"""Results of the theory on a model and data, with saving and loading: `theory.json`, beside a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anydepth.core.provenance import entry
from anydepth.errors import TraceFileError
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, number
from anydepth.stats.means import Estimate
from anydepth.storage.files import plain, read_json, replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind
from anydepth.theory.closeness import Closeness
from anydepth.theory.collapse import Collapse
from anydepth.theory.geometry import Geometry
from anydepth.theory.updates import Updates

FORMAT = 1
FILE = "theory.json"
_OUTPUT = OutputKind(job="trace", mark=FILE)
MEASURED, UNCENTRED, RANDOM_WEIGHTS, SHUFFLED_LABELS = "measured", "not centred", "random weights", "shuffled labels"
_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Theory(Result):
    """Results of the paper's theory on a model and data, with those of null models. L + 1 = K depths.

    What could not be computed is absent, and `notes` say why.

    Attributes:
        geometry: of the paths: "measured" (seen from the mean of each depth), "not centred", the nulls "random walk"
            and "shuffled", and "random weights" if a model with such was given.
        closeness: Theorem 2.2 for the "final" and the "true" class.
        collapse: "measured", with "shuffled labels", and with "random weights".
        updates: directions of the blocks' updates, for the "final" and the "true" class.
        notes: what is absent or undefined, and why.
        provenance: the model and data.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth.theory.examine import examine
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> examine(ViTForImageClassification(config), [{"pixel_values": torch.rand(20, 1, 8, 8)}], labels=False)
        Theory(geometry, closeness, updates at depths 0 to 2)
    """

    geometry: Mapping[str, Geometry]
    closeness: Mapping[str, Closeness]
    collapse: Mapping[str, Collapse]
    updates: Mapping[str, Updates]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]

    def line(self) -> str:
        """What was examined."""
        parts = (name for name in ("geometry", "closeness", "collapse", "updates") if getattr(self, name))
        return f"{', '.join(parts)} at depths 0 to {self.depth}"

    def tables(self) -> tuple[Table, ...]:
        """One row for each depth: the cosine with the last, that of a straight line, and NC1."""
        paths, collapsed = self.geometry[MEASURED], self.collapse.get(MEASURED)
        columns = [
            Column(head="depth", cells=tuple(map(str, range(self.depth + 1)))),
            *(
                Column(head=head, cells=tuple(map(number, values)), rank=rank)
                for head, values, rank in (
                    ("cosine with the last depth", paths.cosine.value, 0),
                    ("a straight line's", paths.predicted.value, 2),
                    ("NC1", () if collapsed is None else collapsed.nc1, 1),
                )
                if len(values)
            ),
        ]
        name = entry(self.provenance, "model", "name", default="states")
        return (Table(title=f"Theory of {name}", columns=tuple(columns)),)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.geometry[MEASURED].norm.value) - 1

    def save(self, folder: str | Path) -> Path:
        """Write `theory.json` to a folder, all or nothing.

        Raises:
            TraceFileError: it cannot be written.
        """
        path = Path(folder) / FILE
        with replacing_folder(path.parent, _OUTPUT) as beside:
            write_json(beside / FILE, {"format": FORMAT, **plain(self)})
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Theory:
        """Load what `save` wrote.

        Raises:
            TraceFileError: nothing is there, it is corrupt or of a newer format, or the trace beside it is of another
                model or other data.
        """
        path = Path(folder) / FILE
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise TraceFileError(f"{path} is no theory: it states no format")
        if content["format"] > FORMAT:
            raise TraceFileError(
                f"{path} is of format {content['format']}, and this anydepth reads up to {FORMAT}: upgrade anydepth"
            )
        try:
            theory = cls(
                geometry={name: _read(Geometry, part) for name, part in content["geometry"].items()},
                closeness={name: _read(Closeness, part) for name, part in content["closeness"].items()},
                collapse={name: _read(Collapse, part) for name, part in content["collapse"].items()},
                updates={name: _read(Updates, part) for name, part in content["updates"].items()},
                notes=tuple(content["notes"]),
                provenance=content["provenance"],
            )
            theory.depth  # noqa: B018  # raises where the measured geometry is missing
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise TraceFileError(f"{path} is corrupt: {type(problem).__name__} at {problem}") from None
        if (what := _difference(theory.provenance, Path(folder))) is not None:
            raise TraceFileError(f"{path} and the trace beside it are of different {what}: trace with --theory")
        return theory


def has_theory(folder: Path) -> bool:
    """Whether there are findings in a folder, of the same model and data as the trace there."""
    path = folder / FILE
    return path.is_file() and _difference(read_json(path).get("provenance", {}), folder) is None


def _difference(provenance: Mapping[str, Any], folder: Path) -> str | None:
    """In what the trace in the folder, which may have been written there since, is another: model or data."""
    beside = folder / "trace.json"
    other = read_json(beside).get("provenance", {}) if beside.is_file() else provenance
    names = ("model", "data")
    marks = [[one.get(name, {}).get("fingerprint") for name in names] for one in (provenance, other)]
    return next((name for name, a, b in zip(names, *marks, strict=True) if a != b), None)


def _read(kind: type[_Part], content: dict[str, Any]) -> _Part:
    """A part from its dict; whether a value is an estimate, array, number or notes follows from its JSON type."""
    return kind(**{field.name: _value(content[field.name]) for field in fields(kind)})  # type: ignore[arg-type]


def _value(content: Any) -> Any:
    if isinstance(content, dict):
        return Estimate(**{end: _array(values) for end, values in content.items()})
    if isinstance(content, list):
        return tuple(content) if all(isinstance(item, str) for item in content) else _array(content)
    return content


def _array(content: Any) -> np.ndarray:
    values = np.array(content, dtype=object)
    whole = values.size and all(isinstance(value, int) for value in values.ravel())
    return values.astype(np.int64 if whole else np.float64)
