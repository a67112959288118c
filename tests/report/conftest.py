"""What production leaves out, since it takes longer than all the rest of a report: charts compared with their schema."""

from __future__ import annotations

from typing import Any

import altair as alt
import pytest


@pytest.fixture(autouse=True)
def charts_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare every whole chart with the schema of Vega-Lite, whoever asks for its specification."""
    whole = alt.TopLevelMixin.to_dict

    def checked(self: Any, validate: bool = True, **settings: Any) -> Any:
        return whole(self, validate=validate or not settings.get("context"), **settings)

    monkeypatch.setattr(alt.TopLevelMixin, "to_dict", checked)
