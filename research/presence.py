# SPDX-License-Identifier: Apache-2.0
"""Which clients a round has, where some are missing at random, and what those fetch who come back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.fields.manifest import Manifest
from fedcore.round.plan import Position, StateObject, cheapest_way

__all__ = ["Downlink", "taking_part"]

_DOMAIN = 1_602


def taking_part(clients: int, dropout: float, seed: int, server_round: int) -> tuple[int, ...]:
    """Indices of the clients that take part in a round; one at least.

    Whoever is missing at some rate is also missing at every higher one, so that rates can be compared.

    Args:
        clients: How many there are.
        dropout: Probability that one is missing, 0 to below 1.
        seed: Of the run.
        server_round: From 1.

    Example:
        >>> taking_part(4, 0.0, 0, 1)
        (0, 1, 2, 3)
    """
    draws = np.random.default_rng([_DOMAIN, seed, server_round]).random(clients)
    present = tuple(int(index) for index in np.flatnonzero(draws >= dropout))
    return present or (int(draws.argmax()),)


class Downlink:
    """What clients fetch: the files that take each from where it stands to the newest version, by the way with the
    fewest bytes.

    Snapshots are not among them, which a coordinator would offer to who missed many merges.

    Args:
        clients: How many; all hold the base model.
        chunk_bytes: Of transfers.
        artefact_bytes: What a client fetches once, before it first takes part: the run's artefact.
    """

    def __init__(self, clients: int, chunk_bytes: int, artefact_bytes: int = 0) -> None:
        self._held: list[Position] = [(0, 0)] * clients
        self._artefact_bytes, self._begun = artefact_bytes, set[int]()
        self._chunk_bytes = chunk_bytes
        self._objects: list[StateObject] = []
        self._newest: Position = (0, 0)

    def publish(self, version: int, generation: int, sizes: dict[str, int]) -> None:
        """A published state's files.

        Args:
            version: The round whose published state it is.
            generation: Merges that came before.
            sizes: Bytes of `whole`, and of `difference` to the version before where there is one.
        """
        for kind, size_bytes in sizes.items():
            manifest = Manifest(f"{version}-{kind}.bin", size_bytes, "0" * 64, self._chunk_bytes)
            base_version = version - 1 if kind == "difference" else None
            self._objects.append(StateObject(version, generation, base_version, "0" * 64, manifest))
        self._newest = (version, generation)

    def fetch(self, clients: Sequence[int]) -> int:
        """Bytes that these clients fetch to hold the newest version."""
        total = 0
        for client in clients:
            way = cheapest_way(tuple(self._objects), self._newest, self._held[client])
            assert way is not None, "all ends of generations are listed"
            total += sum(obj.manifest.size_bytes for obj in way) + (
                0 if client in self._begun else self._artefact_bytes
            )
            self._begun.add(client)
            self._held[client] = self._newest
        return total
