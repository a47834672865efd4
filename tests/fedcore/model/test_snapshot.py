# SPDX-License-Identifier: Apache-2.0
"""Snapshots: whoever takes one stands where a replica stands that merged every time, bit for bit."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import subspaces

from fedcore.errors import BaseDamaged, ExactnessError, MalformedMessage
from fedcore.fields.types import BaseKind
from fedcore.model.base import Base
from fedcore.model.snapshot import snapshot_bytes, take_snapshot, write_snapshot
from fedcore.model.state import ExactState, PublishedState, model_digest
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.numbers.records import Record, pack_record, read_records
from fedcore.subspaces.schedule import pool_seeds
from fedcore.weights.checkpoint import Checkpoint, from_float32, to_float32, write_safetensors
from fedcore.weights.quantise import INT8_MAX, quantise_weight
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

LAYERS = (LayerSpec("a.dense", 700, 24), LayerSpec("b.dense", 3, 40), LayerSpec("c.dense", 300, 8))
SCHEMA = ModelSchema(LAYERS, (TensorSpec("head.weight", (3, 8), in_checkpoint=False),))
RANK, SEEDS = 4, 2


def write_model(folder: Path, dtype: str, schema: ModelSchema = SCHEMA) -> Path:
    tensors: dict[str, tuple[str, Any]] = {"norm.weight": ("F32", np.ones(8, np.float32))}
    for layer in schema.layers:
        values = np.random.default_rng(layer.rows).standard_normal((layer.rows, layer.columns), np.float32)
        values[1] = 0
        if dtype == "I8":
            q, scale = quantise_weight(values)
            tensors[f"{layer.name}.weight"] = ("I8", q)
            tensors[f"{layer.name}.SCB"] = ("F32", scale * np.float32(INT8_MAX))
        else:
            tensors[f"{layer.name}.weight"] = (dtype, from_float32(values, dtype))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    table = [(name, dtype, numbers.shape) for name, (dtype, numbers) in tensors.items()]
    write_safetensors(folder / "model.safetensors", table, lambda name: tensors[name][1])
    return folder


def base_of(folder: Path, scratch: Path, kind: BaseKind = "int8", schema: ModelSchema = SCHEMA) -> Base:
    return Base(Checkpoint(folder), schema, kind, scratch)


def learned(state: ExactState, round_seed: int, scale: float = 0.01, schema: ModelSchema = SCHEMA) -> ExactState:
    shapes, generator = subspaces(state.seeds, RANK).shapes(schema), np.random.default_rng(round_seed)
    total = RunningSum(shapes)
    total.add_examples(1)
    for name, shape in shapes.items():
        total.add(name, quantise_rows((generator.normal(size=shape) * scale).astype(np.float32), 8), 1)
    return state.after(total)


def merged_times(base: Base, times: int, scale: float = 0.01, schema: ModelSchema = SCHEMA) -> PublishedState:
    """A replica that took part in every round of `times` generations; the state that the next one begins with."""
    state = ExactState.zero(subspaces(pool_seeds(7, 0, SEEDS), RANK), schema)
    for generation in range(1, times + 1):
        state = learned(state, generation, scale, schema)
        base.merge(state.publish(), generation)
        state = state.refreshed(subspaces(pool_seeds(7, generation, SEEDS), RANK), schema)
    return state.publish().refreshed(subspaces(pool_seeds(7, times, SEEDS), RANK), schema)


@pytest.mark.parametrize("kind", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "I8"])
def test_a_snapshot_is_as_good_as_every_merge(tmp_path: Path, dtype: str, kind: BaseKind) -> None:
    folder = write_model(tmp_path / "model", dtype)
    always, joined = base_of(folder, tmp_path / "always", kind), base_of(folder, tmp_path / "joined", kind)
    state = merged_times(always, 5)
    write_snapshot(tmp_path / "s", always, state)
    taken = take_snapshot(tmp_path / "s", joined, subspaces(state.seeds, RANK, 5))
    assert joined.generation == 5 and joined.digest() == always.digest() and taken.digest() == state.digest()
    assert model_digest(joined.digest(), taken) == model_digest(always.digest(), state)
    # From there on the two stay equal, and so does one that is started again.
    after = learned(ExactState.zero(subspaces(state.seeds, RANK), SCHEMA), 9).publish()
    for base in (always, joined):
        base.merge(after, 6)
        base.store()
    assert joined.digest() == always.digest() == base_of(folder, tmp_path / "joined", kind).digest()


def test_a_snapshot_is_taken_from_any_generation(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "BF16")
    always, behind = base_of(folder, tmp_path / "always"), base_of(folder, tmp_path / "behind")
    state = merged_times(always, 4)
    merged_times(behind, 2)
    write_snapshot(tmp_path / "s", always, state)
    take_snapshot(tmp_path / "s", behind, subspaces(state.seeds, RANK, 4))
    assert behind.digest() == always.digest() and sorted(p.name for p in (tmp_path / "behind").iterdir()) == ["4"]


@pytest.mark.parametrize(("dtype", "most"), [("BF16", 0.45), ("F32", 0.75)])
def test_a_snapshot_weighs_less_than_its_numbers_and_is_known_before(tmp_path: Path, dtype: str, most: float) -> None:
    base = base_of(write_model(tmp_path / "model", dtype), tmp_path / "own")
    write_snapshot(tmp_path / "s", base, merged_times(base, 2, 0.003))
    numbers = sum(layer.rows * layer.columns for layer in LAYERS) * (2 if dtype == "BF16" else 4)
    size = (tmp_path / "s").stat().st_size
    assert size < most * numbers + 1000 and abs(snapshot_bytes(base) - size) < 1000


def test_the_same_base_gives_the_same_file(tmp_path: Path) -> None:
    base = base_of(write_model(tmp_path / "model", "F32"), tmp_path / "own")
    state = merged_times(base, 2)
    for name in ("one", "two"):
        write_snapshot(tmp_path / name, base, state)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_is_wrong_with_a_file_changes_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "BF16")
    base, other = base_of(folder, tmp_path / "own"), base_of(folder, tmp_path / "other")
    state = merged_times(base, 2)
    merged_times(other, 1)
    before = other.digest()
    write_snapshot(tmp_path / "s", base, state)
    whole = (tmp_path / "s").read_bytes()
    damaged = [whole[:-1], whole[: len(whole) // 2], whole[:3], b"", whole + b"\x80", bytes(100) + whole[100:]]
    for data in damaged:
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(MalformedMessage):
            take_snapshot(tmp_path / "bad", other, subspaces(state.seeds, RANK, 2))
        assert other.generation == 1 and other.digest() == before
        assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["1"]
    for generation, seeds, rank in ((3, state.seeds, RANK), (2, (1, 2), RANK), (2, state.seeds, 8)):
        with pytest.raises(MalformedMessage, match="generation"):
            take_snapshot(tmp_path / "s", other, subspaces(seeds, rank, generation))
    foreign = ModelSchema((*LAYERS[:2], LayerSpec("d.dense", 300, 8)), SCHEMA.tensors)
    (tmp_path / "foreign").mkdir()
    elsewhere = base_of(
        write_model(tmp_path / "foreign" / "model", "BF16", foreign), tmp_path / "foreign" / "own", schema=foreign
    )
    with pytest.raises(MalformedMessage, match=r"d\.dense"):
        take_snapshot(tmp_path / "s", elsewhere, subspaces(state.seeds, RANK, 2))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_refused_or_shows_in_the_digest(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "model"
    base = base_of(folder if folder.exists() else write_model(folder, "BF16"), tmp_path / "own")
    if not (tmp_path / "s").exists():
        write_snapshot(tmp_path / "s", base, merged_times(base, 1))
    whole = bytearray((tmp_path / "s").read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "bad").write_bytes(whole)
    seeds = pool_seeds(7, 1, SEEDS)
    right = model_digest(
        base.digest(), take_snapshot(tmp_path / "s", base_of(folder, tmp_path / "right"), subspaces(seeds, RANK, 1))
    )
    other = base_of(folder, tmp_path / "other")
    other.reset()
    try:
        state = take_snapshot(tmp_path / "bad", other, subspaces(seeds, RANK, 1))
    except MalformedMessage:
        assert other.generation == 0
    else:
        # Some bits say nothing: those that pad a stored block of deflate to a whole byte.
        unsaid = [pack_record(record) for record in records_of(tmp_path / "bad")] == [
            pack_record(record) for record in records_of(tmp_path / "s")
        ]
        assert (model_digest(other.digest(), state) != right) != unsaid


def records_of(path: Path) -> Iterator[Record]:
    return read_records(path, largest=2**20)


def test_only_a_sound_and_merged_base_is_written(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "BF16")
    base = base_of(folder, tmp_path / "own")
    state = merged_times(base, 1)
    with pytest.raises(ExactnessError, match="merged"):
        write_snapshot(
            tmp_path / "s", base, learned(ExactState.zero(subspaces(state.seeds, RANK), SCHEMA), 3).publish()
        )
    master = tmp_path / "own" / "1" / "2.bin"
    data = bytearray(master.read_bytes())
    data[5] ^= 4
    master.write_bytes(data)
    with pytest.raises(BaseDamaged):
        write_snapshot(tmp_path / "s", base_of(folder, tmp_path / "own"), state)
    assert not (tmp_path / "s").exists()


def test_every_bit_pattern_comes_back(tmp_path: Path) -> None:
    """Also NaN, infinities and the largest changes: bits are differences of integers, not of numbers."""
    schema = ModelSchema((LayerSpec("a", 256, 256),), ())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    origin = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    write_safetensors(folder / "model.safetensors", [("a.weight", "BF16", origin.shape)], lambda name: origin)
    target = np.random.default_rng(0).permutation(2**16).astype(np.uint16).reshape(256, 256)
    # float32 does not keep every NaN through from_float32: numbers only.
    finite = np.isfinite(to_float32(target, "BF16")) & np.isfinite(to_float32(origin, "BF16"))
    origin[~finite], target[~finite] = 0, 0
    write_safetensors(folder / "model.safetensors", [("a.weight", "BF16", origin.shape)], lambda name: origin)
    one, two = base_of(folder, tmp_path / "1", "bfloat16", schema), base_of(folder, tmp_path / "2", "bfloat16", schema)
    one.replace(1, lambda layer: iter([target]))
    zero = PublishedState.zero(subspaces((1, 2), RANK), schema)
    write_snapshot(tmp_path / "s", one, zero)
    take_snapshot(tmp_path / "s", two, subspaces((1, 2), RANK, 1))
    assert np.array_equal(two.layer(schema.layers[0])[0], target)


def peak(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks(root: Path, layers: int) -> tuple[int, int, int]:
    """The most memory that writing a snapshot, taking it, and a merge took, in bytes."""
    schema = ModelSchema(tuple(LayerSpec(f"l{i}", 1024, 512) for i in range(layers)), ())
    folder = write_model(root / "model", "F32", schema)
    base, other = base_of(folder, root / "own", schema=schema), base_of(folder, root / "other", schema=schema)
    state = merged_times(base, 1, schema=schema)
    finished = learned(ExactState.zero(subspaces(state.seeds, RANK), schema), 1, schema=schema).publish()
    return (
        peak(lambda: write_snapshot(root / "s", base, state)),
        peak(lambda: take_snapshot(root / "s", other, subspaces(state.seeds, RANK, 1))),
        peak(lambda: base.merge(finished, 2)),
    )


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A layer's master copy has 2 MiB here, a block 1 MiB; the learned state 16 KiB a layer."""
    small, large = peaks(tmp_path / "small", 2), peaks(tmp_path / "large", 6)
    assert max(large) < 16e6 and all(b < a + 1e6 for a, b in zip(small, large, strict=True)), (small, large)
