# SPDX-License-Identifier: Apache-2.0
"""The base: quantised by blocks as if whole, kept on disk through kills and merges, the same for those who never store
it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import subspaces

from fedcore.errors import BaseDamaged, ModelError
from fedcore.model.base import Base
from fedcore.model.state import ExactState, PublishedState
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.weights.checkpoint import Checkpoint, from_float32, to_float32, write_safetensors
from fedcore.weights.quantise import INT8_MAX, quantise_weight
from fedcore.weights.schema import LayerSpec, ModelSchema

# More rows than a block, and not a multiple of it.
LAYERS = (LayerSpec("a.dense", 700, 24), LayerSpec("b.dense", 3, 40), LayerSpec("c.dense", 256, 8))
SCHEMA = ModelSchema(LAYERS, ())


def floats(layer: LayerSpec) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.random.default_rng(layer.rows).standard_normal((layer.rows, layer.columns), np.float32)
    values[1] = 0
    return values


def write_model(folder: Path, tensors: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    table = [(name, dtype, numbers.shape) for name, (dtype, numbers) in tensors.items()]
    write_safetensors(folder / "model.safetensors", table, lambda name: tensors[name][1])
    return folder


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[[str], Path]:
    def make(dtype: str) -> Path:
        tensors: dict[str, tuple[str, np.ndarray[Any, Any]]] = {"norm.weight": ("F32", np.ones(8, np.float32))}
        for layer in LAYERS:
            if dtype == "I8":
                q, scale = quantise_weight(floats(layer))
                tensors[f"{layer.name}.weight"] = ("I8", q)
                tensors[f"{layer.name}.SCB"] = ("F32", scale * np.float32(INT8_MAX))
            else:
                tensors[f"{layer.name}.weight"] = (dtype, from_float32(floats(layer), dtype))
        return write_model(tmp_path / dtype, tensors)

    return make


def base_of(folder: Path, scratch: Path) -> Base:
    return Base(Checkpoint(folder), SCHEMA, "int8", scratch)


def some_state() -> PublishedState:
    shapes, generator = subspaces((5, 6), 4).shapes(SCHEMA), np.random.default_rng(0)
    total = RunningSum(shapes)
    total.add_examples(1)
    for name, shape in shapes.items():
        total.add(name, quantise_rows((generator.normal(size=shape) * 0.01).astype(np.float32), 8), 1)
    return ExactState.zero(subspaces((5, 6), 4), SCHEMA).after(total).publish()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_blocks_of_rows_are_quantised_like_the_whole(
    make_model: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    base = base_of(make_model(dtype), tmp_path / "own")
    for generation in (0, 1):
        for layer in LAYERS:
            q, scale = base.layer(layer)
            expected, expected_scale = quantise_weight(base.master(layer))
            assert scale is not None and np.array_equal(q, expected) and np.array_equal(scale, expected_scale)
        if not generation:
            base.merge(some_state(), 1)


def test_a_weight_that_is_not_finite_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    tensors = {f"{layer.name}.weight": ("F32", floats(layer)) for layer in LAYERS}
    tensors["a.dense.weight"][1][650, 3] = np.inf
    base = base_of(write_model(tmp_path / "model", tensors), tmp_path / "own")
    with pytest.raises(ModelError, match=r"a\.dense\.weight"):
        base.store()
    assert not (tmp_path / "own" / "0" / "weights.safetensors").exists()


def test_a_kill_in_the_middle_is_made_good(
    make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = make_model("BF16"), []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return quantise_weight(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("fedcore.model.base.quantise_weight", killed)
        with pytest.raises(KeyboardInterrupt):
            base_of(folder, tmp_path / "own").store()
    base = base_of(folder, tmp_path / "own")
    assert base.generation == 0
    base.store()
    assert base.digest() == base_of(folder, tmp_path / "other").digest()
    assert sorted(path.name for path in (tmp_path / "own" / "0").iterdir()) == ["weights.json", "weights.safetensors"]


@pytest.mark.parametrize("dtype", ["BF16", "I8"])
def test_merges_are_the_same_with_and_without_the_file(
    make_model: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    folder = make_model(dtype)
    plain, stored = base_of(folder, tmp_path / "a"), base_of(folder, tmp_path / "b")
    stored.store()
    assert plain.digest() == stored.digest()
    before = [plain.layer(layer)[0] for layer in LAYERS]
    mapped = [stored.layer(layer, mapped=True)[0] for layer in LAYERS]
    for base in (plain, stored):
        base.merge(some_state(), 1)
    # Whoever still computes with the old generation keeps it, though its file is gone.
    assert not (tmp_path / "b" / "0").exists()
    assert all(isinstance(own, np.memmap) and np.array_equal(own, old) for own, old in zip(mapped, before, strict=True))
    stored.store()
    assert plain.digest() == stored.digest() == base_of(folder, tmp_path / "b").digest()
    assert any(
        not np.array_equal(stored.layer(layer, mapped=True)[0], old) for layer, old in zip(LAYERS, before, strict=True)
    )
    # The next generation begins where this one's file lies.
    for base in (plain, stored):
        base.merge(some_state(), 2)
    stored.store()
    assert plain.digest() == stored.digest() and stored.generation == 2


def test_one_who_never_stores_is_not_misled_by_the_folder(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make_model("BF16")
    stored = base_of(folder, tmp_path / "own")
    stored.store()
    weights = tmp_path / "own" / "0" / "weights.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    plain = base_of(folder, tmp_path / "own")
    assert plain.generation == 0 and plain.digest() == base_of(folder, tmp_path / "none").digest()


def damage(path: Path, *, cut: bool = False) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-3] if cut else data)


def test_a_damaged_weight_file_is_made_anew(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make_model("BF16")
    right = base_of(folder, tmp_path / "none").digest()
    for cut in (False, True):
        base_of(folder, tmp_path / "own").store()
        weights = tmp_path / "own" / "0" / "weights.safetensors"
        whole = weights.read_bytes()
        damage(weights, cut=cut)
        base = base_of(folder, tmp_path / "own")
        base.store()
        assert base.digest() == right and weights.read_bytes() == whole
        assert np.array_equal(base.layer(LAYERS[0])[0], base_of(folder, tmp_path / "none").layer(LAYERS[0])[0])


def test_a_master_copy_cut_short_is_not_taken_for_a_generation(
    make_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = make_model("BF16")
    base_of(folder, tmp_path / "own").merge(some_state(), 1)
    damage(tmp_path / "own" / "1" / "1.bin", cut=True)
    base = base_of(folder, tmp_path / "own")
    assert base.generation == 0 and base.digest() == base_of(folder, tmp_path / "none").digest()
    base.merge(some_state(), 1)
    expected = base_of(folder, tmp_path / "none")
    expected.merge(some_state(), 1)
    assert base.digest() == expected.digest()


def test_a_master_copy_with_a_wrong_bit_is_never_used(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make_model("BF16")
    base = base_of(folder, tmp_path / "own")
    base.merge(some_state(), 1)
    base.store()
    damage(tmp_path / "own" / "1" / "0.bin")
    base = base_of(folder, tmp_path / "own")
    base.store()
    before = base.digest()
    with pytest.raises(BaseDamaged, match="damaged"):
        base.merge(some_state(), 2)
    # Weights made before the damage are right, and nothing of generation 2 is there.
    assert (
        base.generation == 1
        and base.digest() == before
        and sorted(p.name for p in (tmp_path / "own").iterdir()) == ["1"]
    )
    (tmp_path / "own" / "1" / "weights.json").unlink()
    with pytest.raises(BaseDamaged):
        base_of(folder, tmp_path / "own").store()
    base.reset()
    base.store()
    assert base.generation == 0 and base.digest() == base_of(folder, tmp_path / "none").digest()


def test_a_merge_is_on_the_disk_before_it_is_there(
    make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def fsync(handle: int) -> None:
        flushed.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))

    renamed: list[int] = []
    replace = Path.replace

    def rename(self: Path, target: Path) -> Path:
        if target.name == "1":
            renamed.append(len(flushed))
        return replace(self, target)

    base = base_of(make_model("BF16"), tmp_path / "own")
    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    base.merge(some_state(), 1)
    before = flushed[: renamed[0]]
    assert {
        *(f"own/1.part/{index}.bin" for index in range(len(LAYERS))),
        "own/1.part/masters.json.new",
        "own/1.part",
    } <= set(before)
    assert flushed[renamed[0] :] == ["own"]


def test_bfloat16_is_widened_exactly_at_any_shape() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = to_float32(bits, "BF16")
    assert np.array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)
    assert to_float32(np.array(0x3F80, np.uint16), "BF16").shape == ()
    assert to_float32(np.empty((0, 3), np.uint16), "BF16").shape == (0, 3)
