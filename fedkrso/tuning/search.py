# SPDX-License-Identifier: Apache-2.0
"""A short search for a job's learning rates and for how its head begins: short trials side by side, and the best one
told in words that a job file understands.

What is tried: the method's two learning rates together, times each factor of a grid, for each start of a head. Where
the best one lies at the end of the grid, the grid goes on. Chosen by the accuracy on held-out rows after the last
round; of equal ones, by the loss there. Every trial has the same rounds, also those that spend the first on a head;
where a head from sums will end the job's run, one more such round ends each trial that begins with one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from fedcore.errors import ConfigError, FedkrsoError
from fedcore.fields.types import HeadBegin
from fedcore.methods.interface import MethodSettings
from fedcore.system.durable import write_durably
from fedkrso.tuning.trials import Measured, Trials

__all__ = ["FACTORS", "Kept", "Trial", "Tried", "best_of", "job_lines", "search", "table"]

FACTORS: Final = (0.1, 0.3, 1.0, 3.0)
"""On the job's learning rates."""
_FURTHER: Final = 2
"""Trials beyond the ends of a grid, at most."""


class Trial(msgspec.Struct, frozen=True):
    """What is tried."""

    head: HeadBegin
    factor: float
    """On the job's learning rates."""

    def settings(self, method: MethodSettings) -> MethodSettings:
        """The method's; two digits of a rate, so that what a table shows is what was used.

        Example:
            >>> from fedcore.methods.fedkrso import FedKRSOSettings
            >>> Trial("ridge", 0.3).settings(FedKRSOSettings()).learning_rate
            0.0003
        """
        rates = {
            name: float(f"{getattr(method, name) * self.factor:.2g}")
            for name in ("learning_rate", "tensor_learning_rate")
        }
        return msgspec.structs.replace(method, **rates)


class Tried(msgspec.Struct, frozen=True):
    """What came of it."""

    trial: Trial
    rounds: tuple[Measured, ...]
    failed: str = ""
    """Why it ended before its last round."""

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better."""
        if self.failed or not self.rounds:
            return -math.inf, -math.inf
        last = self.rounds[-1]
        return last.accuracy, -last.loss


class _File(msgspec.Struct):
    about: str
    tried: list[Tried] = []


class Kept:
    """Trials on disk: those that are there are not made again.

    Args:
        path: The file.
        about: All that decides a trial's outcome beside the trial.

    Raises:
        ConfigError: The file is about something else, or not what was written.
    """

    def __init__(self, path: Path, about: bytes) -> None:
        self._path, digest = path, hashlib.sha256(about).hexdigest()
        try:
            self._file = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            self._file = _File(digest)
        except (msgspec.DecodeError, OSError) as error:
            raise ConfigError(f"cannot be read: {error}", place=str(path), remedy="delete it") from None
        if self._file.about != digest:
            raise ConfigError(
                "these trials are of another job, other data or other flags",
                place=str(path),
                remedy="name another folder with --out, or delete it",
            )

    @property
    def all(self) -> Sequence[Tried]:
        """In the order in which they were made."""
        return self._file.tried

    def add(self, tried: Tried) -> None:
        """Keep one more; it is there when this returns."""
        self._file.tried.append(tried)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, msgspec.json.format(msgspec.json.encode(self._file)))


def search(
    trials: Trials,
    kept: Kept,
    heads: Sequence[HeadBegin],
    rounds: int,
    factors: Sequence[float] = FACTORS,
    tell: Callable[[str], None] = lambda line: None,
    *,
    ends: bool = False,
) -> Tried:
    """Try what is not kept yet; the best.

    Args:
        trials: Makes them.
        kept: What was tried already, and what will have been.
        heads: Starts of a head.
        rounds: Of each trial.
        factors: On the job's rates.
        tell: Gets a line after each round.
        ends: Whether a head from sums ends what begins with one.

    Raises:
        ConfigError: None of the trials came to its end.
    """
    wanted = [Trial(head, factor) for head in heads for factor in factors]
    known = {one.trial for one in kept.all}
    further = 0
    for number, trial in enumerate(wanted, 1):
        if trial in known:
            continue
        kept.add(_tried(trials, trial, rounds, f"{number} of {len(wanted)}: ", tell, ends=ends))
    while (beyond := _beyond(best_of(kept.all), kept.all)) is not None and further < _FURTHER:
        further += 1
        kept.add(_tried(trials, beyond, rounds, "beyond the grid: ", tell, ends=ends))
    return best_of(kept.all)


def _tried(trials: Trials, trial: Trial, rounds: int, place: str, tell: Callable[[str], None], *, ends: bool) -> Tried:
    again = rounds - 1 if ends and trial.head == "ridge" else 0
    settings = trial.settings(trials.job.method)
    words = f"{place}{trial.head} head, learning_rate {settings.learning_rate:g}"
    found: list[Measured] = []
    try:
        for measured in trials.rounds(settings, trial.head, rounds + bool(again), again):
            found.append(measured)
            tell(f"{words}: round {measured.round} of {rounds + bool(again)}, accuracy {measured.accuracy:.3f}")
    except FedkrsoError as error:
        # A rate at which nothing can be learned any more is an answer too.
        tell(f"{words}: {error.one_line()}")
        return Tried(trial, tuple(found), error.one_line())
    return Tried(trial, tuple(found))


def best_of(tried: Sequence[Tried]) -> Tried:
    """The one to take.

    Raises:
        ConfigError: None came to its end.
    """
    best = max(tried, key=lambda one: one.rank, default=None)
    if best is None or best.failed:
        why = best.failed if best is not None else "there is none"
        raise ConfigError(f"no trial came to its end: {why}", place="method", remedy="lower the learning rates")
    return best


def _beyond(best: Tried, tried: Sequence[Tried]) -> Trial | None:
    """The next factor, where the best is the last one on its side."""
    factors = sorted(one.trial.factor for one in tried if one.trial.head == best.trial.head)
    if best.trial.factor == factors[0]:
        return Trial(best.trial.head, float(f"{factors[0] / 3:.1g}"))
    return Trial(best.trial.head, float(f"{factors[-1] * 3:.1g}")) if best.trial.factor == factors[-1] else None


def table(tried: Sequence[Tried], method: MethodSettings) -> Iterator[str]:
    """What was tried, the best first."""
    yield f"{'head':<8}{'learning_rate':>14}{'tensor_learning_rate':>22}   accuracy by round"
    for one in sorted(tried, key=lambda one: one.rank, reverse=True):
        settings = one.trial.settings(method)
        found = " ".join(f"{measured.accuracy:.3f}" for measured in one.rounds)
        loss = f"   loss {one.rounds[-1].loss:.3f}" if one.rounds and not one.failed else ""
        words = f"   {one.failed}" if one.failed else loss
        yield (f"{one.trial.head:<8}{settings.learning_rate:>14g}{settings.tensor_learning_rate:>22g}   {found}{words}")


def job_lines(best: Tried, method: MethodSettings, steps: int, *, head: bool) -> Iterator[str]:
    """What to write in the job.

    Args:
        best: Of the trials.
        method: The job's.
        steps: Of a round; 0 to leave them as they are.
        head: Whether the task has a head.
    """
    settings = best.trial.settings(method)
    if head:
        yield "[head]"
        yield f'start = "{best.trial.head}"'
        if best.trial.head == "ridge":
            yield "rates = 1.0"
        yield ""
    yield "[method]"
    yield f"learning_rate = {settings.learning_rate:g}"
    yield f"tensor_learning_rate = {settings.tensor_learning_rate:g}"
    if steps:
        yield f"steps = {steps}"
