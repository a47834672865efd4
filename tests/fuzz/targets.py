# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: for each kind of foreign bytes, a function that takes any bytes and raises only if a promise is
broken.

The promises: an error of our own tree or a value, nothing else; what is accepted means the same when it is written
again; what is accepted stays within the limits and within its folder. Time and memory are the caller's business."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordinator.job import Job
from coordinator.store.statefile import load_state
from edge_client.memory.planning import Planning
from edge_client.node import Node
from fedcore.config.reading import load_config
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.device.memoryplan import Footprint
from fedcore.errors import FedkrsoError
from fedcore.model.base import Base
from fedcore.model.combine import Combined
from fedcore.model.snapshot import take_snapshot
from fedcore.model.state import PublishedState
from fedcore.model.update import WeightedUpdate, add_updates, check_update
from fedcore.numbers.accumulator import RunningSum
from fedcore.numbers.records import read_header, read_records, write_records
from fedcore.numbers.rules import Median
from fedcore.registry import CODECS
from fedcore.round.plan import Plan
from fedcore.system.durable import DurableNumber
from fedcore.weights.checkpoint import Checkpoint, read_entry, read_table
from fedcore.weights.schema import LayerSpec
from fedcore.weights.weightfile import WeightFile
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import PartialFile
from fedcore.wire.identity import Enrolment
from fedcore.wire.messages import Chunk, Missing, Offer, Topics
from tests.fuzz.samples import MANIFEST, PLAN, SCHEMA, SHAPES, held_state, model_folder

__all__ = ["TARGETS"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - files that are written 10,000 times a second
_SCRATCH = Path(tempfile.mkdtemp(prefix="fedkrso-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NODE = Node(
    node="a", run="r", model_folder="m", data=DataSection(source="d.csv"), broker=BrokerSection(url="mqtts://b")
)
_FOOTPRINT = Footprint(
    key="key",
    longest=8,
    runtime_bytes=0,
    weights_bytes=0,
    largest_layer_bytes=0,
    embeddings_bytes=0,
    mappable_embeddings_bytes=0,
    subspaces_bytes=0,
    rank_bytes=0,
    tensors_bytes=0,
    row_bytes=0,
    signs_bytes=0,
    points=(),
)
_FORMATS = ("x", "fedkrso update 1", "fedkrso published state 1")


def _file(data: bytes, name: str = "f") -> Path:
    path = _SCRATCH / name
    path.write_bytes(data)
    return path


def _message(data: bytes) -> None:
    envelope = decode(data)
    assert decode(encode(envelope)) == envelope
    topics = Topics(envelope.run)
    if envelope.node:
        assert _SAFE.fullmatch(envelope.node) and topics.node_of(topics.status(envelope.node)) == envelope.node
    match envelope.body:
        case Plan() as plan:
            assert all(_SAFE.fullmatch(node) for node in plan.cohort)
            for obj in plan.objects:
                assert re.fullmatch("[0-9a-f]{64}", obj.manifest.sha256) and _SAFE.fullmatch(obj.manifest.name)
                assert 1 <= obj.manifest.chunks <= 2**20
        case Offer(transfer, manifest):
            assert _SAFE.fullmatch(transfer) and 1 <= manifest.chunks <= 2**20
        case Chunk(_, index, _, body):
            assert 0 <= index < 2**20 and len(body) <= 1_000_000
        case Missing(_, indices):
            assert len(indices) <= 1024 and all(0 <= index < 2**20 for index in indices)


def _update(data: bytes) -> None:
    path = _file(data)
    header = check_update(path, PLAN, "r", "a").header
    assert (header.run, header.round, header.node) == ("r", 1, "a")
    total, update = RunningSum(SHAPES), WeightedUpdate(path, header, header.examples)
    add_updates([update], PLAN, total)
    # Of one participant the mean and every rule are the same, whether it is read in its own order or by places.
    found = dict(Combined([update], PLAN, Median()).means())
    assert all(np.array_equal(found[name], numbers) for name, numbers in total.means())


def _published_state(data: bytes) -> None:
    path, again = _file(data), _SCRATCH / "again"
    for previous in (None, held_state(0)):
        try:
            state = PublishedState.read(path, SHAPES, previous=previous)
        except FedkrsoError:
            if previous is not None:
                raise
            continue
        state.write(again)
        assert PublishedState.read(again, SHAPES).digest() == state.digest()


def _records(data: bytes) -> None:
    path, again = _file(data), _SCRATCH / "again"
    for wanted in _FORMATS:
        try:
            read_header(path, wanted)
        except FedkrsoError:
            continue
    records = list(read_records(path, largest=4096, kinds=CODECS.names()))
    write_records(again, {"format": "x"}, records)
    for old, new in zip(records, read_records(again, largest=4096, kinds=CODECS.names()), strict=True):
        assert (old.name, old.bits, old.kind, old.difference) == (new.name, new.bits, new.kind, new.difference)
        if old.kind == "floats":
            assert np.array_equal(old.part.values(), new.part.values())
        else:
            assert np.array_equal(old.integers.q, new.integers.q) and np.array_equal(
                old.integers.exponent, new.integers.exponent
            )


def _have(data: bytes) -> None:
    path = _SCRATCH / "partial" / "o.bin"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "o.bin.part").write_bytes(b"x" * 3000)
    (path.parent / "o.bin.have").write_bytes(data)
    partial = PartialFile(path, MANIFEST)
    assert len(partial.bitmap) == MANIFEST.chunks - len(list(partial.bitmap.missing())) <= MANIFEST.chunks
    partial.abandon()


def _safetensors(data: bytes) -> None:
    for mapped in (False, True):
        for entry in read_table(_file(data)).values():
            assert entry.offset >= 8 and entry.offset + entry.size_bytes <= len(data)
            assert read_entry(entry, mapped=mapped).shape == entry.shape


def _config(data: bytes) -> None:
    folder = _SCRATCH / "model"
    if not folder.exists():
        folder.mkdir()
        # A header of two bytes, an empty table.
        (folder / "m.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "config.json").write_bytes(data)
    assert isinstance(Checkpoint(folder).config, dict)


def _weights(data: bytes) -> None:
    folder = _SCRATCH / "weights"
    layers = (LayerSpec("a", 3, 4),)
    if not folder.exists():
        WeightFile.make(folder, "s", layers, lambda layer: (np.zeros((3, 4), np.int8), np.ones(3, np.float32)), {})
    (folder / "weights.json").write_bytes(data)
    found = WeightFile.open(folder, "s", layers)
    if found is not None:
        assert found.weight(layers[0], mapped=True)[0].shape == (3, 4)


def _state(data: bytes) -> None:
    state = load_state(_file(data))
    assert all(array.ndim <= 32 for array in state.sums.values())


def _enrolled(data: bytes) -> None:
    enrolment = Enrolment.load(_file(data))
    for node in enrolment.nodes:
        enrolment.key_of(node)


def _snapshot(data: bytes) -> None:
    base = Base(Checkpoint(model_folder(_SCRATCH / "base")), SCHEMA, "int8", _SCRATCH / "base" / "scratch")
    take_snapshot(_file(data), base, PLAN.training.at(1))
    assert base.generation == 1 and base.digest()
    base.reset()


def _job(data: bytes) -> None:
    job = load_config(_file(data), Job)
    assert _SAFE.fullmatch(job.run)


def _node_file(data: bytes) -> None:
    node = load_config(_file(data), Node)
    assert _SAFE.fullmatch(node.node) and _SAFE.fullmatch(node.run)


def _number(data: bytes) -> None:
    assert isinstance(DurableNumber(_file(data)).value, int)


def _calibration(data: bytes) -> None:
    _file(data, "calibration.json")
    planning = Planning(_NODE, _SCRATCH)
    planning._footprint = _FOOTPRINT
    known = planning._known_calibration()
    assert known is None or (known.slack_bytes >= 0 and known.share >= 0)


def _only_ours(take: Callable[[bytes], None]) -> Callable[[bytes], bool]:
    def run(data: bytes) -> bool:
        try:
            take(data)
        except FedkrsoError as error:
            line = error.one_line()
            assert line and len(line) <= 2000 and line.isprintable()
            return False
        return True

    return run


TARGETS: dict[str, Callable[[bytes], bool]] = {
    name: _only_ours(take)
    for name, take in {
        "message": _message,
        "update": _update,
        "published_state": _published_state,
        "records": _records,
        "have": _have,
        "safetensors": _safetensors,
        "config": _config,
        "weights": _weights,
        "state": _state,
        "enrolled": _enrolled,
        "snapshot": _snapshot,
        "job": _job,
        "node": _node_file,
        "number": _number,
        "calibration": _calibration,
    }.items()
}
"""By name; each takes any bytes, and says whether it accepted them."""
