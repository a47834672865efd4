# SPDX-License-Identifier: Apache-2.0
"""amqtt as a broker process of its own: `python -m coordinator.provisioning.amqtt_broker PORT USERS_FILE [CERTIFICATE
KEY]`.

The users file has a line `name:password` each; only hashes of them are given to amqtt. Anonymous sessions are never
allowed, also because amqtt drops them at once and with them their messages."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from amqtt.broker import Broker
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

__all__ = ["main"]


def main(port: int, users: Path, certificate: str = "", key: str = "") -> None:
    """Serve on the loopback interface until the process is ended; with a certificate, over TLS (1.2 or later, Python's
    default)."""
    # Cheap on purpose: the passwords are random and live as long as this process.
    hasher = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=1024, parallelism=1),))
    hashes = users.with_name("hashes")
    hashes.touch(mode=0o600)
    pairs = (line.split(":", 1) for line in users.read_text(encoding="utf-8").splitlines() if line)
    hashes.write_text("".join(f"{name}:{hasher.hash(password)}\n" for name, password in pairs), encoding="utf-8")
    listener = {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": 500}
    if certificate:
        listener |= {"ssl": True, "certfile": certificate, "keyfile": key}
    config = {
        "listeners": {"default": listener},
        "plugins": {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(hashes)}},
    }
    asyncio.run(_serve(config))


async def _serve(config: dict[str, object]) -> None:
    broker = Broker(config)
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
