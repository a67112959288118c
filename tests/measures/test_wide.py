"""More features than rows: the measures that do not mind a rotation work on as many features as rows."""

from collections.abc import Sequence

import naive_measures as naive
import numpy as np
import pytest
import torch
from naive_measures import Ragged, correlated

from anydepth.measures import similarities
from anydepth.measures.engine import wide
from anydepth.measures.engine.covariance import Covariances

ROTATED = ("cca", "svcca", "procrustes")
EACH = pytest.mark.parametrize("name", ROTATED)


def values(name: str, arrays: Sequence[np.ndarray], **how: object) -> np.ndarray:
    return similarities(Ragged(list(arrays), ()), [name], **how)[name].value


def low_rank(n: int, widths: Sequence[int], rank: int = 5) -> list[np.ndarray]:
    """Wide states in a few directions each, so that canonical correlations are defined."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, rank))
    return [
        ((shared + 0.7 * rng.normal(size=shared.shape)) @ rng.normal(size=(rank, width)) + 3).astype(np.float32)
        for width in widths
    ]


@pytest.fixture
def no_covariances(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("covariances between features were asked for")

    monkeypatch.setattr(Covariances, "__iter__", refuse)


@pytest.mark.usefixtures("no_covariances")
@EACH
@pytest.mark.parametrize("widths", [(90, 70, 41), (90, 12, 41)], ids=["all wide", "one narrow"])
def test_it_is_the_definition(name: str, widths: tuple[int, ...]) -> None:
    for arrays in (low_rank(40, widths), correlated(40, widths, far=1000)):
        np.testing.assert_allclose(values(name, arrays), naive.reference(name, arrays), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("no_covariances")
@EACH
def test_across_two_models(name: str) -> None:
    arrays = low_rank(40, (90, 70, 41, 64))
    whole = naive.reference(name, arrays)
    found = similarities(Ragged(arrays[:1], ()), [name], other=Ragged(arrays[1:], ()))[name].value
    np.testing.assert_allclose(found, whole[:1, 1:], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("no_covariances")
def test_pwcca_that_is_undefined_at_every_depth_costs_no_covariances() -> None:
    found = similarities(Ragged(correlated(40, (90, 70, 41)), ()), ["pwcca"])["pwcca"]
    assert np.isnan(found.value).all()
    assert len(found.notes) == 3
    assert all("every correlation is 1" in note for note in found.notes)


def test_pwcca_that_is_defined_somewhere_is_the_definition() -> None:
    arrays = low_rank(40, (90, 70, 41))
    np.testing.assert_allclose(values("pwcca", arrays), naive.reference("pwcca", arrays), rtol=0, atol=1e-6)


@EACH
def test_a_constant_depth_is_left_out(name: str) -> None:
    arrays = low_rank(40, (90, 70, 41))
    arrays[1][:] = 2.5
    found = values(name, arrays)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_allclose(found[0, 2], naive.reference(name, arrays[::2])[0, 1], rtol=0, atol=1e-6)


@EACH
def test_where_memory_does_not_suffice_covariances_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, asked = low_rank(40, (90, 70, 41)), []
    plain = values(name, arrays)
    whole = Covariances.__iter__
    monkeypatch.setattr(Covariances, "__iter__", lambda self: asked.append(self) or whole(self))
    monkeypatch.setattr(wide, "_bytes", lambda n, widths: 2**62)
    np.testing.assert_allclose(values(name, arrays), plain, rtol=0, atol=1e-7)
    assert asked


def test_progress_ends_at_the_last_depth() -> None:
    told: list[tuple[int, int, str]] = []
    similarities(Ragged(low_rank(40, (90, 70, 41)), ()), ["procrustes"], progress=lambda *what: told.append(what))
    assert told[-3:] == [(done, 3, "covariances") for done in (1, 2, 3)]


@pytest.mark.parametrize("shape", [(5, 12), (5, 5), (12, 5)])
def test_a_triangle_has_the_inner_products_of_its_rows(shape: tuple[int, int]) -> None:
    y = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    found = wide.triangle(y)
    assert found.shape == (shape[0], min(shape))
    torch.testing.assert_close(found @ found.T, y @ y.T)
