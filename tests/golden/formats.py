# SPDX-License-Identifier: Apache-2.0
"""Golden bytes of each format, and of what its messages and rows may hold. `python -m tests.golden.formats` writes them
anew, for formats whose version has risen since; under the same number it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.store import ledger
from coordinator.store.folder import FOLDER_VERSION, RunFolder
from coordinator.store.rows import RoundRow, UpdateRow
from coordinator.store.statefile import save_state
from fedcore.fields import formats
from fedcore.fields.manifest import Manifest
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.snapshot import _Header as SnapshotHeader
from fedcore.model.state import ExactState
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import RowScaled
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan, StateObject
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.wire.codec import encode
from fedcore.wire.messages import (
    Ack,
    Body,
    Chunk,
    Commit,
    Declined,
    Envelope,
    Grant,
    Missing,
    Offer,
    Refuse,
    Status,
    Telemetry,
    Welcome,
)
from fedcore.wire.secure import (
    Member,
    SecureAgreed,
    SecureEcho,
    SecureKeys,
    SecureRelay,
    SecureReveal,
    SecureRoster,
    SecureShares,
    SecureSurvivors,
)

__all__ = ["GOLDEN", "found"]

GOLDEN = Path(__file__).with_name("formats.json")
_SHA = "ab" * 32
_MANIFEST = Manifest("1-whole.bin", 5000, _SHA, 1024)
_HEADER = UpdateHeader(
    run="r", run_id="c" * 32, round=1, node="n", version=0, examples=5, rank=4, subspaces=(0, 1), loss=0.5, seconds=1.0
)
_MEMBER = Member("n", bytes(32), bytes(32), bytes(32), bytes(64), _SHA, bytes(64))
_BODIES: tuple[Body, ...] = (
    Offer("1-abcd", _MANIFEST),
    Grant("1-abcd", 8, b"\x05"),
    Chunk("1-abcd", 2, zlib.crc32(b"data"), b"data"),
    Ack("1-abcd", b"\x07"),
    Commit("1-abcd"),
    Refuse("1-abcd", "late"),
    Missing(_SHA, (1, 2)),
    Declined("on battery"),
    Welcome(formats={"protocol": 1}),
    Status(online=True),
    Telemetry(
        state="idle",
        step=0,
        steps=0,
        loss=None,
        agent_rss_bytes=1,
        agent_peak_rss_bytes=1,
        worker_bytes=None,
        peak_bytes=1,
        budget_bytes=1,
        uplink_bytes=0,
        downlink_bytes=0,
    ),
    SecureKeys("1-train-0", _MEMBER),
    SecureRoster("1-train-0", (_MEMBER,)),
    SecureShares("1-train-0", bytes(32), ((1, bytes(82)),)),
    SecureRelay("1-train-0", ((0, bytes(82)),)),
    SecureSurvivors("1-train-0", (0, 1, 2)),
    SecureEcho("1-train-0", bytes(64)),
    SecureAgreed("1-train-0", ((0, bytes(64)),)),
    SecureReveal("1-train-0", bytes(64), ((0, bytes(33)),)),
)
_FORMS: dict[str, Body] = {
    "Offer of a store": Offer("1-abcd", _MANIFEST, "store"),
    "Offer that is stored": Offer("1-abcd", _MANIFEST, "stored"),
    "Grant of an address": Grant("1-abcd", 1, b"", "https://s3.example.org/runs/a?X-Amz-Expires=600"),
}
"""Bodies that have what others leave out."""
_SCHEMA = ModelSchema((LayerSpec("l", 3, 8),), (TensorSpec("head", (2, 2), False),))


def found() -> dict[str, dict[str, Any]]:
    """Every format as this program writes it: its version, and a digest of each sample."""
    return {
        "protocol": _of(formats.PROTOCOL, {**_messages(), "fields": _fields(Envelope)}),
        "update": _of(formats.UPDATE, {"bytes": _written(_update), "fields": _fields(UpdateHeader)}),
        "published state": _of(formats.PUBLISHED_STATE, _states()),
        "snapshot": _of(formats.SNAPSHOT, {"fields": _fields(SnapshotHeader)}),
        "ledger": _of(
            ledger.VERSION,
            {"tables": ledger.SCHEMA.encode(), "rows": _fields(UpdateRow, RoundRow, StateObject, Plan)},
        ),
        "run folder": _of(FOLDER_VERSION, {"names": _names(), "state": _written(_exact_state)}),
    }


def _of(version: int, samples: dict[str, bytes]) -> dict[str, Any]:
    return {
        "version": version,
        "samples": {name: hashlib.sha256(data).hexdigest()[:32] for name, data in samples.items()},
    }


def _messages() -> dict[str, bytes]:
    return {
        name: encode(Envelope(run="r", run_id="c" * 32, round=1, node="n", body=body, sequence=7))
        for name, body in {**{type(body).__name__: body for body in _BODIES}, **_FORMS}.items()
    }


def _fields(*kinds: type) -> bytes:
    """Names, types and limits of fields, also of all structs within; no words about them, and nothing of methods, which
    any package may add."""
    _, parts = msgspec.json.schema_components(kinds)
    kept = {name: _bare(part) for name, part in parts.items() if "Training" not in name}
    return json.dumps(kept, sort_keys=True).encode()


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        if "discriminator" in value and "Training" in json.dumps(value):
            return {}
        return {key: _bare(part) for key, part in value.items() if key not in ("description", "title")}
    return [_bare(part) for part in value] if isinstance(value, list) else value


def _written(write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample"
        write(path)
        return path.read_bytes()


def _rows(shape: tuple[int, int], exponent: int) -> RowScaled:
    numbers = np.arange(shape[0] * shape[1], dtype=np.int16).reshape(shape) % 120 - 60
    return RowScaled(numbers, np.full(shape[0], exponent, np.int8))


def _update(path: Path) -> None:
    write_update(path, _HEADER, [Record("l", _rows((3, 8), -12), 8), Record("head", _rows((2, 2), -20), 16)])


def _state(published_bits: int) -> ExactState:
    settings = FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8, published_bits=published_bits)
    zero = ExactState.zero(server_half(settings).training(1, 5), _SCHEMA)
    sums = {
        name: (np.arange(array.size, dtype=np.int64).reshape(array.shape) * 7919) << 20
        for name, array in zero.sums.items()
    }
    return replace(zero, sums=sums)


def _states() -> dict[str, bytes]:
    return {
        f"{bits} bits": _written(lambda path, bits=bits: _state(bits).publish().write(path))  # type: ignore[misc]
        for bits in (8, 12, 16)
    }


def _exact_state(path: Path) -> None:
    npz = path.with_suffix(".npz")
    save_state(npz, _state(16))
    # Of a zip file the numbers and their names, not the time of day.
    with np.load(npz) as stored:
        path.write_bytes(b"".join(name.encode() + stored[name].tobytes() for name in sorted(stored.files)))
    npz.unlink()


def _names() -> bytes:
    folder = RunFolder(Path("run"))
    paths = [getattr(folder, name) for name, part in vars(RunFolder).items() if isinstance(part, property)]
    paths += [folder.update(3, "n"), folder.published_state(3, "whole"), folder.state(3)]
    return "\n".join(sorted(path.as_posix() for path in paths)).encode()


def main() -> None:
    """Write what has a new number."""
    before = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    now = found()
    stale = [name for name in now if name in before and before[name] != now[name]]
    kept = [name for name in stale if before[name]["version"] == now[name]["version"]]
    if kept:
        sys.exit(f"other bytes under the same version: {', '.join(kept)}; raise it first")
    text = json.dumps(now, indent=1)
    GOLDEN.write_text(re.sub(r"\s+$", "", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
