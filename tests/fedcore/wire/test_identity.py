# SPDX-License-Identifier: Apache-2.0
"""Signatures: what is forged, foreign, cut or played again is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey as ReferenceKey

from fedcore.errors import ConfigError, ForgedMessage, MalformedMessage
from fedcore.wire.codec import decode, encode
from fedcore.wire.identity import Enrolment, SigningKey, load_public_key, load_signing_key
from fedcore.wire.messages import Commit, Envelope

OURS, OTHERS = SigningKey(bytes(32)), SigningKey(b"\1" * 32)
ENVELOPE = Envelope(run="r", round=3, node="n", body=Commit("3-abc"), sequence=7)
SIGNED = encode(ENVELOPE, OURS)


def test_signature_is_ed25519_over_domain_and_exact_bytes() -> None:
    reference = ReferenceKey(bytes(32)).sign(b"fedkrso message 1\0" + SIGNED[64:]).signature
    assert SIGNED[:64] == reference
    assert OURS.public.hex == "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    assert decode(SIGNED, OURS.public) == ENVELOPE


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(place: int, change: int) -> None:
    forged = bytearray(SIGNED)
    forged[place] ^= change
    with pytest.raises(ForgedMessage):
        decode(bytes(forged), OURS.public)


@pytest.mark.parametrize(
    "payload", [encode(ENVELOPE), encode(ENVELOPE, OTHERS), SIGNED + b"\0", OTHERS.sign(SIGNED[64:]) + SIGNED[64:]]
)
def test_unsigned_and_foreign_messages_are_refused(payload: bytes) -> None:
    with pytest.raises(ForgedMessage):
        decode(payload, OURS.public)


@pytest.mark.parametrize("payload", [b"", SIGNED[:64], bytes(5_000_000)])
def test_lengths_are_judged_before_anything_else(payload: bytes) -> None:
    with pytest.raises(MalformedMessage, match="bytes where 65 to"):
        decode(payload, OURS.public)


def test_signature_is_checked_before_a_byte_is_unpacked() -> None:
    bomb = bytes(64) + b"\xdd\xff\xff\xff\xff"
    with pytest.raises(ForgedMessage):
        decode(bomb, OURS.public)


def test_enrolment_names_who_is_unknown_or_revoked(tmp_path: Path) -> None:
    path = tmp_path / "enrolled.json"
    path.write_text(
        json.dumps(
            {"coordinator": OURS.public.hex, "nodes": {"a": OTHERS.public.hex, "b": OURS.public.hex}, "revoked": ["b"]}
        )
    )
    enrolment = Enrolment.load(path)
    assert enrolment.key_of("a").hex == OTHERS.public.hex
    for node, reason in (("b", "revoked"), ("c", "not enrolled")):
        with pytest.raises(ForgedMessage, match=reason):
            enrolment.key_of(node)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"coordinator": "x", "nodes": {}}', '{"coordinator": 1, "nodes": {}}', "\xff"]
)
def test_a_broken_enrolment_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "enrolled.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="enrolled.json"):
        Enrolment.load(path)


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_text("00" * 32 + "\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"others can read.*chmod 600"):
        load_signing_key(path)
    path.chmod(0o600)
    assert load_signing_key(path).public.hex == OURS.public.hex
    public = tmp_path / "coordinator.pub"
    public.write_text(OURS.public.hex + "\n")
    assert load_public_key(str(public)).hex == load_public_key(OURS.public.hex).hex == OURS.public.hex
    path.write_text("short")
    for act in (lambda: load_signing_key(path), lambda: load_public_key(str(path)), lambda: load_public_key("nowhere")):
        with pytest.raises(ConfigError):
            act()
