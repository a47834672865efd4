# SPDX-License-Identifier: Apache-2.0
"""A run's privacy at the coordinator: how much noise there is, which numbers get it, and what has been spent."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.job import Job, SafetySection
from coordinator.store.ledger import Ledger, UpdateRow
from coordinator.store.rows import PrivacySpent, RoundRow
from fedcore.config.privacy import Noise, PrivacySection
from fedcore.errors import ConfigError, ExactnessError
from fedcore.methods.beside.secure import SecureSection
from fedcore.methods.interface import MethodSettings
from fedcore.privacy.accounting import Releases, epsilon_of, noise_for, releases_within
from fedcore.privacy.gaussian import LARGEST_SIGMA
from fedcore.privacy.noise import FRACTION_BITS, NoisyMean, sigma_of
from fedcore.privacy.shares import LEAST_SHARE, share_sigma
from fedcore.round.plan import Plan
from fedcore.round.secure import SecureRound
from fedcore.round.training import PrivateTraining

__all__ = ["Private", "bounded", "masks_of", "private_of", "private_run", "require_noise"]


@dataclass(frozen=True)
class Private:
    """What a run promises, and with which noise.

    Attributes:
        section: `[privacy]` of the job, with one of the levels.
        noise_multiplier: The job's, or found for it; the same in all rounds.
        each: Releases of a round, as far as one that takes part in it is concerned.
        least: Where updates are masked, with how many a round is opened at least.
    """

    section: PrivacySection
    noise_multiplier: float
    each: Releases
    least: int = 0

    @property
    def noise(self) -> Noise:
        """What the level says."""
        assert self.section.noise is not None
        return self.section.noise

    @property
    def said(self) -> PrivateTraining:
        """What plans say of it."""
        example = self.section.example
        return PrivateTraining(
            level=self.section.level,
            clip=self.noise.clip,
            noise_multiplier=self.noise_multiplier,
            delta=self.noise.delta,
            least_examples=0 if example is None else example.least_examples,
        )

    def parts(self, fraction_bits: int) -> tuple[int, int]:
        """Where updates are masked: with how many a round is opened, and the noise that each node adds; nothing where
        noise is of examples.

        Args:
            fraction_bits: Of masked numbers.

        Raises:
            ConfigError: It is so little that whole numbers make another distribution of it.
        """
        if self.section.node is None:
            return 0, 0
        found = share_sigma(self.noise_multiplier, self.noise.clip, self.least, fraction_bits)
        if found < LEAST_SHARE:
            raise ConfigError(
                f"a node's part of the noise comes to {found} steps of 2**-{fraction_bits}, fewer than {LEAST_SHARE}",
                place="secure_aggregation.fraction_bits",
                remedy=f"raise it, to {min(FRACTION_BITS, fraction_bits + 5)} or more",
            )
        return self.least, found

    def rule(self, plan: Plan, updates: Sequence[UpdateRow], key: bytes) -> NoisyMean | None:
        """What becomes of a round's updates; None where their noise is in them.

        Args:
            plan: The round's.
            updates: Those that count.
            key: Of the round.
        """
        if self.section.node is None:
            return None
        about = [f"{plan.round}", f"{plan.version}", *sorted(f"{row.header.node}:{row.transfer}" for row in updates)]
        return NoisyMean(
            sigma=sigma_of(self.noise_multiplier, self.noise.clip),
            key=key,
            about="/".join(about),
            columns=_said(plan, updates),
        )

    def spent(self, rows: Iterable[RoundRow], participants: Iterable[str]) -> PrivacySpent:
        """What has been told after a round, of whoever it told most of.

        Nodes are invited in the open, so of a node it counts in which rounds it was, and no chance that it might not
        have been. Of an example every round counts, since its node may have sent an update that came too late.

        Args:
            rows: The rounds before.
            participants: The round's.
        """
        rows = list(rows)
        taken = Counter(node for row in rows for node in row.participants)
        taken.update(participants)
        rounds = max(taken.values(), default=0) if self.section.node is not None else len(rows) + 1
        releases = Releases(rounds * self.each.count, self.each.sampled)
        return PrivacySpent(
            level=self.section.level,
            epsilon=epsilon_of(self.noise_multiplier, self.noise.delta, releases),
            delta=self.noise.delta,
            target_epsilon=self.noise.target_epsilon,
            clip=self.noise.clip,
            noise_multiplier=self.noise_multiplier,
            releases=releases.count,
            sampled=releases.sampled,
        )

    def rounds_within(self, most: int) -> int:
        """How many of so many rounds the job's target allows, with everybody in each."""
        target = self.noise.target_epsilon
        if not target:
            return most
        return releases_within(target, self.noise_multiplier, self.noise.delta, self.each, most)

    def words(self, rounds: int, wanted: int) -> str:
        """What a person should know of it before it begins.

        Args:
            rounds: How many there will be.
            wanted: How many the job says.
        """

        def after(number: int) -> float:
            releases = Releases(number * self.each.count, self.each.sampled)
            return epsilon_of(self.noise_multiplier, self.noise.delta, releases)

        who = "one node's text" if self.section.node is not None else "one text of a node"
        words = (
            f"privacy: {who} is hidden with epsilon {after(rounds):.3g} at most, delta {self.noise.delta:g}, "
            f"after {rounds} rounds: noise {self.noise_multiplier:.3g} times a clip of {self.noise.clip:g}"
        )
        if rounds < wanted:
            target = self.noise.target_epsilon
            words += f"; the run ends there, since round {rounds + 1} of {wanted} would take epsilon to "
            words += f"{after(rounds + 1):.3g}, beyond the target of {target:g}"
        return words


def private_of(section: PrivacySection, settings: MethodSettings, rounds: int, known: float | None) -> Private | None:
    """A run's privacy; None where nothing is promised.

    Args:
        section: `[privacy]`.
        settings: `[method]`.
        rounds: Of the run.
        known: The noise multiplier, where the run has begun.

    Raises:
        ConfigError: The accounting's library is not there, or no noise leads to the target.
    """
    noise = section.noise
    if noise is None:
        return None
    if section.example is None or settings.told_once:
        each = Releases(1)
    else:
        each = Releases(settings.steps, settings.batch_size / section.example.least_examples)
    found = known or noise.noise_multiplier
    if not found:
        found = noise_for(noise.target_epsilon, noise.delta, Releases(rounds * each.count, each.sampled))
    if sigma_of(found, noise.clip) > LARGEST_SIGMA:
        raise ConfigError(
            f"noise of {found:.4g} times a clip of {noise.clip:g} is beyond what exact sums hold",
            place=f"privacy.{section.level}.clip",
            remedy="lower it",
        )
    return Private(section, found, each)


def bounded(safety: SafetySection, section: PrivacySection) -> SafetySection:
    """What one update may do, where noise hides each: its norm is bounded by the clip, and by nothing that depends on
    others' updates, which would tell of them.

    Args:
        safety: `[safety]`.
        section: `[privacy]`.
    """
    if section.node is None:
        return safety
    return msgspec.structs.replace(safety, norm_bound=section.node.clip, norm_policy="clip", norm_ratio=0.0)


def masks_of(
    secure: SecureSection,
    private: Private | None,
    nodes: int,
    limits: tuple[float, int],
    share: Literal["examples", "uniform"],
) -> SecureRound:
    """What a plan says of masks, with room for the noise that nodes add.

    Args:
        secure: `[secure_aggregation]`.
        private: The run's.
        nodes: How many are invited.
        limits: `norm_bound` and `max_examples` of `[safety]`.
        share: Of the method.
    """
    noise = (0, 0) if private is None else private.parts(secure.fraction_bits)
    return secure.asked(nodes, *limits, share, noise)


def private_run(job: Job, ledger: Ledger) -> tuple[Job, Private | None, tuple[str, ...]]:
    """A job as it is led where privacy is promised, the promise, and what a person should know of it.

    The noise is decided once in a run, so that more rounds (`resume --rounds`) do not change what earlier ones told.

    Args:
        job: As its file says it.
        ledger: The run's.

    Raises:
        ConfigError: It cannot be kept: not even one round fits the target, or there is no accountant.
    """
    private = private_of(job.privacy, job.method, job.round.rounds, ledger.fact("noise_multiplier", float))
    if private is None:
        return job, None, ()
    wanted = job.round.rounds
    rounds = private.rounds_within(wanted)
    if rounds == 0:
        raise ConfigError(
            f"one round alone goes beyond an epsilon of {private.noise.target_epsilon:g}",
            place=f"privacy.{job.privacy.level}.target_epsilon",
            remedy="raise it, or noise_multiplier",
        )
    if job.secure_aggregation is not None:
        private = dataclasses.replace(private, least=job.round.quorum)
        private.parts(job.secure_aggregation.fraction_bits)
    ledger.put_fact("noise_multiplier", private.noise_multiplier)
    led = msgspec.structs.replace(
        job,
        round=msgspec.structs.replace(job.round, rounds=rounds),
        safety=bounded(job.safety, job.privacy),
    )
    return led, private, (private.words(rounds, wanted),)


def require_noise(rule: NoisyMean) -> None:
    """Check that a method has taken the noise that it was given.

    Raises:
        ExactnessError: It has not.
    """
    if missing := rule.columns.keys() - rule.used:
        raise ExactnessError("a method's sum was about to be published without its noise", place=min(missing))


def _said(plan: Plan, updates: Sequence[UpdateRow]) -> dict[str, NDArray[np.bool_]]:
    """By entry, which columns anybody may say something of, whatever the texts are: those of the subspaces and ranks
    that participants say they trained. The others are zero in every update, and need no noise."""
    shapes = plan.training.update_shapes(plan.model_schema)
    found: dict[str, NDArray[np.bool_]] = {}
    for row in updates:
        for name, want in plan.training.expected(plan.model_schema, row.header).items():
            columns = found.setdefault(name, np.zeros(shapes[name][1], np.bool_))
            columns[slice(None) if want.columns is None else list(want.columns)] = True
    return found
