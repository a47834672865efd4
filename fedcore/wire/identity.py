# SPDX-License-Identifier: Apache-2.0
"""Who signs what: Ed25519 keys of the coordinator and of enrolled nodes.

A broker's login says who may connect; it does not protect from the broker itself. So every message carries its sender's
signature over its exact bytes, and with them run, round, node and sequence: what is forged, foreign or played again is
refused, whatever the broker does. Signing 256 KiB takes about a millisecond."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey as _SigningKey
from nacl.signing import VerifyKey as _VerifyKey

from fedcore.errors import ConfigError, ForgedMessage

__all__ = ["SIGNATURE_BYTES", "Enrolment", "PublicKey", "SigningKey", "load_public_key", "load_signing_key", "security"]

SIGNATURE_BYTES = 64
# A signature made for another purpose or version must never fit a message.
_DOMAIN = b"fedkrso message 1\0"
_HEX_KEY = re.compile(r"[0-9a-f]{64}")


def security(*, tls: bool, signed: bool) -> str:
    """How a run is protected, for every status.

    Example:
        >>> security(tls=False, signed=False)
        'INSECURE: no encryption, unsigned messages'
    """
    return f"{'TLS' if tls else 'INSECURE: no encryption'}, {'signed' if signed else 'unsigned'} messages"


class PublicKey:
    """A sender's public key.

    Example:
        >>> key = SigningKey(bytes(32))
        >>> key.public.check(key.sign(b"plan"), b"plan")
    """

    def __init__(self, hex_key: str) -> None:
        self.hex = hex_key
        self._key = _VerifyKey(bytes.fromhex(hex_key))

    def check(self, signature: bytes, data: bytes | memoryview) -> None:
        """Return if the signature is this sender's over these bytes.

        Raises:
            ForgedMessage: It is not.
        """
        try:
            self._key.verify(_DOMAIN + data, signature)
        except (BadSignatureError, ValueError):
            raise ForgedMessage("the signature is not its sender's") from None


class SigningKey:
    """A sender's private key, from its 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self._key = _SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key).hex())

    def sign(self, data: bytes | memoryview) -> bytes:
        """The 64-byte signature over some bytes."""
        return bytes(self._key.sign(_DOMAIN + data).signature)


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`enrolled.json`: whose messages count in a run."""

    coordinator: str
    nodes: dict[str, str]
    revoked: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Enrolment:
        """Read the file.

        Raises:
            ConfigError: Not there, or not an enrolment.
        """
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise ConfigError(
                f"cannot be read: {error.strerror}", place=str(path), remedy="fedkrso provision makes it"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"not an enrolment: {error}", place=str(path), remedy="fedkrso provision makes it"
            ) from None
        for name, key in (("coordinator", found.coordinator), *found.nodes.items()):
            if not _HEX_KEY.fullmatch(key):
                raise ConfigError(f"the key of {name!r} is not 64 hexadecimal characters", place=str(path))
        return found

    def key_of(self, node: str) -> PublicKey:
        """A node's key.

        Raises:
            ForgedMessage: The node is not enrolled, or not any more.
        """
        if node in self.revoked:
            raise ForgedMessage("this node is revoked")
        if node not in self.nodes:
            raise ForgedMessage("this node is not enrolled")
        return PublicKey(self.nodes[node])


def load_signing_key(path: Path) -> SigningKey:
    """A private key file: 64 hexadecimal characters, readable by its owner only.

    Raises:
        ConfigError: Not there, not a key, or readable by others.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        readable_by_others = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read: {error}", place=f"trust.signing_key: {path}", remedy="fedkrso provision makes it"
        ) from None
    if readable_by_others:
        raise ConfigError(
            "others can read this private key", place=f"trust.signing_key: {path}", remedy=f"chmod 600 {path}"
        )
    return SigningKey(bytes.fromhex(_hex_key(text, f"trust.signing_key: {path}")))


def load_public_key(text: str) -> PublicKey:
    """A public key: 64 hexadecimal characters, or a file that holds them.

    Raises:
        ConfigError: Neither.
    """
    if not _HEX_KEY.fullmatch(text):
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read: {error}", place=f"trust.coordinator_key: {text}") from None
    return PublicKey(_hex_key(text, "trust.coordinator_key"))


def _hex_key(text: str, place: str) -> str:
    if not _HEX_KEY.fullmatch(text):
        raise ConfigError(
            "not a key: 64 hexadecimal characters are expected", place=place, remedy="fedkrso provision makes it"
        )
    return text
