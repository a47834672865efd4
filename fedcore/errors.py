# SPDX-License-Identifier: Apache-2.0
"""The one exception tree.

    FedkrsoError                    exit code
    ├── ConfigError                 2   a job file, node file or flag is wrong
    ├── DataError                   3   a user's data cannot be read as the job says
    ├── ModelError                  4   a model folder cannot serve as the base
    ├── TransportError              5   the broker cannot be used
    │   ├── BrokerUnreachable
    │   └── BrokerRefused
    ├── WireError                   6   bytes from elsewhere are not what they should be
    │   ├── MalformedMessage
    │   │   └── OtherVersion
    │   ├── ForgedMessage
    │   ├── UpdateRefused
    │   └── SecureError
    ├── ExactnessError              7   two replicas would differ: never train on
    │   ├── BaseDamaged
    │   └── ArtefactDamaged
    ├── BudgetError                 8   the work does not fit into the memory budget
    │   └── OutOfMemory
    ├── WorkerError                 9   the training process failed or was killed
    ├── RunError                    10  the run cannot go on (quorum, ledger, missing run)
    └── StorageError                11  there is no room on the disk

Every error says what is wrong in one line, where (`place`) and what to do (`remedy`). The command line prints
exactly that and ends with the class's exit code; a library never exits the process.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArtefactDamaged",
    "BaseDamaged",
    "BrokerRefused",
    "BrokerUnreachable",
    "BudgetError",
    "ConfigError",
    "DataError",
    "ExactnessError",
    "FedkrsoError",
    "ForgedMessage",
    "MalformedMessage",
    "ModelError",
    "OtherVersion",
    "OutOfMemory",
    "RunError",
    "SecureError",
    "StorageError",
    "TransportError",
    "UpdateRefused",
    "WireError",
    "WorkerError",
]

_MOST_CHARACTERS = 2000


class FedkrsoError(Exception):
    """Anything this software refuses, with the place and the remedy.

    Args:
        message: What is wrong, one line, no full stop.
        place: Where: a file with line or key, a topic, a tensor, `host:port`.
        remedy: What the reader can do about it.

    Example:
        >>> print(FedkrsoError("no such column", place="train.csv", remedy="set data.text").one_line())
        train.csv: no such column (set data.text)
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, place: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.remedy = remedy

    def one_line(self) -> str:
        """Place, message and remedy as one line for a person: foreign words in it neither steer a terminal nor go on
        for ever."""
        text = f"{self.place}: {self.message}" if self.place else self.message
        text = f"{text} ({self.remedy})" if self.remedy else text
        line = " ".join(text[: 2 * _MOST_CHARACTERS].split())
        return "".join(c if c.isprintable() else "?" for c in line[:_MOST_CHARACTERS])

    def __str__(self) -> str:
        return self.one_line()


class ConfigError(FedkrsoError):
    """A job file, node file or flag is wrong."""

    exit_code = 2


class DataError(FedkrsoError):
    """A user's data cannot be read as the job says."""

    exit_code = 3


class ModelError(FedkrsoError):
    """A model folder cannot serve as the base of a run."""

    exit_code = 4


class TransportError(FedkrsoError):
    """The broker cannot be used."""

    exit_code = 5


class BrokerUnreachable(TransportError):
    """Nothing answers at the broker's address."""


class BrokerRefused(TransportError):
    """The broker answered and said no: password, rights or protocol."""


class WireError(FedkrsoError):
    """Bytes from elsewhere are not what they should be."""

    exit_code = 6


class MalformedMessage(WireError):
    """Not a message of this protocol, or one that breaks its limits."""


class OtherVersion(MalformedMessage):
    """A message of another version of the protocol: one side has to be upgraded.

    Attributes:
        version: The message's.
    """

    version: int = 0


class ForgedMessage(WireError):
    """Not signed by whom it claims to be from, from someone who is not enrolled, or played again."""


class UpdateRefused(WireError):
    """An update that must not enter the sum; `message` is the reason its sender is told."""


class SecureError(WireError):
    """Secure aggregation cannot go on as it was asked to: keys, shares or lists are not what they have to be."""


class ExactnessError(FedkrsoError):
    """Two replicas would differ. A node resynchronises, it never trains on."""

    exit_code = 7


class BaseDamaged(ExactnessError):
    """A merged base on this disk is not what was written there; it is made anew from the checkpoint and what was
    published."""


class ArtefactDamaged(ExactnessError):
    """The run artefact on this disk is not the one that plans name; it is fetched again."""


class BudgetError(FedkrsoError):
    """The work does not fit into the memory budget; the message carries the numbers."""

    exit_code = 8


class OutOfMemory(BudgetError):
    """An allocation failed although the work was foreseen to fit: the device had less left than it said."""


class WorkerError(FedkrsoError):
    """The training process failed or was killed."""

    exit_code = 9


class RunError(FedkrsoError):
    """The run cannot go on."""

    exit_code = 10


class StorageError(FedkrsoError):
    """There is no room on the disk. What was kept is still there."""

    exit_code = 11
