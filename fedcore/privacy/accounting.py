# SPDX-License-Identifier: Apache-2.0
"""What noise is worth: epsilon for a delta, by Google's `dp-accounting`, which this module alone imports, late.

A release is a sum of vectors whose norm is at most C, with Gaussian noise of sigma = z C. Its Renyi divergence of order
a is a / (2 z**2) (Mironov, arXiv 1702.07476), of the discrete Gaussian no more than that (Canonne, Kamath, Steinke,
arXiv 2004.00010, theorem 4): so the accountant by Renyi divergences is right for both, and is the one that is asked. A
release of a Poisson sample, into which each example comes by a coin of its own with probability q, costs less (Mironov,
Talwar, Zhang, arXiv 1908.10530); that of a shuffled batch does not, and is not taken for one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedcore.errors import ConfigError

__all__ = ["LEAST_NOISE", "MOST_NOISE", "Releases", "Told", "epsilon_of", "noise_for", "releases_within"]

LEAST_NOISE: Final = 0.1
MOST_NOISE: Final = 1000.0
_TOLERANCE: Final = 1e-4
"""Of a noise multiplier that is found."""


@dataclass(frozen=True)
class Releases:
    """What is released of one who is to be protected.

    Attributes:
        count: How often.
        sampled: With which probability it is in a release at all, by a secret coin; 1 where it always is, or where who
            is in one is known.
    """

    count: int
    sampled: float = 1.0


Told = tuple[float, Releases]
"""Noise multiplier, and what was released with it."""


def epsilon_of(noise_multiplier: float, delta: float, releases: Releases, before: Sequence[Told] = ()) -> float:
    """Epsilon that is spent.

    Args:
        noise_multiplier: z.
        delta: For which.
        releases: What was released; 0 of them cost nothing.
        before: What else was, of the same ones who are protected, with noise of its own.

    Raises:
        ConfigError: The library is not there.

    Example:
        >>> round(epsilon_of(1.0, 1e-5, Releases(1)), 2)
        4.73
        >>> round(epsilon_of(1.0, 1e-5, Releases(1), [(1.0, Releases(1))]), 2) == round(
        ...     epsilon_of(1.0, 1e-5, Releases(2)), 2
        ... )
        True
    """
    library = _library()
    accountant = library.rdp.RdpAccountant()
    told = [one for one in (*before, (noise_multiplier, releases)) if one[1].count]
    with _quiet():
        for noise, some in told:
            accountant.compose(_event(library, noise, some))
    return float(accountant.get_epsilon(delta)) if told else 0.0


def noise_for(target_epsilon: float, delta: float, releases: Releases, before: Sequence[Told] = ()) -> float:
    """The least noise with which releases cost no more than a target.

    Args:
        target_epsilon: What they may cost.
        delta: For which.
        releases: All that there will be.
        before: What was released already, with noise of its own; its cost is a part of the target.

    Raises:
        ConfigError: The library is not there, or no noise of a size that makes sense leads there.

    Example:
        >>> z = noise_for(3.0, 1e-5, Releases(20))
        >>> 2.99 < epsilon_of(z, 1e-5, Releases(20)) <= 3.0
        True
    """
    library = _library()
    cheapest, dearest = (epsilon_of(noise, delta, releases, before) for noise in (MOST_NOISE, LEAST_NOISE))
    if not cheapest <= target_epsilon <= dearest:
        raise ConfigError(
            f"no noise from {LEAST_NOISE:g} to {MOST_NOISE:g} leads to an epsilon of {target_epsilon:g} after "
            f"{releases.count:,} releases: they have {dearest:.3g} to {cheapest:.3g}",
            place="privacy.target_epsilon",
            remedy="choose one within, or another number of rounds",
        )
    with _quiet():
        found = library.calibrate_dp_mechanism(
            library.rdp.RdpAccountant,
            lambda noise: library.ComposedDpEvent(
                [*(_event(library, *one) for one in before), _event(library, noise, releases)]
            ),
            target_epsilon,
            delta,
            library.ExplicitBracketInterval(LEAST_NOISE, MOST_NOISE),
            tol=_TOLERANCE,
        )
    return float(found)


def releases_within(target_epsilon: float, noise_multiplier: float, delta: float, each: Releases, most: int) -> int:
    """How many rounds a target allows.

    Args:
        target_epsilon: What they may cost.
        noise_multiplier: z.
        delta: For which.
        each: Releases of a round.
        most: Rounds that there will be at most.

    Example:
        >>> releases_within(10.0, 1.0, 1e-5, Releases(1), 100)
        3
    """

    def fits(rounds: int) -> bool:
        return epsilon_of(noise_multiplier, delta, Releases(rounds * each.count, each.sampled)) <= target_epsilon

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _event(library: Any, noise_multiplier: float, releases: Releases) -> Any:
    one = library.GaussianDpEvent(noise_multiplier)
    if releases.sampled < 1:
        one = library.PoissonSampledDpEvent(releases.sampled, one)
    return library.SelfComposedDpEvent(one, releases.count)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It warns of each order that it leaves out, which makes epsilon larger and nothing wrong."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"differential privacy needs the package dp-accounting, and {error.name} is not installed",
            place="privacy",
            remedy='pip install "fedkrso[privacy]"',
        ) from None
    return dp_accounting
