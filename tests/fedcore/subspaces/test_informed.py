# SPDX-License-Identifier: Apache-2.0
"""Informed rows: whitened, dealt out, of the size of random ones, and exact in merges."""

from __future__ import annotations

import hashlib
import tempfile
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import subspaces

from fedcore.errors import ConfigError, ExactnessError, MalformedMessage, ModelError
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.merge import exact_rows, merge_update
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.round.checksums import checksums
from fedcore.round.training import SubspaceTraining
from fedcore.subspaces.informed import (
    LayerRows,
    largest_spread,
    principal_rows,
    read_informed,
    rounded_rows,
    write_informed,
)
from fedcore.subspaces.projection import projection_of, signs
from fedcore.system.durable import sha256_of
from fedcore.weights.schema import LayerSpec, ModelSchema

SCHEMA = ModelSchema((LayerSpec("a", 5, 24), LayerSpec("b", 3, 12)), ())


def inputs(columns: int, directions: int = 0, seed: int = 0) -> np.ndarray:
    """Inputs whose directions differ in strength by a factor of a hundred."""
    chance = np.random.default_rng(seed)
    turned = np.linalg.qr(chance.normal(size=(columns, columns)))[0]
    strength = np.geomspace(10, 0.1, columns) * (np.arange(columns) < (directions or columns))
    return np.asarray(chance.normal(size=(4000, columns)) * strength @ turned)


def rows_of(x: np.ndarray, subspaces: int, rank: int) -> np.ndarray:
    return principal_rows(x.T @ x, x.sum(axis=0), subspaces, rank, "a")


def test_every_row_of_what_is_projected_varies_alike_and_none_goes_with_another() -> None:
    x = inputs(24)
    rows = rows_of(x, 3, 4)
    second = (x @ rows.T).T @ (x @ rows.T) / len(x)
    assert np.allclose(second, second[0, 0] * np.eye(12), atol=1e-6 * second[0, 0])
    # Of random rows the mean square length is n, before the scale.
    assert np.isclose((rows**2).sum(axis=1).mean(), 24)
    part = rounded_rows(rows, 12)
    z = x @ np.ldexp(part.rows.astype(float), part.exponent[:, None].astype(int)).T
    assert np.abs((z**2).mean(axis=0) / second[0, 0] - 1).max() < 0.05


@pytest.mark.parametrize("directions", [24, 5])
def test_what_all_inputs_have_in_common_is_seen_by_no_row(directions: int) -> None:
    """Not by those that fill up either; and what is left varies alike around nothing."""
    x = inputs(24, directions)
    mean = np.random.default_rng(1).normal(size=24)
    x += 30 * mean / np.linalg.norm(mean) - x.mean(axis=0)
    rows = rows_of(x, 2, 4)
    assert np.abs(rows @ mean).max() < 1e-9 * np.linalg.norm(mean)
    z = (x @ rows.T)[:, :2]
    assert np.abs(z.mean(axis=0)).max() < 1e-9 and np.allclose(z.var(axis=0), z.var(axis=0)[0], rtol=1e-9)


def test_directions_are_dealt_forth_and_back() -> None:
    moment = np.diag(np.arange(12, 0, -1.0) ** 2)
    rows = principal_rows(moment, np.zeros(12), 3, 4, "a")
    assert np.abs(rows).argmax(axis=1).tolist() == [0, 5, 6, 11, 1, 4, 7, 10, 2, 3, 8, 9]
    assert (np.count_nonzero(rows, axis=1) == 1).all()
    # The first two rows of each subspace are those that a pool of rank 2 has.
    smaller = principal_rows(moment, np.zeros(12), 3, 2, "a")
    assert np.array_equal(np.abs(smaller).argmax(axis=1), np.abs(rows).argmax(axis=1).reshape(3, 4)[:, :2].reshape(-1))


def test_where_the_text_has_fewer_directions_the_last_rows_are_signs() -> None:
    x = inputs(24, directions=5)
    rows = principal_rows(x.T @ x, np.zeros(24), 2, 4, "a")
    filled = np.array([(np.abs(row) == 1).all() for row in rows]).reshape(2, 4)
    assert filled.sum() == 3 and not filled[:, :2].any() and filled[:, 3].all()
    x = inputs(24)
    more = principal_rows(x.T @ x, np.zeros(24), 5, 6, "a")
    assert more.shape == (30, 24) and sum((np.abs(row) == 1).all() for row in more) == 6
    assert np.isclose((more**2).sum(axis=1).mean(), 24)


def test_few_directions_of_a_wide_layer_are_as_good_as_eigenvectors() -> None:
    """With strengths that fall as those of language models' layers do, slower than any bound on the products likes."""
    chance, columns, count = np.random.default_rng(3), 1024, 128
    turned = np.linalg.qr(chance.normal(size=(columns, columns)))[0]
    values = 1 / np.arange(1, columns + 1)
    moment = (turned.T * values) @ turned
    rows = principal_rows(moment, np.zeros(columns), 8, 16, "a")
    second = rows @ moment @ rows.T
    assert np.abs(second / second[0, 0] - np.eye(count)).max() < 1e-9, "all vary alike, none goes with another"
    q, _ = np.linalg.qr(rows.T)
    assert np.trace(q.T @ moment @ q) > 0.995 * values[:count].sum()
    assert np.array_equal(rows, principal_rows(moment, np.zeros(columns), 8, 16, "a"))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_a_layer_without_input_is_refused_in_one_line(bad: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"^l: nothing was measured of this layer's input \(check the text"):
        principal_rows(bad, np.zeros(4), 1, 2, "l")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_rounded_rows_are_close_and_always_sum_exactly(count: int, apart: float, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, 8)) * np.geomspace(1, apart, count)[:, None]
    part = rounded_rows(rows, 2000)
    values = np.ldexp(part.rows.astype(float), part.exponent[:, None].astype(int))
    assert np.abs(part.rows.astype(int)).max() <= 127
    assert (np.abs(values - rows) <= np.ldexp(0.5, part.exponent.astype(int))[:, None]).all()
    spread = [*part.exponent.astype(int).tolist(), 0]
    assert max(spread) - min(spread) <= largest_spread(2000)


def informed_file(path: Path, count: int = 2, rank: int = 4) -> str:
    layers = ((layer.name, rounded_rows(rows_of(inputs(layer.columns), count, rank), 12)) for layer in SCHEMA.layers)
    write_informed(path, count, rank, layers)
    return sha256_of(path)


def training_of(sha256: str, count: int = 2) -> SubspaceTraining:
    return msgspec.structs.replace(
        subspaces((1, 2, 3), 4), projection="informed", artefact=sha256, informed_subspaces=count
    )


def test_a_file_is_read_as_it_was_written_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "informed.bin"
    informed_file(path)
    rows = read_informed(path, SCHEMA, 2, 4)
    assert {name: part.rows.shape for name, part in rows.items()} == {"a": (8, 24), "b": (8, 12)}
    expected = rounded_rows(rows_of(inputs(24), 2, 4), 12)
    assert np.array_equal(rows["a"].rows, expected.rows) and np.array_equal(rows["a"].exponent, expected.exponent)
    for wrong in ((1, 4), (2, 3), (4, 2)):
        with pytest.raises(MalformedMessage, match="2 subspaces of rank 4"):
            read_informed(path, SCHEMA, *wrong)
    with pytest.raises(MalformedMessage, match="does not have"):
        read_informed(path, ModelSchema((SCHEMA.layers[0],), ()), 2, 4)
    with pytest.raises(MalformedMessage, match="1 layers are missing, first c"):
        read_informed(path, ModelSchema((*SCHEMA.layers, LayerSpec("c", 2, 12)), ()), 2, 4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3), st.integers(0, 40))
def test_whatever_a_forged_file_holds_is_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "informed.bin"
        informed_file(path)
        data = bytearray(path.read_bytes())
        for place, value in changes:
            data[place % len(data)] = value
        path.write_bytes(data[: len(data) - cut])
        try:
            rows = read_informed(path, SCHEMA, 2, 4)
        except MalformedMessage:
            return
        assert {name: part.rows.shape for name, part in rows.items()} == {"a": (8, 24), "b": (8, 12)}
        assert all(part.exponent.shape == (8,) for part in rows.values())


def test_a_pool_is_informed_rows_and_then_signs(tmp_path: Path) -> None:
    sha256 = informed_file(tmp_path / "informed.bin")
    informed, training = read_informed(tmp_path / "informed.bin", SCHEMA, 2, 4), training_of(sha256)
    projection = projection_of(training.rows_from, training.seeds, 4, "a", 24, informed)
    assert np.array_equal(projection.rows[:8], informed["a"].rows)
    assert np.array_equal(projection.rows[8:], signs(3, "a", 4, 24))
    assert projection.exponent is not None and not projection.exponent[8:].any() and projection.exponent[:8].any()
    assert projection.scale == 0.5
    with pytest.raises(ExactnessError, match="not here"):
        projection_of(training.rows_from, training.seeds, 4, "a", 24)


def test_checksums_and_digests_cover_every_informed_number(tmp_path: Path) -> None:
    sha256 = informed_file(tmp_path / "informed.bin")
    informed, training = read_informed(tmp_path / "informed.bin", SCHEMA, 2, 4), training_of(sha256)
    found = checksums(training, SCHEMA, informed)
    part = informed["b"]
    rows, exponent = part.rows.copy(), part.exponent.copy()
    rows[3, 3] += 1
    exponent[0] += 1
    for changed in (LayerRows(rows, part.exponent), LayerRows(part.rows, exponent)):
        other = checksums(training, SCHEMA, {**informed, "b": changed})
        assert other[0] == found[0] and other[1] != found[1]
    digests = {
        PublishedState.zero(one, SCHEMA).digest()
        for one in (training, training_of("0" * 64), training_of(sha256, 1), subspaces((1, 2, 3), 4))
    }
    assert len(digests) == 4


def test_an_export_with_informed_rows_equals_integer_arithmetic(tmp_path: Path) -> None:
    sha256 = informed_file(tmp_path / "informed.bin")
    informed, training = read_informed(tmp_path / "informed.bin", SCHEMA, 2, 4), training_of(sha256)
    projection = projection_of(training.rows_from, training.seeds, 4, "a", 24, informed)
    q = np.random.default_rng(1).integers(-32767, 32768, (5, 12)).astype(np.int16)
    part = RowScaled(q, np.arange(-20, -15, dtype=np.int8))
    assert projection.exponent is not None
    shifted = [
        [Fraction(int(v)) * Fraction(2) ** int(e) for v in row]
        for row, e in zip(projection.rows, projection.exponent, strict=True)
    ]
    exact = [
        [sum(int(a) * b for a, b in zip(row, column, strict=True)) for column in zip(*shifted, strict=True)]
        for row in q
    ]
    rounded = np.array([[np.float32(float(value)) for value in row] for row in exact])
    assert np.array_equal(merge_update(part, projection), rounded * (part.scale() * np.float32(0.5))[:, None])


def test_rows_too_far_apart_for_exact_sums_are_refused(tmp_path: Path) -> None:
    sha256 = informed_file(tmp_path / "informed.bin")
    informed = read_informed(tmp_path / "informed.bin", SCHEMA, 2, 4)
    exponent = informed["a"].exponent.copy()
    exponent[0] = -largest_spread(12) - 1
    apart = {"a": LayerRows(informed["a"].rows, exponent)}
    with pytest.raises(ExactnessError, match="too far apart"):
        exact_rows(projection_of(training_of(sha256).rows_from, (1, 2, 3), 4, "a", 24, apart), "a")


def test_what_settings_of_informed_rows_mean() -> None:
    share = FedKRSOSettings(projection="informed", informed_share=0.5, num_seeds=5)
    training = server_half(share, "ab" * 32).training(3, 7)
    assert isinstance(training, SubspaceTraining)
    assert (training.artefact, training.informed_subspaces, training.rows_from) == (
        "ab" * 32,
        2,
        "informed/2/" + "ab" * 32,
    )
    assert FedKRSOSettings(projection="informed", informed_share=0.01).informed_subspaces == 1
    with pytest.raises(
        ConfigError, match=r"^method\.schedule: informed rows are there once, and fresh asks for new ones"
    ):
        FedKRSOSettings(projection="informed", schedule="fresh")
    for wrong in (
        {"informed_share": 0.5},
        {"projection": "informed", "informed_share": 0.0},
        {"projection": "informed", "informed_share": 1.5},
    ):
        with pytest.raises(ConfigError, match=r"method\.informed_share"):
            FedKRSOSettings(**wrong)  # type: ignore[arg-type]


def test_a_file_of_the_same_rows_is_the_same_file(tmp_path: Path) -> None:
    hashes = {informed_file(tmp_path / str(number)) for number in range(2)}
    assert hashes == {hashlib.sha256((tmp_path / "0").read_bytes()).hexdigest()}
