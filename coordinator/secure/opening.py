# SPDX-License-Identifier: Apache-2.0
"""Secrets put together from shares, each checked against what its node had said of it before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcore.errors import SecureError
from fedcore.secure.keys import committed, public_of
from fedcore.secure.shamir import combine
from fedcore.wire.secure import Member

__all__ = ["Opened", "Secret", "opened"]


@dataclass(frozen=True)
class Secret:
    """What is to be had of a node: of one whose update is in the sum the self mask's seed, of one that is lost the key
    of its pairwise masks.

    Attributes:
        place: In the roster.
        node: Its name.
        alive: Whether its update is in the sum.
        member: What it said of its secrets.
    """

    place: int
    node: str
    alive: bool
    member: Member

    def fits(self, found: bytes) -> bool:
        """Whether it is the right one."""
        return committed(found) == self.member.own if self.alive else public_of(found) == self.member.mask


@dataclass(frozen=True)
class Opened:
    """All that takes the masks off.

    Attributes:
        self_seeds: Of the nodes in the sum, by place.
        mask_keys: Secret keys of those that are lost, by place.
    """

    self_seeds: Mapping[int, bytes]
    mask_keys: Mapping[int, bytes]


def opened(secrets: Sequence[Secret], shares: Mapping[int, Mapping[int, bytes]], threshold: int) -> Opened | str:
    """All secrets; or, in words, whose cannot be had: a share is wrong, and no other choice of shares helps yet.

    Args:
        secrets: What is wanted.
        shares: Of each place, by the holder's point; as many as the threshold at least.
        threshold: How many give a secret back.
    """
    self_seeds, mask_keys = dict[int, bytes](), dict[int, bytes]()
    for secret in secrets:
        found = _found(secret, shares[secret.place], threshold)
        if found is None:
            return f"the shares that came do not give the secret of {secret.node}: a node has sent a wrong one"
        (self_seeds if secret.alive else mask_keys)[secret.place] = found
    return Opened(self_seeds, mask_keys)


def _found(secret: Secret, shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """The first shares, or, where there are more than enough, all but one that is wrong."""
    for left_out in (0, *sorted(shares)):
        some = {point: share for point, share in shares.items() if point != left_out}
        if len(some) < threshold:
            continue
        try:
            found = combine(some, threshold)
        except SecureError:
            continue
        if secret.fits(found):
            return found
    return None
