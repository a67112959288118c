"""Results of a recipe: the numbers of every seed, kept in one readable file, and their means over seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from anydepth.errors import ReproduceError
from anydepth.reproduce.subjects import Scale
from anydepth.stats.intervals import t_interval
from anydepth.stats.means import Estimate
from anydepth.storage.disk import atomic_write, write_errors
from anydepth.storage.files import plain, read_json

FORMAT = 1
Values = Mapping[str, Mapping[str, Any]]
"""variant → quantity → a number, or a list of them, one for each depth; None where undefined."""


@dataclass(frozen=True)
class Seed:
    """One seed's numbers, and where they come from.

    Attributes:
        values: variant → quantity → a number, or a list by depth.
        cpu_seconds: that its parts took when they were made, whichever recipe made them.
        provenance: versions, time and machine.
    """

    values: Values
    cpu_seconds: float
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RecipeResults:
    """Results of a recipe.

    Attributes:
        recipe: its name.
        version: of the recipe: another one measures something else.
        scale: "cpu" or "full".
        settings: models, data and trainings, as plain values.
        steps: None, or after how many every training was stopped: a trial, not a result.
        seeds: by seed.
    """

    recipe: str
    version: int
    scale: Scale
    settings: Mapping[str, Any]
    steps: int | None = None
    seeds: Mapping[int, Seed] = field(default_factory=dict)

    def each(self, variant: str, quantity: str) -> Float64[np.ndarray, "s ..."]:
        """A quantity of a variant, one row a seed: (seeds,) or (seeds, depths); NaN where undefined.

        Raises:
            ReproduceError: no seed has it.
        """
        try:
            rows = [seed.values[variant][quantity] for seed in self.seeds.values()]
        except KeyError as missing:
            raise ReproduceError(
                f"the results of '{self.recipe}' hold no {missing} of ({variant}, {quantity}): run it in another --out"
            ) from None
        return np.array(rows, dtype=object).astype(np.float64)  # None becomes NaN

    def shallow(self, variant: str, quantity: str) -> Float64[np.ndarray, " s"]:
        """The mean of a curve over the depths 1 to L - 1, one for each seed."""
        return np.asarray(self.each(variant, quantity)[:, 1:-1].mean(1))

    def has(self, variant: str, quantity: str) -> bool:
        """Whether there is such a quantity."""
        return all(quantity in seed.values.get(variant, {}) for seed in self.seeds.values())

    def mean(self, variant: str, quantity: str) -> Estimate:
        """Its mean over seeds, with the 95 % interval of Student's t; NaN ends of a single seed."""
        rows = self.each(variant, quantity)
        low, high = t_interval(rows)
        return Estimate(*map(np.asarray, (rows.mean(0), low, high)))

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants in the order they were measured."""
        first = next(iter(self.seeds.values()), None)
        return () if first is None else tuple(first.values)

    def with_seed(self, number: int, seed: Seed) -> RecipeResults:
        """These results and one seed's more."""
        return replace(self, seeds=dict(sorted({**self.seeds, number: seed}.items())))

    def save(self, path: Path) -> None:
        """Write the file, all or nothing."""
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, **asdict(self)}
        content["seeds"] = {str(number): asdict(seed) for number, seed in self.seeds.items()}
        lines = json.dumps(plain(content), indent=1, allow_nan=False)
        # A curve is one line.
        text = re.sub(r'\[[^][{}"]*\]', lambda match: " ".join(match[0].split()), lines) + "\n"
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8")

    @classmethod
    def load(cls, path: Path) -> RecipeResults:
        """Read results from a file.

        Raises:
            ReproduceError: it is of a newer format, or corrupt.
        """
        content = read_json(path)
        form = content.get("format") if isinstance(content, dict) else None
        if not isinstance(form, int):
            raise ReproduceError(f"'{path}' holds no results of a recipe: it states no format")
        if form > FORMAT:
            raise ReproduceError(
                f"'{path}' is of format {form}, and this anydepth reads up to {FORMAT}: upgrade anydepth"
            )
        try:
            seeds = {int(number): Seed(**seed) for number, seed in content["seeds"].items()}
            known = {name: content[name] for name in ("recipe", "version", "scale", "settings", "steps")}
            results = cls(**known, seeds=seeds)
            results.require_whole()
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ReproduceError(f"'{path}' is corrupt: {type(problem).__name__} at {problem}") from None
        return results

    def require_whole(self) -> None:
        """Check that everything is of its type, and every curve of one length in all seeds.

        Raises:
            ValueError: something is not.
        """
        kinds = {"recipe": str, "version": int, "scale": str, "settings": dict}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"'{name}'")
        if not isinstance(self.settings["subjects"], dict) or any(number < 0 for number in self.seeds):
            raise ValueError("'subjects', or the number of a seed")
        shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        for seed in self.seeds.values():
            dict(seed.provenance)
            for variant, values in seed.values.items():
                for quantity, value in values.items():
                    shape = np.array(value, dtype=object).astype(np.float64).shape
                    if shapes.setdefault((variant, quantity), shape) != shape:
                        raise ValueError(f"'{quantity}' of '{variant}', of another length in another seed")


def as_kept(values: Any) -> Any:
    """Numbers as a file holds them, to six digits: more than means over a few seeds can ever say.

    Example:
        >>> as_kept({"a": {"x": (1 / 3, float("nan"))}})
        {'a': {'x': [0.333333, None]}}
    """
    value = plain(values)
    if isinstance(value, dict):
        return {name: as_kept(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [as_kept(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
