# SPDX-License-Identifier: Apache-2.0
"""Who answers what, what is known already, and the threshold: pure functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcore.answers.resolved import Known, KnownAnswers, cosine
from fedcore.answers.routing import route, uncertainty
from fedcore.answers.threshold import Checked, Risk, learned, objective, slope

SOME = [0.05, 0.2, 0.35, 0.5, 0.66, 0.8, 0.97]


@pytest.mark.parametrize(
    ("u", "threshold", "similarity", "who"),
    [
        (0.3, 0.4, None, "answer"),  # certain enough
        (0.3, 0.4, 0.99, "answer"),  # also where a peer is known
        (0.5, 0.4, 0.95, "reuse"),  # uncertain, and a peer had this text
        (0.5, 0.4, 0.94, "ask"),  # uncertain, and the peers' texts are others
        (0.5, 0.4, None, "ask"),  # uncertain, and nothing is known
        (0.4, 0.4, None, "answer"),  # on the line
    ],
)
def test_who_answers(u: float, threshold: float, similarity: float | None, who: str) -> None:
    assert route(u, threshold, similarity, 0.95) == who


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0, 1), st.one_of(st.none(), st.floats(-1, 1)))
def test_at_the_ends_one_model_answers_everything(u: float, similarity: float | None) -> None:
    assert route(u, 1.0, similarity, 0.95) == "answer"
    assert route(u, 0.0, similarity, 2.0) == "ask"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=20))
def test_uncertainty_is_between_certain_and_knowing_nothing(weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    u = uncertainty(shares)
    assert 0 <= u <= 1
    base = len(shares)
    assert u == pytest.approx(-sum(share * math.log(share, base) for share in shares), abs=1e-9)
    assert uncertainty([1 / base] * base) == pytest.approx(1) and uncertainty([1.0] + [0.0] * base) == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=12), st.binary(min_size=8, max_size=8))
def test_the_newest_of_those_that_are_alike_is_found(embeddings: list[bytes], wanted: bytes) -> None:
    known = KnownAnswers(5)
    for number, embedding in enumerate(embeddings):
        known.add(Known(embedding, (number / 100, 1 - number / 100)))
    alike = [number for number, one in list(enumerate(embeddings))[-5:] if cosine(one, wanted) >= 0.5]
    found = known.newest_like(wanted, 0.5)
    assert len(known) == min(5, len(embeddings))
    assert (None if found is None else round(found[0].scores[0] * 100)) == (max(alike) if alike else None)
    known.clear()
    assert known.newest_like(wanted, -1.0) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.builds(Risk, st.floats(-1, 1), st.floats(0, 2)),
    st.floats(0, 1),
    st.floats(0.02, 0.3),
)
def test_the_slope_is_the_objective_s(
    threshold: float, seen: list[float], risk: Risk, cost: float, softness: float
) -> None:
    step = 1e-5
    ahead, behind = (objective(threshold + by, seen, risk, cost, softness) for by in (step, -step))
    assert slope(threshold, seen, risk, cost, softness) == pytest.approx((ahead - behind) / (2 * step), abs=1e-4)


@pytest.mark.parametrize("cost", [0.1, 0.25, 0.4])
def test_a_learned_threshold_is_where_the_risk_comes_to_the_cost(cost: float) -> None:
    # Wrong more often the less certain it is: of a hundred texts at each uncertainty, half as many percent.
    checked = [Checked(u, index < 50 * u) for u in SOME for index in range(100)]
    seen = [index / 200 for index in range(200)]
    for begin in (0.0, 0.5, 1.0):
        assert learned(begin, seen, checked, cost, 0.05) == pytest.approx(2 * cost, abs=0.06)
    assert learned(0.3, seen, [], cost, 0.05) == 0.3


def test_a_small_model_that_is_never_wrong_is_asked_everything_and_one_that_always_is_nothing() -> None:
    seen = [index / 50 for index in range(50)]
    assert learned(0.5, seen, [Checked(u, other=False) for u in SOME], 0.1, 0.05) > 0.95
    assert learned(0.5, seen, [Checked(u, other=True) for u in SOME], 0.1, 0.05) < 0.05
