# SPDX-License-Identifier: Apache-2.0
"""Int8 weights on disk: the same numbers and the same digest as without the file, made once, and anew when anything is
wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plans import subspaces

from edge_client.worker.model.loading import describe
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.subspaces.schedule import pool_seeds
from fedcore.weights.checkpoint import Checkpoint

CAUSAL = TaskSection(kind="causal-lm")


@pytest.fixture
def folder(make_llama: Callable[..., Path]) -> Path:
    return make_llama(vocabulary=500)


def base_of(folder: Path, scratch: Path, kind: str = "int8") -> Base:
    checkpoint = Checkpoint(folder)
    return Base(checkpoint, describe(checkpoint, CAUSAL), kind, scratch)  # type: ignore[arg-type]


def test_numbers_and_digest_do_not_change(folder: Path, tmp_path: Path) -> None:
    plain, stored = base_of(folder, tmp_path / "a"), base_of(folder, tmp_path / "b")
    stored.store()
    assert plain.digest() == stored.digest()
    for layer in plain.schema.layers:
        q, scale = plain.layer(layer)
        for mapped in (False, True):
            q_stored, scale_stored = stored.layer(layer, mapped=mapped)
            assert isinstance(q_stored, np.memmap) == mapped
            assert scale is not None and scale_stored is not None
            assert np.array_equal(q, q_stored) and np.array_equal(scale, scale_stored)


def test_a_restart_neither_quantises_nor_hashes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(folder, tmp_path / "b")
    base.store()
    digest = base.digest()
    monkeypatch.setattr("fedcore.model.base.quantise_weight", None)
    monkeypatch.setattr("fedcore.model.base.hash_numbers", None)
    again = base_of(folder, tmp_path / "b")
    again.store()
    assert again.digest() == digest and again.layer(again.schema.layers[0])[1] is not None


@pytest.mark.parametrize("damage", ["torn weights", "torn notes", "other checkpoint", "no notes"])
def test_what_does_not_fit_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    base = base_of(folder, tmp_path / "b")
    base.store()
    digest, weights, notes = (
        base.digest(),
        tmp_path / "b" / "0" / "weights.safetensors",
        tmp_path / "b" / "0" / "weights.json",
    )
    if damage == "torn weights":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "torn notes":
        os.truncate(notes, notes.stat().st_size // 2)
    elif damage == "no notes":
        notes.unlink()
    else:
        os.utime(folder / "model.safetensors", (1, 1))
    before = weights.stat().st_ino
    again = base_of(folder, tmp_path / "b")
    again.store()
    assert again.digest() == digest and weights.stat().st_ino != before


def test_a_merge_makes_the_next_generation_s_file(folder: Path, tmp_path: Path) -> None:
    plain, stored = base_of(folder, tmp_path / "a"), base_of(folder, tmp_path / "b")
    stored.store()
    state = PublishedState.zero(subspaces(pool_seeds(0, 0, 2), 4), plain.schema)
    for base in (plain, stored):
        base.merge(state, 1)
    stored.store()
    assert plain.digest() == stored.digest() and stored.generation == 1
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["1"]
    again = base_of(folder, tmp_path / "b")
    again.store()
    assert again.generation == 1 and again.digest() == plain.digest()


def test_a_float_base_maps_its_checkpoint_where_the_dtype_is_its_own(folder: Path, tmp_path: Path) -> None:
    own, other = base_of(folder, tmp_path / "a", "bfloat16"), base_of(folder, tmp_path / "b", "float32")
    layer = own.schema.layers[0]
    assert isinstance(own.layer(layer, mapped=True)[0], np.memmap)
    assert not isinstance(other.layer(layer, mapped=True)[0], np.memmap)
    own.store()
    assert not (tmp_path / "a" / "0").exists()
