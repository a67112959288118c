"""Open data sets by name: files, folders, hub ids and the built-in digits, each by the names of its splits."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.columns import GivenColumns
from anydepth.data.folders import read_folder
from anydepth.data.tables import read_tables
from anydepth.errors import DataError
from anydepth.models.hub_errors import HUB_ID, quiet, translated
from anydepth.storage.file_kinds import kind_of
from anydepth.storage.locks import scratch_folder
from anydepth.storage.paths import entry_at, local_path, shown

DIGITS = "digits"
FILE, ROWS = "file", "rows"
"""What the only split of a file, and of rows that are objects, is called."""
# Names under which `datasets` would read whatever files of a kind lie in the folder one happens to be in.
_BUILDERS = ("csv", "json", "text", "pandas", "parquet", "arrow", "xml", "sql", "generator", "webdataset", "hdf5")
# Characters that `datasets` and what it stands on take for patterns or addresses.
_SPECIAL = re.compile(r"[*?\[\]]|::|://")
# The default split: one that is not for training.
_VALIDATION = ("validation", "valid", "dev", "val")
TO_EVALUATE = ("test", *_VALIDATION)
"""Splits to evaluate on, the first that there is."""
TO_CALIBRATE = (*_VALIDATION, "test")
"""Splits to choose and certify something on, which leave the test split to be answered."""


class Splits(dict[str, Any]):
    """`datasets.Dataset` by the name of its split, and notes on what was assumed to read them."""

    def __init__(self, parts: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        super().__init__(parts)
        self.notes = notes


def splits(source: str, *, given: GivenColumns | None = None) -> Splits:
    """Open all splits of a data set. A path is taken literally: no part of it is a pattern.

    Args:
        source: `digits`; a file of one of `anydepth.storage.file_kinds.KINDS` (text also compressed); a folder of such
            files, of images in one sub-folder a class, or written by `Dataset.save_to_disk`; or a hub id,
            `ID:CONFIGURATION` where it has several.
        given: names of columns that the user gave, which tell whether a file has a header, and what is to stay text.

    Returns:
        The splits; a single file is one split called "file".

    Raises:
        DataError: nothing there, unreadable, or out of reach.
    """
    if not source:
        raise DataError("no data named: expected a file, a folder, a hub id or 'digits'")
    given = given or GivenColumns()
    path, entry = local_path(source), entry_at(source, DataError)
    if source == DIGITS:
        if entry is not None:
            raise DataError(
                "'digits' are the digits built in, and there is a path of that name: for it, give './digits'"
            )
        return Splits(_digits())
    import datasets

    if entry == "file":
        with translated(DataError, "data set", str(path)):
            tables, notes = read_tables(path, given)
            return Splits({name: datasets.Dataset(table) for name, table in tables.items()}, notes)
    if entry == "folder":
        return _open_folder(path, given)
    if entry == "other":
        raise DataError(f"'{shown(source)}' is neither a file nor a folder: copy what it gives into a file")
    name, _, configuration = source.partition(":")
    if _looks_local(source) or not HUB_ID.fullmatch(name) or name in _BUILDERS or name.endswith("folder"):
        literal = ": names are taken literally, give one file or folder" if _SPECIAL.search(source) else ""
        raise DataError(f"no file or folder '{shown(source)}'{literal}")
    with translated(DataError, "data set", source):
        return Splits(datasets.load_dataset(name, configuration or None))


def choose_split(
    names: tuple[str, ...], wanted: str | None, source: str, held_out: tuple[str, ...] = TO_EVALUATE
) -> str:
    """The split to read: `wanted`, else the first of `held_out` that there is, else the only one.

    Raises:
        DataError: it does not exist, or there are several and none is held out.

    Example:
        >>> choose_split(("train", "validation"), None, "sst2")
        'validation'
    """
    _require_split(names, wanted, source, "split")
    chosen = wanted or next((name for name in held_out if name in names), None)
    if chosen is None and len(names) > 1:
        raise DataError(f"'{source}' has no test or validation split but {', '.join(names)}: choose one (split)")
    return chosen or names[0]


def _require_split(names: tuple[str, ...], wanted: str | None, source: str, argument: str) -> None:
    if wanted is not None and wanted not in names:
        raise DataError(f"'{source}' has no split '{wanted}', it has {', '.join(names)}: choose one ({argument})")


def training_splits(
    names: tuple[str, ...], wanted: str | None, held_out: str | None, source: str
) -> tuple[str, str | None]:
    """The training split: `wanted`, else train, else the only one; and the evaluation split.

    The latter is `held_out`, else validation, else test, else None.

    Raises:
        DataError: a split does not exist, or several could be trained on.

    Example:
        >>> training_splits(("train", "test"), None, None, "imdb"), training_splits(("file",), None, None, "a.csv")
        (('train', 'test'), ('file', None))
    """
    _require_split(names, wanted, source, "split")
    _require_split(names, held_out, source, "eval_split")
    chosen = wanted or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if chosen is None:
        raise DataError(f"'{source}' has no train split but {', '.join(names)}: choose one (split)")
    kept_apart = (name for name in TO_CALIBRATE if name in names and name != chosen)
    return chosen, held_out or next(kept_apart, None)


def _looks_local(source: str) -> bool:
    named_file = kind_of(Path(source)) is not None and ":" not in source
    return source[0] in "./~" or source.count("/") > 1 or "\\" in source or named_file


def _open_folder(path: Path, given: GivenColumns) -> Splits:
    import datasets

    with translated(DataError, "data set", str(path)), quiet(datasets.utils.logging):
        with _literal_path(path) as plain:
            if (path / "dataset_dict.json").is_file():
                return Splits(datasets.DatasetDict.load_from_disk(plain))
            if (path / "state.json").is_file():
                return Splits({"saved": datasets.Dataset.load_from_disk(plain)})
            if _has_card(path):
                return Splits(datasets.load_dataset(plain))
        return Splits(*read_folder(path, given))


def _has_card(folder: Path) -> bool:
    """Whether a README configures the files as on the hub, in which case `datasets` has to read them."""
    card = folder / "README.md"
    head = card.read_bytes().split(b"\n---", 1)[0] if card.is_file() else b""
    return head.startswith(b"---") and (b"\nconfigs:" in head or b"\ndataset_info:" in head)


@contextmanager
def _literal_path(folder: Path) -> Iterator[str]:
    """A path of a folder that `datasets` takes literally: its own, or that of a link to it."""
    absolute = folder.absolute()
    if not _SPECIAL.search(str(absolute)):
        yield str(absolute)
        return
    with scratch_folder() as place:
        link = place / "data"
        link.symlink_to(absolute, target_is_directory=True)
        yield str(link)


def _digits() -> dict[str, Any]:
    """scikit-learn's 1,797 handwritten digits, 8 × 8, grey: three quarters to train, one to test, by class.

    The split never changes, whatever the seed: a model trained on one draw is never tested on what it has seen.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError("'digits' comes with scikit-learn: pip install 'anydepth[demo]'") from error
    import datasets
    from PIL import Image

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=0.25, random_state=0, stratify=labels)
    return {
        name: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(images[row]) for row in part], "label": labels[part]}, features=features
        )
        for name, part in (("train", np.sort(train)), ("test", np.sort(test)))
    }
