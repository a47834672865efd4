# SPDX-License-Identifier: Apache-2.0
"""From a `[broker]` section to connection settings."""

from __future__ import annotations

from pathlib import Path

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
        path = Path(section.password_file).expanduser()
        try:
            password = path.read_text(encoding="utf-8").strip()
            readable_by_others = path.stat().st_mode & 0o077
        except OSError as error:
            raise ConfigError(
                f"cannot be read: {error.strerror}", place=f"broker.password_file: {section.password_file}"
            ) from None
        if readable_by_others:
            raise ConfigError(
                "others can read this password", place=f"broker.password_file: {path}", remedy=f"chmod 600 {path}"
            )
    settings = MqttSettings(
        section.url, client_id, section.username, password, section.ca_file, section.certificate_file, section.key_file
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
