# SPDX-License-Identifier: Apache-2.0
"""What is in a backup: a tar file with a run's ledger, its job and the files that the ledger needs; last of all
`backup.json`, so that one that was cut short is seen to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from coordinator.store.rows import UpdateRow
from fedcore.system.software import software

__all__ = ["FORMAT", "INDEX", "LEDGER", "Index", "is_name", "rows_until"]

FORMAT: Final = 1
INDEX: Final = "backup.json"
LEDGER: Final = "ledger.sqlite"
# Whose loss a node, or what is told of it, would notice: the run's id (a restored run has another, so that nodes which
# have gone on since begin anew), the key of a round's noise, what was agreed for masks.
_NOT_KEPT: Final = ("run_id", "noise_key", "secure")
_NAME: Final = re.compile(r"published/\d+-(?:whole|difference|snapshot)\.bin|state/\d+\.npz")
_PLAIN: Final = (LEDGER, "job.json", "format.json", "artefact.bin", "summary.json", "report.html", "view.json")


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """`backup.json`."""

    format: int = FORMAT
    software: str = ""
    run: str
    made_at: float
    """Unix seconds."""
    rounds: int
    """Closed rounds that are in it."""
    digest: str
    """Of the model after them; empty before the first."""
    private: bool
    """Whether the run promises what can be known of a node or an example."""
    finished: bool
    files: dict[str, tuple[int, str]]
    """Bytes and SHA-256 of every other file, by name."""

    @staticmethod
    def of(**values: Any) -> Index:
        """One of this program."""
        return Index(software=software(), **values)


def is_name(name: str) -> bool:
    """Whether a file of this name may be in a backup: nothing else is ever written when one is restored.

    Args:
        name: Within the run's folder.

    Example:
        >>> is_name("published/3-whole.bin"), is_name("job.json"), is_name("../job.json"), is_name("updates/1/a.bin")
        (True, True, False, False)
    """
    return name in _PLAIN or _NAME.fullmatch(name) is not None


def rows_until(
    held: Iterable[tuple[str, Sequence[tuple[Any, ...]]]], last: int
) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
    """A ledger's rows without those of rounds that are not closed, which are done again from their beginning.

    Args:
        held: As `TableLedger.everything` gives them.
        last: The last round that is closed.
    """
    for name, rows in held:
        if name == "facts":
            rows = [row for row in rows if row[0] not in _NOT_KEPT]
        elif name == "plans":
            rows = [row for row in rows if row[0] <= last]
        elif name == "updates":
            rows = [row for row in rows if msgspec.msgpack.decode(row[-1], type=UpdateRow).counts_in <= last]
        yield name, rows
