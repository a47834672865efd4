# SPDX-License-Identifier: Apache-2.0
"""The node file that is installed: what was provisioned, what was said now, and what its owner wrote into it before,
which stays."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from edge_client.install.certificate import Certificate, client_certificate
from edge_client.install.layout import Layout
from edge_client.memory.limits import budget_bytes
from edge_client.node import Node
from fedcore.config.models import find_model
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError
from fedcore.transport.tls import client_context
from fedcore.wire.identity import load_signing_key

__all__ = ["Kit", "NodeFile", "Secret", "finished", "merge", "missing", "open_kit", "started"]

# What a node file names, the name it gets beside the installed one, and whether it is secret.
_FILES = {
    ("broker", "ca_file"): ("authority.pem", False),
    ("broker", "certificate_file"): ("certificate.pem", False),
    ("broker", "key_file"): ("certificate.key", True),
    ("broker", "password_file"): ("broker.password", True),
    ("trust", "signing_key"): ("signing.key", True),
    ("trust", "coordinator_key"): ("coordinator.pub", False),
}
_REQUIRED = {"node": "--node", "run": "--run", "model_folder": "--model", "data.source": "--data"}
_PATHS = ("model_folder", "data.source")
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")
_HINT = """\

# When this device trains at all: docs/files.md, [policy].
# [policy]
# mains_only = true
# hours = "22:00-06:00"
"""


@dataclass(frozen=True)
class Secret:
    """A file that goes beside the node file."""

    name: str
    content: bytes
    secret: bool


@dataclass(frozen=True)
class Kit:
    """A folder that was provisioned for this node: its sections, and the files that they name.

    Attributes:
        document: Sections, with the files' installed names and absolute other paths.
        files: Certificates and keys.
        name: Common name of the certificate; empty without one.
    """

    document: Mapping[str, Any]
    files: tuple[Secret, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class NodeFile:
    """A checked node file.

    Attributes:
        text: For the disk.
        node: What it says, with paths as on the device.
        budget_bytes: Agent and worker together.
        reads: Data and model, where they are files.
    """

    text: str
    node: Node
    budget_bytes: int
    reads: tuple[Path, ...] = field(default=())


def open_kit(folder: Path) -> Kit:
    """Read a node's folder, as `fedkrso provision` or `fedkrso client bundle` made it.

    Raises:
        ConfigError: Something is missing, or does not fit together.
    """
    path = next((folder / name for name in ("node.toml", "connection.toml") if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(
            "neither node.toml nor connection.toml is in this folder",
            place=str(folder),
            remedy="take nodes/ID as `fedkrso provision` made it",
        )
    document = _read(path).unwrap()
    files, paths = [], {}
    for (section, key), (name, secret) in _FILES.items():
        value = document.get(section, {}).get(key)
        if not isinstance(value, str) or (key == "coordinator_key" and _HEX_KEY.fullmatch(value)):
            continue
        paths[key] = folder / Path(value).expanduser()
        files.append(Secret(name, _bytes(paths[key], f"{path}: {section}.{key}"), secret))
        document[section][key] = name
    for dotted in _PATHS:
        section, key = _split(dotted)
        holder = document.get(section, {}) if section else document
        if isinstance(holder.get(key), str):
            holder[key] = _absolute(holder[key], folder)
    return Kit(document, tuple(files), _checked(paths).name if paths else "")


def started(existing: Path | None, kit: Kit, said: Mapping[str, Any]) -> tomlkit.TOMLDocument:
    """A document with what is there, what was provisioned and what was said now, the latter before the former.

    Args:
        existing: The node file that is installed already; its comments and other keys stay.
        kit: The provisioned folder.
        said: Values by dotted key; None for what was not said.

    Raises:
        ConfigError: The existing file is not TOML.
    """
    if existing is not None:
        document = _read(existing)
    else:
        document = tomlkit.document()
        document.add(
            tomlkit.comment("Made by `fedkrso client install`; what you change here stays. See docs/files.md.")
        )
    for key, value in kit.document.items():
        # A share of what is free now must not become another budget each time.
        if key != "memory_budget" or value != "auto" or "memory_budget" not in document:
            _merge(document, key, value)
    if "node" not in document and kit.name:
        document["node"] = kit.name
    merge(document, said)
    return document


def merge(document: tomlkit.TOMLDocument, said: Mapping[str, Any]) -> None:
    """Set values by dotted key; None is no value."""
    for dotted, value in said.items():
        if value is not None:
            section, key = _split(dotted)
            _merge(document, section, {key: value}) if section else _merge(document, key, value)


def missing(document: Mapping[str, Any]) -> dict[str, str]:
    """Keys that a node file must have and this one lacks, with the flag for each."""

    def has(dotted: str) -> bool:
        section, key = _split(dotted)
        return key in (document.get(section, {}) if section else document)

    return {key: flag for key, flag in _REQUIRED.items() if not has(key)}


def finished(document: tomlkit.TOMLDocument, layout: Layout, kit: Kit, *, root: Path, copied: Path | None) -> NodeFile:
    """Check a document and make it the file that is installed.

    Args:
        document: As `started`, with nothing missing.
        layout: Where it will lie.
        kit: The provisioned folder.
        root: Of the device.
        copied: Where the model will be copied to, if it will.

    Raises:
        ConfigError: A key is wrong, or data that is not there.
        ModelError: A model folder that is not there.
        BudgetError: A budget that cannot be.
    """
    gone = missing(document)
    if gone:
        raise ConfigError(
            f"{', '.join(gone)} missing",
            place=str(layout.node_file),
            remedy=f"write {' '.join(f'{flag} ...' for flag in gone.values())}",
        )
    fresh = "folder" not in document
    document["folder"] = str(layout.state)
    asked = str(document.get("memory_budget", "60%"))
    budget = budget_bytes(asked, place="memory_budget", root=root)
    # A share would be taken of the service's own limit, which comes from the budget.
    if asked.strip().endswith("%") or asked.strip().lower() == "auto":
        document["memory_budget"] = f"{budget // 2**20} MiB"
    model = find_model(_present(str(document["model_folder"]), layout, root), place="model_folder")
    if model.is_dir() and not (model / "config.json").is_file():
        raise ConfigError(
            "no config.json in this model folder",
            place=f"model_folder: {model}",
            remedy="set it to a Hugging Face model folder",
        )
    if copied is not None:
        document["model_folder"] = str(copied)
    text = document.as_string() + (_HINT if fresh and "policy" not in document else "")
    node = _loaded(text, layout)
    if kit.name and kit.name != node.node:
        raise ConfigError(
            f"the certificate is of {kit.name!r}, the node file of {node.node!r}",
            place="node",
            remedy=f"write --node {kit.name}",
        )
    reads = [] if node.model_folder == str(layout.model) or ":" in node.model_folder else [model]
    if (source := _data_file(node)) is not None:
        reads.append(source)
    return NodeFile(text, node, budget, tuple(reads))


def _present(model: str, layout: Layout, root: Path) -> str:
    """Where a model folder is now: one that was copied lies in the device's own state."""
    return str(root / layout.model.relative_to("/")) if model == str(layout.model) else model


def _data_file(node: Node) -> Path | None:
    source = node.data.source
    if ":" in source and "/" not in source:
        return None
    if not Path(source).is_file():
        raise ConfigError(
            "no such file", place=f"data.source: {source}", remedy="write --data with a CSV, TSV or JSONL file"
        )
    return Path(source)


def _loaded(text: str, layout: Layout) -> Node:
    """The node file's own check; its errors name the place where the file will be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "node.toml"
        path.write_text(text, encoding="utf-8")
        try:
            node = load_config(path, Node)
        except ConfigError as error:
            place = error.place.replace(str(path), str(layout.node_file))
            raise ConfigError(error.message, place=place, remedy=error.remedy) from None
        return node


def _checked(paths: Mapping[str, Path]) -> Certificate:
    """Whether the files of a folder can be used."""
    if "signing_key" in paths:
        # A stick knows no modes: ours are set when it is installed.
        with tempfile.TemporaryDirectory() as folder:
            key = Path(folder) / "signing.key"
            key.touch(0o600)
            key.write_bytes(paths["signing_key"].read_bytes())
            try:
                load_signing_key(key)
            except ConfigError as error:
                raise ConfigError(
                    error.message,
                    place=f"trust.signing_key: {paths['signing_key']}",
                    remedy="fedkrso provision makes it",
                ) from None
    if {"ca_file", "certificate_file", "key_file"} <= paths.keys():
        return client_certificate(paths["ca_file"], paths["certificate_file"], paths["key_file"])
    client_context(*(str(paths[key]) if key in paths else None for key in ("ca_file", "certificate_file", "key_file")))
    return Certificate("", 0.0)


def _read(path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", place=str(path)) from None
    except TOMLKitError as error:
        raise ConfigError(f"not TOML: {error}", place=str(path)) from None


def _bytes(path: Path, place: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}",
            place=f"{place}: {path}",
            remedy="take the whole folder that `fedkrso provision` made",
        ) from None


def _absolute(value: str, folder: Path) -> str:
    """A path of the kit, seen from anywhere; names of packages stay names."""
    return value if ":" in value and "/" not in value else str((folder / Path(value).expanduser()).absolute())


def _merge(holder: Any, key: str, value: Any) -> None:
    """Set a key, section by section; what is equal is not written again, so that its comment and layout stay."""
    if isinstance(value, Mapping):
        if key not in holder:
            holder[key] = tomlkit.table()
        for name, inner in value.items():
            _merge(holder[key], name, inner)
    elif key not in holder or holder[key] != value:
        holder[key] = value


def _split(dotted: str) -> tuple[str, str]:
    section, _, key = dotted.rpartition(".")
    return section, key
