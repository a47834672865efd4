# SPDX-License-Identifier: Apache-2.0
"""Server halves of the federated methods: one file each, found through one table."""

from __future__ import annotations

from fedcore.errors import ConfigError
from fedcore.method import MethodSettings, ServerHalf
from fedcore.methods.fedkrso import FedKRSO
from fedcore.schema import ModelSchema

__all__ = ["SERVER_HALVES", "server_half"]

SERVER_HALVES: dict[str, type[ServerHalf]] = {"fedkrso": FedKRSO}


def server_half(settings: MethodSettings, schema: ModelSchema) -> ServerHalf:
    """The server half that a job names.

    Raises:
        ConfigError: No such method; names those there are.
    """
    half = SERVER_HALVES.get(settings.name)
    if half is None:
        raise ConfigError(f"no method {settings.name!r}", place="method.name", remedy=f"one of {', '.join(SERVER_HALVES)}")
    return half(settings, schema)
