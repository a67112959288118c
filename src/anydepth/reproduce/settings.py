"""Settings of a run of a recipe, which are the options of `anydepth reproduce`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anydepth.errors import ReproduceError
from anydepth.jobs.options import Option, Range
from anydepth.jobs.settings import DeviceSettings
from anydepth.reproduce.subjects import Scale
from anydepth.storage.paths import entry_at


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings(DeviceSettings):
    """The recipe, how much of it, and the folder of `results/`, `figures/`, `parts/` and the verdict page."""

    job = "reproduce"
    title = "Recipe"
    recipe: Annotated[str, "A recipe; --list shows them.", Option(metavar="NAME", positional=True)] = ""
    scale: Annotated[Scale, "cpu, for two cores; full, as in the paper, for a large GPU."] = "cpu"
    seeds: Annotated[int, "Number of seeds, from 0 on; finished ones are kept.", Option(range=Range(least=1))] = 3
    steps: Annotated[int | None, "Trial: stop every training after N steps.", Option(range=Range(least=1))] = None
    as_printed: Annotated[bool, "Train with the paper's settings where they are not plausible, too."] = False
    use: Annotated[
        tuple[str, ...], "A folder or file in the place of a hub id or asset.", Option(metavar="NAME=PATH")
    ] = ()
    out: Annotated[Path, "Where to write.", Option(metavar="DIR")] = Path("runs/reproduce")

    @property
    def replacements(self) -> dict[str, str]:
        """Local folders and files by the name that they replace.

        Raises:
            ReproduceError: an entry of `use` is no NAME=PATH, or nothing is there.
        """
        pairs = {}
        for text in self.use:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise ReproduceError(
                    f"--use is {text!r}, expected NAME=PATH, such as google-bert/bert-base-uncased=models/bert"
                )
            if entry_at(path, ReproduceError) is None:
                raise ReproduceError(f"--use {name}: there is no folder or file '{path}'")
            pairs[name] = path
        return pairs
