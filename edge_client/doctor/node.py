# SPDX-License-Identifier: Apache-2.0
"""The node file and what it names: model, data, certificates, keys."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edge_client.doctor.base import Check, Surroundings, refused
from edge_client.install.certificate import client_certificate
from edge_client.node import Node
from fedcore.config.fitting import require_fitting
from fedcore.config.models import find_model
from fedcore.config.reading import load_config
from fedcore.errors import DataError, FedkrsoError, ModelError
from fedcore.system.processes import worker_python
from fedcore.wire.identity import load_public_key, load_signing_key

__all__ = ["node_file", "node_parts"]

_GROUP = "node"
_DAY_SECONDS = 86_400
_SOON_DAYS = 14
_DATA_SECONDS = 60.0
# The model in float32, twice over.
_COMPARE_SECONDS = 600.0


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
    what = msgspec.json.encode(node.data).decode()
    return f"{node.data.source}: {_said(around, 'first_rows', what, node.data.source, _DATA_SECONDS, DataError)}"


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
    return _said(around, "compare", folder, folder, _COMPARE_SECONDS, ModelError)


def _said(
    around: Surroundings, program: str, what: str, place: str, seconds: float, kind: type[DataError] | type[ModelError]
) -> str:
    """The last line of one of the worker's programs; what it refuses, and how it fails, is raised."""
    command = [worker_python(around.environment), "-m", f"edge_client.worker.programs.{program}", what]
    try:
        done = subprocess.run(
            command, env=dict(around.environment), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise kind(f"no answer within {seconds:.0f} s", place=place) from None
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"it ended with {done.returncode}"
    if done.returncode == kind.exit_code:
        message, where, remedy = msgspec.json.decode(last, type=tuple[str, str, str])
        raise kind(message, place=where, remedy=remedy)
    if done.returncode:
        raise kind(last, place=place, remedy=f"see `python -m edge_client.worker.programs.{program}`, which failed")
    return last


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
