"""How inputs were made when a policy was calibrated: what its certificate is for, beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """How rows of data become what the model takes.

    Attributes:
        kind: "text" or "image".
        processor: a hash of what the tokenizer or image processor does; see `anydepth.data.settings`.
        max_length: tokens at which texts are cut; None for images.
        columns: of the data that are read: of texts one, or two in their order.
        device: the kind of device it ran on. Another one rounds otherwise, which is said and changes no guarantee.
    """

    kind: str
    processor: str
    max_length: int | None
    columns: tuple[str, ...]
    device: str

    def as_plain(self) -> dict[str, Any]:
        """As values that JSON holds."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> InputSettings:
        """From what `as_plain` gave, read back."""
        return cls(**{**plain, "columns": tuple(plain["columns"])})

    def differences(self, now: InputSettings) -> tuple[str, ...]:
        """What is done otherwise now, one clause each: where there is any, the certificate says nothing of the answers.

        Args:
            now: how inputs are made where the policy is used.
        """
        return tuple(self._differences(now))

    def _differences(self, now: InputSettings) -> Iterator[str]:
        what = "tokenizer" if self.kind == "text" else "image processor"
        if now.processor != self.processor:
            yield f"the {what} is another than when it was calibrated"
        if now.max_length != self.max_length:
            yield f"texts are cut at {now.max_length} tokens, and were at {self.max_length} when it was calibrated"
        if now.columns != self.columns:
            yield (
                f"it reads {_named(now.columns)} of the data, and read {_named(self.columns)} when it was calibrated"
            )


def _named(columns: tuple[str, ...]) -> str:
    return " with ".join(f"'{column}'" for column in columns)
