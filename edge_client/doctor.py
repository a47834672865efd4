# SPDX-License-Identifier: Apache-2.0
"""`fedkrso doctor`: is this machine ready, and if not, what to do. Every check does the real thing."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil

from fedcore.errors import FedkrsoError
from fedcore.transport.mqtt import MqttSettings, MqttTransport

__all__ = ["Check", "checks"]

_AGENT = ("click", "msgpack", "msgspec", "paho-mqtt", "psutil")
_TRAIN = ("torch", "transformers", "numpy", "safetensors", "bitsandbytes")


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def checks(broker: MqttSettings | None) -> list[Check]:
    """All checks, in order; the broker's only with its settings."""
    found = [_python(), *_packages(_AGENT, "pip install fedkrso"), *_packages(_TRAIN, "pip install 'fedkrso[train]'"), _memory()]
    found.append(_guarded("int8 forward and backward", _int8, "pip install 'fedkrso[train]'"))
    if broker is not None:
        found.append(_guarded("broker", lambda: _broker(broker), "see docs/deploy.md"))
    return found


def _python() -> Check:
    text = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", (3, 10) <= sys.version_info[:2] <= (3, 12), text, "use Python 3.10 to 3.12")


def _packages(names: tuple[str, ...], remedy: str) -> Iterator[Check]:
    for name in names:
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "not installed", remedy)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    return Check("memory", memory.available > 2**29, text, "close other programs")


def _guarded(name: str, probe: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, probe())
    except FedkrsoError as error:
        return Check(name, False, f"{error.place}: {error.message}" if error.place else error.message, error.remedy)
    except ImportError as error:
        return Check(name, False, str(error), remedy)
    except (RuntimeError, OSError, AssertionError) as error:
        return Check(name, False, str(error).splitlines()[0], remedy)


def _int8() -> str:
    """The layer that trains, with a gradient checked against dense arithmetic."""
    import numpy as np
    import torch

    from edge_client.worker.layer import SubspaceLinear
    from edge_client.worker.weights import Int8Weight
    from fedcore.projection import signs
    from fedcore.quantise import dequantise_weight, quantise_weight

    weight = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    q, scale = quantise_weight(weight)
    layer = SubspaceLinear("doctor", Int8Weight(torch.from_numpy(q), torch.from_numpy(scale)))
    projection = torch.from_numpy(signs(1, "doctor", 4, 48))
    layer.install(projection, 4)
    layer.select(0)
    assert layer.factor is not None
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 48)).astype(np.float32)).requires_grad_()
    layer(x).sum().backward()
    dense = torch.from_numpy(dequantise_weight(q, scale))
    expected = (torch.ones(8, 64).T @ x.detach()) @ projection.float().T / 2
    assert layer.factor.grad is not None and x.grad is not None, "there is no gradient"
    right = torch.allclose(layer.factor.grad, expected, atol=1e-4) and torch.allclose(x.grad, torch.ones(8, 64) @ dense, atol=1e-4)
    assert right, "the gradient is wrong"
    return "gradients are right"


def _broker(settings: MqttSettings) -> str:
    transport = MqttTransport(settings, random.Random(0))  # noqa: S311 - spreads reconnects
    transport.start(lambda event: None)
    try:
        limits = transport.wait_connected(10.0)
    finally:
        transport.stop()
    largest = "no packet limit told" if limits.max_packet_bytes is None else f"packets up to {limits.max_packet_bytes} bytes"
    return f"{limits.protocol}, {largest}, {'TLS' if settings.tls else 'INSECURE: no encryption'}"
