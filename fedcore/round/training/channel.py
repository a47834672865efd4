# SPDX-License-Identifier: Apache-2.0
"""What a plan says of the channel that embeddings come over in local training."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedcore.config.channel import LARGEST_ERROR, MOST_USERS

__all__ = ["ChannelTraining"]

_DOMAIN: Final = b"fedkrso channel place 1"
_Error = Annotated[float, Meta(ge=0, le=LARGEST_ERROR)]


class ChannelTraining(msgspec.Struct, frozen=True, kw_only=True):
    """What is lost of an embedding on its way, by the place that a node has on the channel (`[channel]` of a job)."""

    errors: Annotated[tuple[_Error, ...], Meta(min_length=1, max_length=MOST_USERS)]
    """Of each place: the mean squared error of a number, in units of an embedding's mean square."""

    def error(self, run_seed: int, server_round: int, node: str) -> float:
        """A node's. Its place is drawn from seed, round and name alone, so that it is the same after a restart and
        whoever else takes part; two nodes may draw the same.

        Args:
            run_seed: Of the run.
            server_round: The round.
            node: Its name.

        Example:
            >>> ChannelTraining(errors=(0.25,)).error(0, 1, "kitchen")
            0.25
        """
        words = f"{run_seed}/{server_round}/{node}".encode()
        drawn = int.from_bytes(hashlib.shake_128(_DOMAIN + words).digest(8), "little")
        return self.errors[drawn % len(self.errors)]
