from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from exit_models import LAST, looked
from torch.nn import functional

from anydepth.errors import CertificateError
from anydepth.exits.costs import Cost, Costs
from anydepth.exits.policies import AtDepth, Confidence, Margin, Patience
from anydepth.exits.tuning import levels, loosest, temperatures, tuned, worthwhile


def test_a_temperature_undoes_what_sharpened_the_logits() -> None:
    plain = looked(4000, sharpness=(1.0, 1.0, 1.0, 1.0))
    sharp = looked(4000, sharpness=(0.5, 1.0, 2.0, 3.0))
    before, after = temperatures(plain), temperatures(sharp)
    for depth, factor in zip((1, 2, 3, 4), (0.5, 1.0, 2.0, 3.0), strict=True):
        assert after[depth] == pytest.approx(before[depth] * factor, rel=0.05)
    assert before[4] == pytest.approx(1.0, abs=0.1), "where the last answer was drawn from"


def test_no_other_temperature_has_a_lower_cross_entropy() -> None:
    shown = looked()
    target = torch.from_numpy(shown.predictions[:, -1])
    for place, (_, best) in enumerate(temperatures(shown).items()):
        logits = torch.from_numpy(shown.seen[:, place]).double()

        def cost(temperature: float, logits: torch.Tensor = logits) -> float:
            loss = functional.cross_entropy(logits / temperature, target, reduction="sum")
            return float(loss) + math.log2(temperature) ** 2 / 2

        for factor in (0.8, 0.95, 1.05, 1.25):
            if 1 / 4 < best * factor < 4:
                assert cost(best) <= cost(best * factor) + 1e-4


def test_nan_logits_leave_the_temperature_alone() -> None:
    shown = looked(50)
    shown.seen[:, 0] = np.nan
    assert temperatures(shown)[1] == 1.0


def costs(readout: float) -> Costs:
    block = Cost(0.0, 1.0)
    return Costs(
        batch=8,
        whole=Cost(0.0, 5.0 + readout),
        start=Cost(0.0, 0.0),
        blocks=(block,) * LAST,
        readout=Cost(0.0, readout),
    )


def test_tests_that_cost_too_much_are_left_out() -> None:
    shown = looked(800)
    policy = Confidence(0.5, temperature=temperatures(shown))
    free = worthwhile(policy, shown, costs(0.0), tolerance=0.1, against="model")
    dear = worthwhile(policy, shown, costs(2.0), tolerance=0.1, against="model")
    assert len(dear) < len(free)

    def total(depths: tuple[int, ...], price: float) -> float:
        under = shown.under(replace(policy, depths=depths))
        return costs(price).total(under.depth_of(loosest(under, 0.1, "model")), depths)

    for found, price in ((free, 0.0), (dear, 2.0)):
        assert total(found, price) <= total((1, 2, 3, 4), price)
        for left_out in found:
            rest = tuple(one for one in found if one != left_out)
            assert not rest or total(found, price) <= total(rest, price)


def test_the_loosest_level_keeps_to_the_tolerance() -> None:
    under = looked(500).under(Confidence(0.5))
    level = loosest(under, 0.2, "model")
    assert under.failures(level, "model") <= 0.2 * 500
    looser = [one for one in levels(under, 40) if one < level]
    assert looser
    assert under.failures(looser[0], "model") > 0.2 * 500
    assert loosest(under, 0.0, "model") >= loosest(under, 0.2, "model")


def test_what_the_user_names_is_left_alone() -> None:
    shown = looked()
    settings = {"failure_share": 0.07, "tolerance": 0.1, "against": "model"}
    given = Confidence(0.5, depths=(2, 3), temperature=2.0)
    assert tuned(given, shown, **settings, costs=costs(0.1)) == given
    found = tuned(Margin(0.5), shown, **settings, costs=None)
    assert found.depths is None
    assert found.temperature == temperatures(shown)
    assert tuned(Patience(2), shown, **settings, costs=None) == Patience(2), "it has no use for a temperature"


def test_scores_under_a_policy_are_the_policys_own() -> None:
    shown = looked(30)
    under = shown.under(Confidence(0.5, depths=(2, 4), temperature={2: 0.5, 4: 2.0}))
    assert under.depths == (2, 4, LAST)
    expected = [
        torch.special.logit(
            functional.softmax(torch.from_numpy(shown.seen[:, place]).double() / heat, 1).amax(1)
        ).numpy()
        for place, heat in ((1, 0.5), (3, 2.0))
    ]
    np.testing.assert_allclose(under.scores, np.stack(expected, 1), rtol=1e-6)
    assert np.array_equal(under.predictions, shown.predictions[:, [1, 3, 4]])
    assert shown.under(AtDepth(3)).depth_of(-np.inf).tolist() == [3] * 30


def test_scores_that_say_nothing() -> None:
    shown = looked(5)
    shown.seen[:] = np.nan
    with pytest.raises(CertificateError, match="every score is NaN or infinite"):
        levels(shown.under(Confidence(0.5)))
