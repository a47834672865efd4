# SPDX-License-Identifier: Apache-2.0
"""TLS to the broker: 1.2 or later, the broker's certificate and host name always checked, and every refusal explained.

With TLS 1.3 a client learns only after its own handshake that the broker does not want its certificate: the alert is
the first thing it reads. paho would swallow it, so the socket remembers it."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from fedcore.errors import BrokerRefused, BrokerUnreachable, ConfigError, TransportError

__all__ = ["client_context", "tls_refusal", "told_by_peer"]

_HOST_MISMATCH, _NOT_YET_VALID, _EXPIRED = {62, 64}, 9, 10

# Parts of OpenSSL's reasons, and what they mean to a person. `ALERT` is what the broker said of us.
_EXPLAINED = (
    ("ALERT_CERTIFICATE_REVOKED", "our certificate is revoked", "give the device another id: fedkrso provision"),
    (
        "ALERT_CERTIFICATE_EXPIRED",
        "our certificate has run out",
        "fedkrso provision --renew, and copy certificate.pem here",
    ),
    ("ALERT_CERTIFICATE_REQUIRED", "the broker wants a certificate", "set broker.certificate_file and broker.key_file"),
    (
        "ALERT_UNKNOWN_CA",
        "our certificate is of another authority",
        "use the one that `fedkrso provision` made with this broker's",
    ),
    (
        "ALERT_BAD_CERTIFICATE",
        "the broker does not take our certificate",
        "see the broker's log; check broker.certificate_file",
    ),
    ("ALERT_UNSUPPORTED_CERTIFICATE", "our certificate is not one for clients", "check broker.certificate_file"),
    ("ALERT_HANDSHAKE_FAILURE", "the broker wants a certificate", "set broker.certificate_file and broker.key_file"),
    (
        "ALERT_PROTOCOL_VERSION",
        "the broker speaks no TLS 1.2 or later",
        "set tls_version tlsv1.2 there, or take a newer broker",
    ),
    (
        "UNSUPPORTED_PROTOCOL",
        "the broker speaks no TLS 1.2 or later",
        "set tls_version tlsv1.2 there, or take a newer broker",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "what answers there does not speak TLS",
        "check the port in broker.url: 8883 is usual for mqtts://",
    ),
)


class _Socket(ssl.SSLSocket):
    """Remembers why the peer ended the link."""

    told: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            # paho would leave it to the garbage collector.
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            # An end without a word says nothing.
            self.told = None if isinstance(error, ssl.SSLEOFError) else error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            # The peer has gone; what it said before it went may still be there to read.
            with contextlib.suppress(OSError):
                self.recv(1)
            raise


def client_context(ca_file: str | None, certificate_file: str | None, key_file: str | None) -> ssl.SSLContext:
    """How we connect: the files are read anew, so that renewed certificates count from the next connection on.

    Raises:
        ConfigError: A file is not there, not PEM, or key and certificate do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate that names the host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _Socket
    place = f"broker.ca_file: {ca_file}"
    try:
        if ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(ca_file)
        place = f"broker.certificate_file: {certificate_file}"
        if certificate_file is not None:
            # An empty password, so that an encrypted key is an error and not a question at the terminal.
            context.load_cert_chain(certificate_file, key_file, password="")
    except ssl.SSLError as error:
        remedy = (
            "certificate and key must be PEM, and belong together"
            if place.startswith("broker.cert")
            else "it must be PEM"
        )
        raise ConfigError(f"cannot be used: {error.reason or error}", place=place, remedy=remedy) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=place) from None
    return context


def told_by_peer(sock: object) -> ssl.SSLError | None:
    """Why the peer ended this link, if it said so."""
    return sock.told if isinstance(sock, _Socket) else None


def tls_refusal(error: ssl.SSLError, place: str, host: str) -> TransportError:
    """What went wrong, as one line with the remedy."""
    if isinstance(error, ssl.SSLEOFError):
        return BrokerUnreachable("the broker closed the connection", place=place, remedy="is it starting? see its log")
    if isinstance(error, ssl.SSLCertVerificationError):
        message, remedy = _distrusted(error, host)
        return BrokerRefused(f"TLS: {message}", place=place, remedy=remedy)
    reason = error.reason or str(error)
    for part, message, remedy in _EXPLAINED:
        if part in reason:
            return BrokerRefused(f"TLS: {message}", place=place, remedy=remedy)
    return BrokerRefused(f"TLS: {reason}", place=place, remedy="see the broker's log")


def _distrusted(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str]:
    """Why we do not trust the broker."""
    code = error.verify_code
    if code in _HOST_MISMATCH:
        return (
            f"the broker's certificate is not for {host}",
            f"fedkrso provision --broker-host {host}, or another host in broker.url",
        )
    if code == _EXPIRED:
        return "the broker's certificate has run out", "fedkrso provision --renew broker; check this machine's clock"
    if code == _NOT_YET_VALID:
        return "the broker's certificate is not valid yet", "set this machine's clock"
    return (
        f"the broker's certificate is not trusted: {error.verify_message}",
        "set broker.ca_file to the authority.pem of its run",
    )
