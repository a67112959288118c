"""Settings of the inputs a policy was calibrated on, for which its certificate holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Settings by which rows of data become model inputs.

    Attributes:
        kind: "text" or "image".
        processor: a hash of what the tokenizer or image processor does; see `anydepth.data.settings`.
        max_length: tokens at which texts are truncated; None for images.
        columns: the columns that are read: of texts one, or two in order.
        device: the kind of device. Another one rounds differently, which is reported and changes no guarantee.
    """

    kind: str
    processor: str
    max_length: int | None
    columns: tuple[str, ...]
    device: str

    def as_plain(self) -> dict[str, Any]:
        """The settings as values for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> InputSettings:
        """The settings that `as_plain` wrote."""
        return cls(**{**plain, "columns": tuple(plain["columns"])})

    def differences(self, now: InputSettings) -> tuple[str, ...]:
        """Differences from the settings in use now, one clause each: with any, the certificate does not hold."""
        differences = []
        if now.processor != self.processor:
            what = "tokenizer" if self.kind == "text" else "image processor"
            differences.append(f"the {what} is another than when it was calibrated")
        if now.max_length != self.max_length:
            differences.append(
                f"texts are cut at {now.max_length} tokens, and were at {self.max_length} when it was calibrated"
            )
        if now.columns != self.columns:
            new, old = (" with ".join(f"'{name}'" for name in columns) for columns in (now.columns, self.columns))
            differences.append(f"it reads {new} of the data, and read {old} when it was calibrated")
        return tuple(differences)
