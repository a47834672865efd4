# SPDX-License-Identifier: Apache-2.0
"""X.509 for one run: an authority, certificates for its broker and its clients, and the list of those that count no
more.

Keys are EC P-256: every TLS library of the last ten years takes them, and a handshake costs a small board little. A
broker's certificate serves as a server only and a client's as a client only, so that no device can pose as the broker.
The time is an argument."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedcore.errors import ConfigError

__all__ = ["AUTHORITY_DAYS", "Authority", "check_host", "new_key", "new_signing_key", "public_key_of"]

AUTHORITY_DAYS = 3650
# A device without a clock of its own may be behind when it first connects.
_BACK = dt.timedelta(days=1)
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


def new_key() -> bytes:
    """A new private key for a certificate, as PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def new_signing_key() -> str:
    """A new Ed25519 private key: 64 hexadecimal characters."""
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def public_key_of(signing_key: str) -> str:
    """The public half of a signing key, both as 64 hexadecimal characters.

    Example:
        >>> public_key_of("00" * 32)
        '3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29'
    """
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(signing_key)).public_key().public_bytes_raw().hex()


def check_host(host: str) -> str:
    """A host as it stands in a certificate.

    Raises:
        ConfigError: Neither a host name nor an address.

    Example:
        >>> check_host("broker.example.org"), check_host("::1")
        ('broker.example.org', '::1')
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host) or host.replace(".", "").isdigit():
            raise ConfigError(
                f"{host!r} is neither a host name nor an address",
                place="--broker-host",
                remedy="write what devices connect to, without scheme and port, "
                "such as broker.example.org or 192.168.1.10",
            ) from None
        return host


@dataclass(frozen=True)
class Authority:
    """The run's certificate authority: whoever holds its key can let anybody in.

    Attributes:
        certificate: Public; every client and the broker have it.
        key: Secret; stays offline.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, run: str, key_pem: bytes, now: dt.datetime) -> Authority:
        """An authority that signs itself."""
        key = _load_key(key_pem)
        name = _name(f"fedkrso {run[:48]} authority")
        builder = _builder(name, name, key, x509.random_serial_number(), now, now + dt.timedelta(days=AUTHORITY_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Authority:
        """The authority from its two files."""
        return cls(x509.load_pem_x509_certificate(certificate_pem), _load_key(key_pem))

    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def client(self, name: str, key_pem: bytes, serial: int, now: dt.datetime, days: int) -> bytes:
        """A client's certificate; the broker takes the common name as the client's user name."""
        return self._issue(name, key_pem, serial, now, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def broker(self, hosts: Iterable[str], key_pem: bytes, serial: int, now: dt.datetime, days: int) -> bytes:
        """The broker's certificate, good for these host names and addresses and no others."""
        return self._issue("broker", key_pem, serial, now, days, ExtendedKeyUsageOID.SERVER_AUTH, tuple(hosts))

    def revocations(self, serials: Iterable[int], now: dt.datetime) -> bytes:
        """The list of certificates that count no more, as PEM.

        It is good for as long as the authority: a list that ran out would lock every client out, and nobody would know
            why."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now - _BACK).next_update(self.certificate.not_valid_after_utc)
        builder = builder.add_extension(self._authority_identifier(), critical=False)
        builder = builder.add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        for serial in sorted(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _BACK)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        name: str,
        key_pem: bytes,
        serial: int,
        now: dt.datetime,
        days: int,
        usage: x509.ObjectIdentifier,
        hosts: tuple[str, ...],
    ) -> bytes:
        until = min(now + dt.timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _builder(_name(name), self.certificate.subject, _load_key(key_pem), serial, now, until)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(self._authority_identifier(), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host_name(host) for host in hosts]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _authority_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    now: dt.datetime,
    until: dt.datetime,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), serial)
        .not_valid_before(now - _BACK)
        .not_valid_after(until)
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
