# SPDX-License-Identifier: Apache-2.0
"""Disk, network and service."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge_client.doctor.base import Check, Surroundings
from edge_client.install.layout import SERVICE
from edge_client.node import Node
from fedcore.config.broker import mqtt_settings
from fedcore.config.reading import parse_size
from fedcore.transport.client import client_id
from fedcore.transport.lacking import lacking
from fedcore.transport.reach import reach
from fedcore.transport.services import limits_untold

__all__ = ["network", "service", "storage"]

_CONNECT_SECONDS = 10.0


def storage(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """Whether the node's folder can be written, and holds what a round needs."""
    del around
    if node is None:
        return []
    folder = Path(node.folder)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".fedkrso-doctor-") as file:
            file.write(b"x")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return [
            Check(
                "storage",
                "folder",
                "error",
                f"{there}: {error.strerror}",
                "give this user the right to write there, or set folder",
            )
        ]
    limit, reserve = (
        parse_size(node.disk_limit, place="disk_limit"),
        parse_size(node.disk_reserve, place="disk_reserve"),
    )
    text = f"{folder}: {free / 2**30:.1f} GiB free"
    if free < reserve:
        return [
            Check(
                "storage",
                "folder",
                "error",
                f"{text}, less than disk_reserve ({node.disk_reserve})",
                "free space there",
            )
        ]
    if free < reserve + limit:
        short = f"{text}, less than disk_limit and disk_reserve ({node.disk_limit}, {node.disk_reserve})"
        return [
            Check("storage", "folder", "warning", short, "free space there, or set disk_limit to what a round needs")
        ]
    return [Check("storage", "folder", "ok", text)]


def network(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """Connects to the broker as the agent would."""
    section = around.broker or (node.broker if node is not None else None)
    if section is None:
        return []
    settings = mqtt_settings(
        section, "fedkrso-doctor" if node is None else client_id(node.run or node.fleet, f"{node.node}-doctor")
    )
    limits = reach(settings, _CONNECT_SECONDS)
    largest = (
        "no packet limit told" if limits.max_packet_bytes is None else f"packets up to {limits.max_packet_bytes} bytes"
    )
    text = f"{limits.protocol}, {largest}, {'TLS' if settings.tls else 'INSECURE: no encryption'}"
    safe = Check("network", "broker", "ok", text)
    plain = Check("network", "broker", "warning", text, "mqtts:// with certificates: docs/deploy.md")
    remedy = "another broker, or live with it: docs/deploy.md"
    untold = limits_untold(settings, fleet=node is not None and bool(node.fleet))
    missing = [Check("network", "broker", "warning", words, remedy) for words in (*lacking(limits), *untold)]
    return [safe if settings.tls else plain, *missing]


def service(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """Whether the agent is installed as a service, and runs."""
    del node
    if not around.services or not (around.root / "run/systemd/system").is_dir():
        return []
    for scope, words in (("--system", "of the device"), ("--user", "of this user")):
        asked = ["systemctl", scope, "show", SERVICE, "--property=LoadState,ActiveState,SubState,NRestarts"]
        said = dict(line.split("=", 1) for line in (around.run(asked, 5.0) or "").splitlines() if "=" in line)
        if said.get("LoadState") in (None, "", "not-found"):
            continue
        state, restarts = said.get("ActiveState", "unknown"), said.get("NRestarts", "0")
        text = f"{words}: {state} ({said.get('SubState', '')}), {restarts} restarts"
        if state in ("active", "activating", "reloading"):
            often = restarts.isdigit() and int(restarts) > 3
            return [
                Check(
                    "service",
                    SERVICE,
                    "warning" if often else "ok",
                    text,
                    "fedkrso client logs says why" if often else "",
                )
            ]
        failed = state == "failed"
        remedy = "fedkrso client logs says why" if failed else f"systemctl {scope} start {SERVICE}"
        return [Check("service", SERVICE, "error" if failed else "warning", text, remedy)]
    return [Check("service", SERVICE, "ok", "not installed (fedkrso client install)")]
