"""Where data come from: the splits behind a name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.errors import DataError
from anydepth.hub import translated

DIGITS = "digits"
# Only an empty cell is missing: a sentence may well read "NA", "null" or "nan".
_CSV = {"keep_default_na": False, "na_values": [""]}
_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", _CSV | {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}
# The part to look at if nobody says: one that was not trained on.
_HELD_OUT = ("test", "validation", "valid", "dev", "val")


def splits(source: str) -> dict[str, Any]:
    """Open every split behind a name.

    Args:
        source: `digits`; a .csv, .tsv, .json, .jsonl, .parquet or .txt file; a folder of such files, of images
            in one sub-folder a class, or written by `Dataset.save_to_disk`; or a hub id, `ID:CONFIGURATION` where
            it has several.

    Returns:
        `datasets.Dataset` by the name of the split. A single file is one split called "file".

    Raises:
        DataError: nothing there, unreadable, or out of reach.
    """
    if source == DIGITS:
        return _digits()
    if not source:
        raise DataError("no data named: expected a file, a folder, a hub id or 'digits'")
    path = Path(source).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path)
    if _looks_local(source):
        raise DataError(f"no file or folder '{source}'")
    name, _, configuration = source.partition(":")
    with translated(DataError, "data set", source):
        return _load(name, configuration or None)


def choose_split(names: tuple[str, ...], wanted: str | None, source: str) -> str:
    """The split asked for; else test, else validation, else the only one.

    Raises:
        DataError: it does not exist, or there are several and none is held out.

    Example:
        >>> choose_split(("train", "validation"), None, "sst2")
        'validation'
    """
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"'{source}' has no split '{wanted}', it has {', '.join(names)}: choose with --split")
        return wanted
    held_out = next((name for name in _HELD_OUT if name in names), None)
    if held_out is not None:
        return held_out
    if len(names) > 1:
        raise DataError(f"'{source}' has no test or validation split but {', '.join(names)}: choose with --split")
    return names[0]


def training_splits(
    names: tuple[str, ...], wanted: str | None, held_out: str | None, source: str
) -> tuple[str, str | None]:
    """The split to train on, and the one to evaluate on.

    Args:
        names: of all there are.
        wanted: to train on; by default train, else the only one.
        held_out: to evaluate on; by default validation, else test.
        source: what the user calls the data.

    Returns:
        Two names; the second is None where nothing is kept apart.

    Raises:
        DataError: a split does not exist, or several could be trained on.

    Example:
        >>> training_splits(("train", "test"), None, None, "imdb"), training_splits(("file",), None, None, "a.csv")
        (('train', 'test'), ('file', None))
    """
    for flag, given in (("--split", wanted), ("--eval-split", held_out)):
        if given is not None and given not in names:
            raise DataError(f"'{source}' has no split '{given}', it has {', '.join(names)}: choose with {flag}")
    chosen = wanted or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if chosen is None:
        raise DataError(f"'{source}' has no train split but {', '.join(names)}: choose with --split")
    kept_apart = (name for name in (*_HELD_OUT[1:], _HELD_OUT[0]) if name in names and name != chosen)
    return chosen, held_out or next(kept_apart, None)


def _looks_local(source: str) -> bool:
    named_file = Path(source).suffix in _FILES and ":" not in source
    return source[0] in "./~" or source.count("/") > 1 or "\\" in source or named_file


def _file(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in _FILES:
        raise DataError(f"'{path}' is no kind of file that can be read here: expected {', '.join(_FILES)}")
    kind, options = _FILES[path.suffix.lower()]
    with translated(DataError, "data set", str(path)), _quiet():
        return _load(kind, None, data_files={"file": str(path)}, options=options)


def _folder(path: Path) -> dict[str, Any]:
    import datasets

    with translated(DataError, "data set", str(path)), _quiet():
        if (path / "dataset_dict.json").is_file():
            return dict(datasets.DatasetDict.load_from_disk(str(path)))
        if (path / "state.json").is_file():
            return {"saved": datasets.Dataset.load_from_disk(str(path))}
        return _load(str(path), None)


def _load(
    name: str,
    configuration: str | None,
    data_files: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    import datasets

    try:
        return dict(datasets.load_dataset(name, configuration, data_files=data_files, **(options or {})))
    except ValueError as error:
        if "corresponds to no data" in str(error):  # what datasets says of a file with a header and no rows
            raise DataError(f"'{(data_files or {}).get('file', name)}' is empty: expected at least one row") from error
        raise


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


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for local files, and no log lines beside our own message."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
