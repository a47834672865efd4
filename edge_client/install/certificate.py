# SPDX-License-Identifier: Apache-2.0
"""A node's certificate, looked at before the broker does: whose it is, by which authority, until when, and whether the
key is its own.

Python reads a certificate only as a peer's. So the node shakes hands with itself, in memory, as broker and as client.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcore.errors import ConfigError

__all__ = ["Certificate", "client_certificate"]

_REASONS = {
    9: ("is not valid yet", "set this machine's clock"),
    10: ("has run out", "fedkrso provision RUN --renew NODE, and take the new certificate.pem"),
    26: ("is not one for clients", "take the node's folder that `fedkrso provision` made"),
}


@dataclass(frozen=True)
class Certificate:
    """A certificate that holds: its common name, and its last second (Unix time)."""

    name: str
    until_seconds: float


def client_certificate(authority: Path, certificate: Path, key: Path) -> Certificate:
    """Check a client's certificate as a broker would.

    Raises:
        ConfigError: A file cannot be read, the key is another's, or a broker with this authority would refuse the
            certificate.
    """
    broker, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Only the client's side of this handshake is of interest.
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    broker.verify_mode = ssl.CERT_REQUIRED
    try:
        broker.load_verify_locations(authority)
        for side in (broker, client):
            side.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"authority, certificate and key do not fit each other: {error.reason or error}",
            place=str(certificate),
            remedy="copy authority.pem, certificate.pem and certificate.key from one folder of `fedkrso provision`",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=str(error.filename or certificate)) from None
    found = _shake_hands(broker, client, certificate)
    names = dict(pair for part in found.get("subject", ()) for pair in part)
    return Certificate(names.get("commonName", ""), ssl.cert_time_to_seconds(str(found["notAfter"])))


def _shake_hands(broker: ssl.SSLContext, client: ssl.SSLContext, place: Path) -> dict[str, Any]:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(back, there), broker.wrap_bio(there, back, server_side=True)]
    try:
        # Each side speaks a few times at most.
        for _ in range(5):
            for side in sides:
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        found = sides[1].getpeercert()
    except ssl.SSLCertVerificationError as error:
        what, remedy = _REASONS.get(
            error.verify_code, ("is of another authority", "take both files from one folder of `fedkrso provision`")
        )
        raise ConfigError(f"the certificate {what}", place=str(place), remedy=remedy) from None
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"the certificate cannot be used: {error}", place=str(place)) from None
    if not found:
        raise ConfigError("the certificate cannot be read", place=str(place))
    return dict(found)
