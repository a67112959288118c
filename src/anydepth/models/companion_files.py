"""Copy companion files of a checkpoint (licences, the model card, files of other libraries) to a model made of it.

Files by which other libraries use the model (sentence-transformers' modules and pooling, a chat template, generation
settings) stay true. Other weights, the state of a training and results that were measured on the old model do not: they
are left behind, and named.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from anydepth.errors import listed
from anydepth.storage.disk import leaves, write_errors

_LEGAL = re.compile(r"(?i)(licen[cs]e|notice|copying|copyright|authors|citation|(acceptable_)?use_policy)\b")
_CARD = re.compile(r"(?i)readme\.md$")
# Texts that say how to use a model, and vocabularies.
_USE = {".json", ".txt", ".md", ".model", ".jinja", ".spm", ".bpe", ".vocab", ".tiktoken", ".py", ".yaml", ".yml"}
# Written by a training or by anydepth about the old model; whatever else ends in .index.json lists its weights.
_OLD_RESULTS = re.compile(
    r"(trainer_state|(all|train|eval|test|predict)_results|trace|exit|curve|align|truncate|theory|compare|export|"
    r"predict|.*\.index)\.json$|settings\.yaml$"
)


@dataclass(frozen=True, kw_only=True)
class Companions:
    """Companion files of the checkpoint in `folder`: the files carried over, by their new names, and the others."""

    folder: Path
    carried: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on the files carried over, and one on the others, where there are any."""
        folder = self.folder.resolve().name  # nobody else has this disk
        carried = f"carried over from '{folder}': {listed(self.carried, 6)}"
        others = f"left in '{folder}', since they are of the old model or of no known use: {listed(self.others, 6)}"
        return (carried,) * bool(self.carried) + (others,) * bool(self.others)


def carry(source: Path, target: Path, *, card: str, only_legal: bool = False) -> Companions:
    """Copy companion files of an old model into the folder of a new one, where nothing is overwritten.

    Args:
        source: the folder of the old model.
        target: the folder of the new one, which already holds its model and tokenizer.
        card: new name of the old model's card.
        only_legal: copy only licences and the card, for a model that is used in another way.

    Raises:
        TraceFileError: a file cannot be read or written.
    """
    carried: list[str] = []
    others: list[str] = []
    existing = {path.name for path in target.iterdir()}
    modules = set() if only_legal else _modules(source)
    for path in sorted(source.iterdir()):
        name = card if _CARD.match(path.name) and not path.is_dir() else path.name
        if (name in existing and not path.is_dir()) or path.resolve() == target.resolve():
            continue
        if path.name in modules and path.is_dir() and not path.is_symlink():
            carried.append(path.name)
            others += _copy_module(path, target)
        elif path.is_file() and path.name != card and _is_companion(path.name, only_legal=only_legal):
            with write_errors(target / name):
                shutil.copyfile(path, target / name)  # copies the content of a link, not the link
            carried.append(name)
        elif name not in existing:
            others.append(path.name)
    return Companions(folder=source, carried=tuple(carried), others=tuple(others))


def _is_companion(name: str, *, only_legal: bool) -> bool:
    if name.startswith(".") or _OLD_RESULTS.match(name):
        return False
    legal = _LEGAL.match(name) or _CARD.match(name)
    return bool(legal) or (not only_legal and Path(name).suffix.lower() in _USE)


def _modules(source: Path) -> set[str]:
    """The folders of sentence-transformers' modules after the model: pooling, a dense layer."""
    try:
        modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]) for module in modules if module["path"]}
    except (OSError, ValueError, TypeError, KeyError):  # no such list: its folders are left behind, and named
        return set()


def _copy_module(folder: Path, target: Path) -> list[str]:
    """Copy a module's settings and weights; returns the names of its other files."""
    others = []
    for name in (Path(folder.name, leaf) for leaf in leaves(folder)):
        path, copy = folder.parent / name, target / name
        if path.is_file() and not path.name.startswith(".") and path.suffix in (*_USE, ".safetensors"):
            with write_errors(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        else:
            others.append(name.as_posix())
    return others
