# SPDX-License-Identifier: Apache-2.0
"""The node file and what it names: model, data, certificates, keys."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edge_client.doctor.base import Check, Surroundings, refused
from edge_client.install.certificate import client_certificate
from edge_client.node import Node
from fedcore.config.fitting import require_fitting
from fedcore.config.models import find_model
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import FedkrsoError, ModelError
from fedcore.wire.identity import load_public_key, load_signing_key
from fedcore.worker.looking import Look, look_at

__all__ = ["node_file", "node_parts"]

_GROUP = "node"
_DAY_SECONDS = 86_400
_SOON_DAYS = 14
_DATA_SECONDS = 60.0
# The model in float32, twice over.
_COMPARE_SECONDS = 600.0
# Any model has positions for so many tokens.
_COMPARE_TOKENS = 16


class _Config(msgspec.Struct):
    architectures: tuple[str, ...] = ()


def node_file(path: Path) -> tuple[Node | None, Check]:
    """The node file, if it is right."""
    try:
        return load_config(path, Node), Check(_GROUP, "file", "ok", str(path))
    except FedkrsoError as error:
        return None, refused(_GROUP, "file", error)


def node_parts(around: Surroundings, node: Node | None) -> list[Check]:
    """What the file names."""
    if node is None:
        return []
    found = [_guarded("model", lambda: _model(node))]
    if found[0].state == "ok" and _writes(node):
        found.append(_guarded("comparison", lambda: _compared(around, node)))
    found.append(_guarded("data", lambda: _data(around, node)))
    found += _certificates(around, node)
    trust = node.trust
    if trust.signing_key is not None:
        key = Path(trust.signing_key)
        found.append(_guarded("signing key", lambda: (load_signing_key(key), str(key))[1]))
    if trust.coordinator_key is not None:
        text = trust.coordinator_key
        found.append(_guarded("coordinator's key", lambda: (load_public_key(text), "is one")[1]))
    return found


def _guarded(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(_GROUP, name, "ok", look())
    except FedkrsoError as error:
        return refused(_GROUP, name, error)
    except OSError as error:
        return Check(
            _GROUP, name, "error", f"{error.filename or ''}: {error.strerror}", "give this user the right to read it"
        )


def _model(node: Node) -> str:
    folder = find_model(node.model_folder, place="model_folder")
    if folder.is_file():
        return f"{folder}, which is imported before the first round"
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise ModelError(f"no {pattern} in it", place=str(folder), remedy="copy the whole model folder")
    require_fitting(folder)
    return str(folder)


def _data(around: Surroundings, node: Node) -> str:
    """By the worker's reader, in a process of its own: a user's function may import or do anything."""
    if around.quick and not Path(node.data.source).exists():
        return f"{node.data.source}: not called (--quick)"
    return "; ".join(look_at(Look(rows=node.rows), around.environment, timeout_seconds=_DATA_SECONDS))


def _writes(node: Node) -> bool:
    """Whether the node's model is one that writes: what it is trained as depends on no labels of a job."""
    try:
        said = (find_model(node.model_folder, place="model_folder") / "config.json").read_bytes()
        names = msgspec.json.decode(said, type=_Config).architectures
    except (OSError, msgspec.DecodeError, FedkrsoError):
        return False
    return any("ForCausalLM" in name or "LMHead" in name for name in names)


def _compared(around: Surroundings, node: Node) -> str:
    """With plain transformers, in a process of its own: it loads the model twice over."""
    if around.quick:
        return "not compared with transformers (--quick)"
    folder = str(find_model(node.model_folder, place="model_folder"))
    look = Look(task=TaskSection(kind="causal-lm", max_length=_COMPARE_TOKENS), model_folder=folder, compared=True)
    return "; ".join(look_at(look, around.environment, timeout_seconds=_COMPARE_SECONDS))


def _certificates(around: Surroundings, node: Node) -> Iterator[Check]:
    broker = node.broker
    authority = broker.ca_file
    try:
        if authority is not None:
            yield _days(around, "authority", _authority_ends(Path(authority)))
        if authority is not None and broker.certificate_file is not None and broker.key_file is not None:
            found = client_certificate(Path(authority), Path(broker.certificate_file), Path(broker.key_file))
            yield _days(around, "certificate", found.until_seconds)
    except FedkrsoError as error:
        yield refused(_GROUP, "certificate", error)
    except OSError as error:
        yield Check(
            _GROUP,
            "certificate",
            "error",
            f"{error.filename or authority}: {error.strerror or error}",
            "copy the node's folder again",
        )


def _authority_ends(path: Path) -> float:
    """The first of its certificates to end, Unix seconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    return min(
        (ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()), default=float("inf")
    )


def _days(around: Surroundings, name: str, until_seconds: float) -> Check:
    left = (until_seconds - around.clock()) / _DAY_SECONDS
    if left < 0:
        return Check(
            _GROUP,
            name,
            "error",
            f"ended {-left:.0f} days ago",
            "fedkrso provision RUN --renew NODE, and take the new files",
        )
    soon = left < _SOON_DAYS
    return Check(
        _GROUP, name, "warning" if soon else "ok", f"{left:,.0f} days left", "renew it: docs/deploy.md" if soon else ""
    )
