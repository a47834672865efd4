# SPDX-License-Identifier: Apache-2.0
"""A node's secrets in one attempt at a round, all of them from one random seed, and what two nodes agree on.

Key agreement is X25519, key derivation BLAKE2b, encryption ChaCha20-Poly1305 (all from libsodium, by PyNaCl, or
hashlib). Each key is made for one attempt, one pair and one direction, and seals one message: so its nonce is zero, and
a message that is made again after a kill is the same one, byte for byte."""

from __future__ import annotations

import hashlib
from typing import Final

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

from fedcore.errors import SecureError
from fedcore.secure.shamir import split

__all__ = ["SEED_BYTES", "Secrets", "committed", "mask_seed", "public_of"]

SEED_BYTES: Final = 32
_PERSON: Final = b"fedkrso secure 1"
_NONCE: Final = bytes(12)


def _derived(key: bytes, *words: bytes, size: int = 32) -> bytes:
    """Bytes that only who has the key can make; each word with its length, so that no two lists of words are alike."""
    text = b"".join(len(word).to_bytes(4, "little") + word for word in words)
    return hashlib.blake2b(text, key=key, digest_size=size, person=_PERSON).digest()


def _agreed(secret: bytes, public: bytes, whose: str) -> bytes:
    try:
        return crypto_scalarmult(secret, public)
    except (CryptoError, RuntimeError, ValueError, TypeError):
        raise SecureError("not a key that anything can be agreed on with", place=whose) from None


def mask_seed(secret: bytes, public: bytes, context: bytes, one: str, other: str) -> bytes:
    """What two nodes' common mask is made from: the same on both, and with either's secret key anywhere else.

    Args:
        secret: One's secret mask key.
        public: The other's public one.
        context: Of the attempt.
        one: Its name.
        other: The other's name.

    Raises:
        SecureError: The public key is none.
    """
    first, second = sorted((one, other))
    return _derived(_agreed(secret, public, other), b"mask", context, first.encode(), second.encode())


def public_of(secret: bytes) -> bytes:
    """The public X25519 key of a secret one."""
    return crypto_scalarmult_base(secret)


def committed(self_seed: bytes) -> bytes:
    """What a node says of its self mask's seed in advance."""
    return _derived(self_seed, b"committed")


class Secrets:
    """A node's secrets in one attempt.

    Args:
        seed: 32 bytes of the system's random generator, drawn for this attempt alone.
        node: Whose.
        context: Of the attempt: run, its id, and the plan's key.

    Attributes:
        mask_secret: The secret key that pairwise masks are agreed on with; shared, so that it can be had again for a
            node that is lost.
        self_seed: What the node's own mask is made from; shared, so that it can be had again for a node that is not.

    Example:
        >>> one, other = Secrets(bytes(32), "a", b""), Secrets(bytes([1]) * 32, "b", b"")
        >>> box = one.seal("b", other.seal_public, b"hush", b"roster")
        >>> other.unseal("a", one.seal_public, box, b"roster")
        b'hush'
    """

    def __init__(self, seed: bytes, node: str, context: bytes) -> None:
        self._seed, self._node, self._context = seed, node, context
        self._seal_secret = _derived(seed, b"seal key", context)
        self.mask_secret = _derived(seed, b"mask key", context)
        self.self_seed = _derived(seed, b"self mask", context)

    @property
    def seal_public(self) -> bytes:
        """The public key that others encrypt shares for this node with."""
        return public_of(self._seal_secret)

    @property
    def mask_public(self) -> bytes:
        """The public key that pairwise masks are agreed on with."""
        return public_of(self.mask_secret)

    @property
    def commitment(self) -> bytes:
        """By which the self mask's seed is known to be the right one."""
        return committed(self.self_seed)

    def shares(self, threshold: int, places: tuple[int, ...]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Shares by place, of the self mask's seed and of the secret mask key.

        Args:
            threshold: How many give a secret back.
            places: Of the holders.

        Raises:
            SecureError: There are fewer holders.
        """
        both = []
        for name, secret in ((b"share of self mask", self.self_seed), (b"share of mask key", self.mask_secret)):

            def draw(number: int, name: bytes = name) -> bytes:
                words = (name, self._context, bytes(str((threshold, number, places)), "ascii"))
                return _derived(self._seed, *words, size=48)

            both.append(split(secret, threshold, places, draw))
        return both[0], both[1]

    def seal(self, to: str, public: bytes, message: bytes, roster: bytes) -> bytes:
        """Encrypt the one message to a node in this attempt.

        Args:
            to: The node.
            public: Its key for that.
            message: What it is to know.
            roster: Digest of the roster that this node has seen: who has seen another one cannot read the message.

        Raises:
            SecureError: Its key is none.
        """
        key = self._seal_key(public, self._node, to, to, roster)
        return crypto_aead_chacha20poly1305_ietf_encrypt(message, b"", _NONCE, key)

    def unseal(self, sender: str, public: bytes, box: bytes, roster: bytes) -> bytes:
        """Decrypt what a node has sealed for this one.

        Args:
            sender: The node.
            public: Its key for that.
            box: What came.
            roster: Digest of the roster that this node has seen.

        Raises:
            SecureError: It has not, or not in this attempt, or it has seen another roster.
        """
        key = self._seal_key(public, sender, self._node, sender, roster)
        try:
            return crypto_aead_chacha20poly1305_ietf_decrypt(box, b"", _NONCE, key)
        except CryptoError:
            raise SecureError("shares that its sender did not seal for this node", place=sender) from None

    def _seal_key(self, public: bytes, sender: str, receiver: str, other: str, roster: bytes) -> bytes:
        shared = _agreed(self._seal_secret, public, other)
        return _derived(shared, b"seal", self._context, roster, sender.encode(), receiver.encode())
