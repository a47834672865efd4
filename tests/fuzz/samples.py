# SPDX-License-Identifier: Apache-2.0
"""Valid messages and files of every kind: what mutations begin with."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.store.statefile import save_state
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryComponents
from fedcore.fields.manifest import Manifest
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.base import Base
from fedcore.model.snapshot import write_snapshot
from fedcore.model.state import ExactState, PublishedState
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import RowScaled, quantise_rows
from fedcore.numbers.codecs import encoded
from fedcore.numbers.coding import Coding
from fedcore.numbers.records import Record, write_records
from fedcore.round.checksums import checksums
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan, StateObject
from fedcore.weights.checkpoint import Checkpoint, write_safetensors
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
)
from fedcore.wire.secure import Member, SecureReveal, SecureRoster, SecureShares

__all__ = ["MANIFEST", "PLAN", "SCHEMA", "SHAPES", "held_state", "make_samples", "model_folder"]

SCHEMA = ModelSchema((LayerSpec("l", 5, 12), LayerSpec("k", 3, 12)), (TensorSpec("head.bias", (3,), False),))
_HALF = server_half(FedKRSOSettings(rank=4, min_rank=2, num_seeds=3, steps=20, projection="signs", bits=8))
_TRAINING = _HALF.training(1, 5)
SHAPES = _TRAINING.shapes(SCHEMA)
SHA = "ab" * 32
MANIFEST = Manifest("1-whole.bin", 5000, SHA, 1024)
PLAN = Plan(
    round=1,
    phase="train",
    cohort=("a", "b"),
    deadline_at=1.8e9,
    task=TaskSection(kind="text-classification", labels=("no", "yes")),
    base_kind="int8",
    base_digest=SHA,
    model_schema=SCHEMA,
    checksums=checksums(_TRAINING, SCHEMA),
    training=_TRAINING,
    version=0,
    chunk_bytes=262_144,
    objects=(StateObject(1, 0, None, SHA, MANIFEST), StateObject(1, 0, 0, SHA, MANIFEST)),
)
_BODIES: tuple[Body, ...] = (
    PLAN,
    Offer("1-abcd", MANIFEST),
    Grant("1-abcd", 8, b"\x05"),
    Offer("1-abcd", MANIFEST, "stored"),
    Grant("1-abcd", 1, b"", "https://s3.example.org/runs/a?X-Amz-Expires=600"),
    Chunk("1-abcd", 2, zlib.crc32(b"data"), b"data"),
    Ack("1-abcd", b"\x07"),
    Commit("1-abcd"),
    Refuse("1-abcd", "late: the round is over"),
    Missing(SHA, (0, 3)),
    Declined("no room"),
    Status(online=True, state="training", device="Jetson Orin Nano", version=3, digest=SHA, budget_bytes=2**31),
    Telemetry(
        state="training",
        step=3,
        steps=40,
        loss=0.7,
        agent_rss_bytes=2**25,
        agent_peak_rss_bytes=2**25,
        worker_bytes=2**30,
        peak_bytes=2**30,
        budget_bytes=2**31,
        components=MemoryComponents(weights_bytes=5),
        uplink_bytes=7,
        downlink_bytes=8,
    ),
    SecureRoster("1-train-0", (Member("a", bytes(32), bytes(32), bytes(32), bytes(64), SHA, bytes(64)),)),
    SecureShares("1-train-0", bytes(32), ((1, bytes(82)), (2, bytes(82)))),
    SecureReveal("1-train-0", bytes(64), ((0, bytes(33)),)),
)
_JOB = """
run = "reviews"
seed = 3
[model]
folder = "models/m"
base = "int8"
[task]
kind = "text-classification"
labels = ["negative", "positive"]
[method]
name = "fedkrso"
rank = 8
learning_rate = 1e-3
[round]
rounds = 6
min_nodes = 3
quorum = 3
deadline_seconds = 3600
[evaluation]
source = "dev.tsv"
[broker]
url = "mqtts://broker:8883"
"""
_NODE = """
node = "kitchen"
run = "reviews"
model_folder = "models/m"
memory_budget = "2.5 GiB"
[data]
source = "mine.csv"
arguments = { rows = [1, 2], at = 2026-01-02T03:04:05Z }
[broker]
url = "mqtts://broker:8883"
[trust]
signing_key = "k"
"""


def _records(seed: int, bits: int = 8) -> list[Record]:
    generator = np.random.default_rng(seed)

    def made(shape: tuple[int, int], precision: int) -> RowScaled:
        return quantise_rows((generator.normal(size=shape) * 0.01).astype(np.float32), precision)  # type: ignore[arg-type]

    # Zeros compress, noise does not: both codings.
    return [
        Record("l", made((5, 8), bits), bits),  # type: ignore[arg-type]
        Record("k", RowScaled(np.zeros((3, 8), np.int16), np.zeros(3, np.int8)), bits),  # type: ignore[arg-type]
        Record("head.bias", made((1, 3), 16), 16),
    ]


def _records_of_other_kinds() -> list[Record]:
    values = (np.random.default_rng(9).normal(size=(5, 8)) * 0.01).astype(np.float32)
    codings = {"l": Coding("floats", 32), "k": Coding("floats", 16), "head.bias": Coding("sparse", 8, 0.2)}
    return [
        Record(name, encoded(values, coding, name), coding.bits, kind=coding.kind) for name, coding in codings.items()
    ]


def held_state(version: int = 0) -> PublishedState:
    """A state of the sample plan."""
    generator = np.random.default_rng(version)
    entries = {
        name: RowScaled(
            generator.integers(-300, 300, shape).astype(np.int16), np.full(shape[0], -20 + version, np.int8)
        )
        for name, shape in SHAPES.items()
    }
    return PublishedState(version, _TRAINING.seeds, 4, entries)


def _tensors(path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "a.weight": np.arange(12, dtype=np.int8).reshape(3, 4),
        "a.scale": np.ones(3, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "one": np.ones((), np.float32),
    }
    kinds = {"int8": "I8", "float32": "F32"}
    write_safetensors(path, [(n, kinds[str(a.dtype)], a.shape) for n, a in arrays.items()], lambda name: arrays[name])


def model_folder(folder: Path) -> Path:
    """A checkpoint of the sample schema."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(3)
        arrays = {
            f"{s.name}.weight": generator.normal(size=(s.rows, s.columns)).astype(np.float32) for s in SCHEMA.layers
        }
        write_safetensors(
            folder / "model.safetensors", [(n, "F32", a.shape) for n, a in arrays.items()], lambda name: arrays[name]
        )
        (folder / "config.json").write_text("{}")
    return folder


def _snapshot(folder: Path, file: Path) -> None:
    base = Base(Checkpoint(model_folder(folder / "model")), SCHEMA, "int8", folder / "scratch")
    base.merge(held_state(1), 1)
    write_snapshot(file, base, held_state(1).refreshed(_TRAINING.at(1), SCHEMA))


def make_samples() -> dict[str, list[bytes]]:
    """Valid inputs by target."""
    header = UpdateHeader(
        run="r", round=1, node="a", version=0, examples=7, rank=4, subspaces=(0, 2), loss=1.0, seconds=1.0
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f"

        def written(write: object) -> bytes:
            write()  # type: ignore[operator]
            return file.read_bytes()

        files = {
            "update": [
                written(lambda: write_update(file, header, _records(0))),
                written(lambda: write_update(file, msgspec.structs.replace(header, subspaces=(2, 0)), _records(1))),
            ],
            "published_state": [
                written(lambda: held_state(1).write(file)),
                written(lambda: held_state(1).write(file, previous=held_state(0))),
            ],
            "records": [
                *(
                    written(lambda bits=bits: write_records(file, {"format": "x"}, _records(bits, bits)))
                    for bits in (4, 8, 16)
                ),
                written(lambda: write_records(file, {"format": "x"}, _records_of_other_kinds())),
            ],
            "safetensors": [written(lambda: _tensors(file))],
            "state": [written(lambda: save_state(file, ExactState.zero(_TRAINING, SCHEMA)))],
            "snapshot": [written(lambda: _snapshot(Path(folder), file))],
        }
    messages = [
        encode(Envelope(run="r", round=1, node="a", body=body, sequence=i, expires_at=1.8e9))
        for i, body in enumerate(_BODIES)
    ]
    return files | {
        "message": messages,
        "have": [msgspec.msgpack.encode((MANIFEST, b"\x0b")), msgspec.msgpack.encode((MANIFEST, b"\xff" * 9))],
        "config": [
            json.dumps({"architectures": ["BertModel"], "hidden_size": 8, "nested": {"a": [1, 2.5, None]}}).encode()
        ],
        "weights": [json.dumps({"stamp": "s", "hashes": {"a.weight": SHA}}).encode()],
        "enrolled": [json.dumps({"coordinator": SHA, "nodes": {"a": SHA}, "revoked": ["b"]}).encode()],
        "job": [_JOB.encode()],
        "node": [_NODE.encode()],
        "calibration": [msgspec.json.encode(("key", {"slack_bytes": 1000, "share": 0.1}))],
    }
