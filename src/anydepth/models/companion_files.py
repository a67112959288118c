"""What a checkpoint's folder holds beside model and tokenizer, and what of it goes along with a model made of it.

Licences, the model card, and the files by which other libraries use the model (sentence-transformers' modules and
pooling, a chat template, generation settings) stay true. Other weights, the state of a training and results that were
measured on the old model do not: they are left, and named.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anydepth.storage.disk import write_errors

_LEGAL = re.compile(r"(?i)(licen[cs]e|notice|copying|copyright|authors|citation|(acceptable_)?use_policy)\b")
_CARD = re.compile(r"(?i)readme\.md$")
# Texts that tell how to use a model, and vocabularies.
_USE = {".json", ".txt", ".md", ".model", ".jinja", ".spm", ".bpe", ".vocab", ".tiktoken", ".py", ".yaml", ".yml"}
# Written by a training or by anydepth, of the old model; whatever else ends in .index.json lists its weights.
_OF_THE_OLD = re.compile(
    r"(trainer_state|(all|train|eval|test|predict)_results|trace|exit|curve|align|truncate|theory|compare|export|"
    r"predict|.*\.index)\.json$"
)
_NAMED = 6  # files in a note


@dataclass(frozen=True, kw_only=True)
class Companions:
    """What became of the other files of a checkpoint's folder.

    Attributes:
        folder: where they are.
        carried: those that went along, as they are called now.
        left: those that did not.
    """

    folder: Path
    carried: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Both in a sentence each, where there are any."""
        folder = self.folder.resolve().name  # nobody else has this disk
        carried = f"carried over from '{folder}': {_names(self.carried)}"
        left = f"left in '{folder}', since they are of the old model or of no known use: {_names(self.left)}"
        return (carried,) * bool(self.carried) + (left,) * bool(self.left)


def carry(source: Path, target: Path, *, card: str, only_legal: bool = False) -> Companions:
    """Copy what goes along with a new model into its folder.

    Args:
        source: the folder of the old model.
        target: that of the new one, with its model and tokenizer in it: what is there is never written over.
        card: what to call the old model's card.
        only_legal: leave all but licences and the card, for a model that is used in another way.

    Raises:
        TraceFileError: a file cannot be read or written.
    """
    carried: list[str] = []
    left: list[str] = []
    there = {path.name for path in target.iterdir()}
    modules = set() if only_legal else _modules(source)
    for path in sorted(source.iterdir()):
        name = card if _CARD.match(path.name) and not path.is_dir() else path.name
        if (name in there and not path.is_dir()) or path.resolve() == target.resolve():
            continue
        if path.name in modules and path.is_dir() and not path.is_symlink():
            carried.append(path.name)
            left += _copy_module(path, target)
        elif path.is_file() and path.name != card and _goes_along(path.name, only_legal=only_legal):
            with write_errors(target / name):
                shutil.copyfile(path, target / name)  # a link's content: what it points to stays behind
            carried.append(name)
        elif name not in there:
            left.append(path.name)
    return Companions(folder=source, carried=tuple(carried), left=tuple(left))


def _goes_along(name: str, *, only_legal: bool) -> bool:
    if name.startswith(".") or _OF_THE_OLD.match(name):
        return False
    legal = _LEGAL.match(name) or _CARD.match(name)
    return bool(legal) or (not only_legal and Path(name).suffix.lower() in _USE)


def _modules(source: Path) -> set[str]:
    """The folders of sentence-transformers' modules after the model: pooling, a dense layer."""
    try:
        listed = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]) for module in listed if module["path"]}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError, KeyError):  # no such list: then its folders are left, and named
        return set()


def _copy_module(folder: Path, target: Path) -> list[str]:
    """Copy a module's settings and weights; returns what else it holds."""
    left = []
    for path in _files(folder):
        name = path.relative_to(folder.parent)
        if path.is_file() and not path.name.startswith(".") and path.suffix in (*_USE, ".safetensors"):
            with write_errors(target / name):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)
        else:
            left.append(name.as_posix())
    return left


def _files(folder: Path) -> Iterator[Path]:
    """All that is no folder, without following links to folders."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
