"""Find the text, image, label and id columns of a data set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.errors import DataError, listed

# In order of preference; compared without regard to case.
TEXTS = (
    *("text", "sentence", "content", "review", "document", "tweet", "utterance", "question", "query"),
    *("body", "message", "comment", "description", "title", "tokens", "words"),
)
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("query", "passage"),
    ("question", "passage"),
    ("question", "context"),
)
LABELS = (
    *("label", "labels", "target", "class", "category", "fine_label", "coarse_label"),
    *("sentiment", "stars", "rating", "ner_tags", "tags", "y"),
)
IMAGES = ("image", "img", "picture", "photo", "pixel_values", "pixels")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns in use; None where there is none.

    Attributes:
        text: text, or the first of two texts.
        pair: the second text of a pair.
        image: images, or paths to image files.
        label: classes; lists of them for a tagger.
        id: names of the samples; their row numbers if None.
    """

    text: str | None = None
    pair: str | None = None
    image: str | None = None
    label: str | None = None
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class GivenColumns:
    """Names of columns that the user gave, before there is a table to find them in: of texts, and of all others."""

    texts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.texts + self.others


def type_name(feature: Any) -> str:
    """The type of a column, in a word or two.

    Example:
        >>> from datasets import ClassLabel, List, Value
        >>> type_name(Value("int64")), type_name(List(Value("string"))), type_name(ClassLabel(names=["no", "yes"]))
        ('int64', 'list of string', 'class label')
    """
    if isinstance(feature, dict):
        return "struct"
    if hasattr(feature, "names"):
        return "class label"
    if hasattr(feature, "feature"):
        return f"list of {type_name(feature.feature)}"
    dtype = getattr(feature, "dtype", None)
    return str(dtype) if type(feature).__name__ == "Value" else type(feature).__name__.lower()


def is_text(feature: Any) -> bool:
    """Whether a column holds strings."""
    return type_name(feature) in ("string", "large_string")


def is_words(feature: Any) -> bool:
    """Whether a column holds lists of strings: a text already split into words, as taggers take it."""
    return type_name(feature) in ("list of string", "list of large_string")


def is_image(feature: Any) -> bool:
    """Whether a column holds images, encoded or as arrays of pixels."""
    name = type_name(feature)
    return name in ("image", "array2d", "array3d") or name.startswith(("list of list of int", "list of list of uint"))


def _is_label(feature: Any) -> bool:
    name = type_name(feature).removeprefix("list of ")
    return name in ("class label", "bool", "string", "large_string") or name.startswith(("int", "uint", "float"))


def describe(features: Mapping[str, Any]) -> str:
    """The columns and their types, for a message.

    Example:
        >>> from datasets import Value
        >>> describe({"body": Value("string"), "stars": Value("int64")})
        'columns: body (string), stars (int64)'
    """
    return "columns: " + listed([f"{name} ({type_name(feature)})" for name, feature in features.items()], 12)


def guess(
    features: Mapping[str, Any],
    *,
    text: str | None = None,
    label: str | None = None,
    image: str | None = None,
    id: str | None = None,
) -> Columns:
    """Find the columns by name and type (`Dataset.features`), unless their names are given.

    `text` may name two columns, as "first,second"; an image column of strings holds paths; `id` is never guessed.

    Raises:
        DataError: a given column does not exist, or does not hold what it should.

    Example:
        >>> from datasets import ClassLabel, Value
        >>> guess({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=["no", "yes"])})
        Columns(text='premise', pair='hypothesis', image=None, label='label', id=None)
    """
    first, second = text, None
    if text is not None and text not in features and "," in text:
        first, second = (part.strip() for part in text.split(",", 1))
    for role, name in (("text", first), ("text", second), ("label", label), ("image", image), ("id", id)):
        if name is not None and name not in features:
            raise DataError(f"no column '{name}' to take as {role}; {describe(features)}: name one of these ({role})")
    label = label or _guess_label(features, taken={first, second, image, id})
    image = image or _guess_one(features, IMAGES, is_image)
    if first is None:
        first, second = _guess_texts(features, taken={label, image, id})
    return Columns(text=first, pair=second, image=image, label=label, id=id)


def _guess_label(features: Mapping[str, Any], taken: set[str | None]) -> str | None:
    free = {name: feature for name, feature in features.items() if name not in taken}
    known = _guess_one(free, LABELS, _is_label, only=False)
    return known or _guess_one(free, (), lambda feature: type_name(feature) == "class label")


def _guess_texts(features: Mapping[str, Any], taken: set[str | None]) -> tuple[str | None, str | None]:
    free = {name: feature for name, feature in features.items() if name not in taken}
    lower = _by_lower_name(name for name, feature in free.items() if is_text(feature))
    for first, second in PAIRS:
        if first in lower and second in lower:
            return lower[first], lower[second]
    return _guess_one(free, TEXTS, lambda feature: is_text(feature) or is_words(feature)), None


def _guess_one(
    features: Mapping[str, Any], names: Sequence[str], fits: Callable[[Any], bool], *, only: bool = True
) -> str | None:
    """The first of `names` that fits; else, if `only`, the one column that does."""
    fitting = [name for name, feature in features.items() if fits(feature)]
    known = _by_lower_name(fitting)
    for name in names:
        if name in known:
            return known[name]
    return fitting[0] if only and len(fitting) == 1 else None


def _by_lower_name(names: Iterable[str]) -> dict[str, str]:
    """Columns by their names in lower case; one of a nested object (`data.text`) also by the last part of its name."""
    names = list(names)
    last = {name.rpartition(".")[2].lower(): name for name in reversed(names)}
    return last | {name.lower(): name for name in reversed(names)}
