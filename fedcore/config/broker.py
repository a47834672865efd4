# SPDX-License-Identifier: Apache-2.0
"""From a `[broker]` section to connection settings."""

from __future__ import annotations

from pathlib import Path

from fedcore.config.passwords import read_password
from fedcore.config.sections import BrokerSection
from fedcore.errors import ConfigError
from fedcore.transport.mqtt import MqttSettings
from fedcore.transport.tls import client_context

__all__ = ["mqtt_settings"]


def mqtt_settings(section: BrokerSection, client_id: str) -> MqttSettings:
    """Settings of a client; reads the password file.

    Raises:
        ConfigError: Not an address, a file that is not there, or certificates that cannot be used.
    """
    password = section.password
    if section.password_file is not None:
        password = read_password(Path(section.password_file), "broker.password_file")
    settings = MqttSettings(
        section.url,
        client_id,
        section.username,
        password,
        section.ca_file,
        section.certificate_file,
        section.key_file,
        section.messages_per_second,
        section.bytes_per_second,
        section.qos,
    )
    # Wrong addresses and files show here, with the file, and not at the first connection.
    _ = settings.address
    if section.certificate_file is None and section.key_file is not None:
        raise ConfigError(
            "a key without its certificate", place="broker.key_file", remedy="set broker.certificate_file"
        )
    if settings.tls:
        client_context(section.ca_file, section.certificate_file, section.key_file)
    return settings
