# SPDX-License-Identifier: Apache-2.0
"""Epsilon is what the library says, of the releases that there are."""

from __future__ import annotations

import builtins
from typing import Any

import dp_accounting
import pytest
from dp_accounting import rdp

from fedcore.errors import ConfigError
from fedcore.privacy.accounting import Releases, epsilon_of, noise_for, releases_within


def by_the_library(noise: float, delta: float, count: int, sampled: float | None) -> float:
    """Composed one after the other."""
    accountant = rdp.RdpAccountant()
    event = dp_accounting.GaussianDpEvent(noise)
    for _ in range(count):
        accountant.compose(event if sampled is None else dp_accounting.PoissonSampledDpEvent(sampled, event))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("noise", "delta", "count"), [(0.7, 1e-3, 1), (4.0, 1e-2, 10), (12.5, 1e-6, 60)])
def test_of_nodes_it_is_the_gaussians(noise: float, delta: float, count: int) -> None:
    assert epsilon_of(noise, delta, Releases(count)) == pytest.approx(by_the_library(noise, delta, count, None))


def test_of_examples_it_is_the_poisson_samples() -> None:
    assert epsilon_of(1.1, 1e-4, Releases(40, 0.05)) == pytest.approx(by_the_library(1.1, 1e-4, 40, 0.05))
    # Without the coin it costs several times as much: what a shuffled order would be.
    assert epsilon_of(1.1, 1e-4, Releases(40)) > 5 * epsilon_of(1.1, 1e-4, Releases(40, 0.05))


def test_what_was_told_before_with_other_noise_is_a_part_of_it() -> None:
    """A head from sums, then rounds of training: as the library composes them."""
    head, rounds = (2.0, Releases(1)), Releases(8, 0.025)
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(2.0))
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.025, dp_accounting.GaussianDpEvent(0.7)), 8)
    assert epsilon_of(0.7, 1e-5, rounds, [head]) == pytest.approx(float(accountant.get_epsilon(1e-5)))
    noise = noise_for(5.0, 1e-5, rounds, [head])
    assert 4.99 < epsilon_of(noise, 1e-5, rounds, [head]) <= 5.0
    with pytest.raises(ConfigError, match="no noise from"):
        noise_for(epsilon_of(2.0, 1e-5, Releases(1)), 1e-5, rounds, [head])


def test_nothing_costs_nothing() -> None:
    assert epsilon_of(1.0, 1e-5, Releases(0)) == 0


@pytest.mark.parametrize("releases", [Releases(10), Releases(200, 0.02)])
def test_noise_is_found_that_spends_a_target_and_no_more(releases: Releases) -> None:
    noise = noise_for(4.0, 1e-4, releases)
    assert 3.95 < epsilon_of(noise, 1e-4, releases) <= 4.0
    assert epsilon_of(noise * 0.99, 1e-4, releases) > epsilon_of(noise, 1e-4, releases)


def test_rounds_within_a_target_are_those_whose_epsilon_fits() -> None:
    rounds = releases_within(6.0, 2.0, 1e-4, Releases(1), 50)
    assert epsilon_of(2.0, 1e-4, Releases(rounds)) <= 6.0 < epsilon_of(2.0, 1e-4, Releases(rounds + 1))
    assert releases_within(0.01, 2.0, 1e-4, Releases(1), 50) == 0
    assert releases_within(900.0, 2.0, 1e-4, Releases(1), 50) == 50


def test_a_target_that_no_noise_leads_to_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no noise from 0.1 to 1000 leads to an epsilon of 1e-05 after 10 releases"):
        noise_for(1e-5, 1e-4, Releases(10))


def test_without_the_library_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ModuleNotFoundError("gone", name="dp_accounting")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r'dp_accounting is not installed \(pip install "fedkrso\[privacy\]"\)'):
        epsilon_of(1.0, 1e-5, Releases(1))
