# SPDX-License-Identifier: Apache-2.0
"""Nothing enters the sum that the plan does not foresee, and the sender is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest
from plans import make_plan

from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, UpdateRefused
from fedcore.methods import AnySettings, server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.model.update import CheckedUpdate, WeightedUpdate, check_update, write_update
from fedcore.numbers.accumulator import RowScaled, quantise_rows
from fedcore.numbers.clip import Clip
from fedcore.numbers.records import Record, pack_record
from fedcore.round.checksums import checksums as checksums_of
from fedcore.round.header import UPDATE_FORMAT, UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema((LayerSpec("l", 5, 12), LayerSpec("k", 3, 12)), (TensorSpec("head.bias", (3,), False),))
HALF = server_half(
    FedKRSOSettings(rank=4, min_rank=2, num_seeds=3, steps=20, projection="signs", bits=8, published_bits=16)
)
HEADER = UpdateHeader(
    run="r", round=1, node="a", version=0, examples=7, rank=4, subspaces=(0, 2), loss=1.0, seconds=1.0
)


def the_plan() -> Plan:
    training = HALF.training(1, 5)
    return make_plan(
        cohort=("a", "b"),
        task=TaskSection(kind="regression"),
        model_schema=SCHEMA,
        checksums=checksums_of(training, SCHEMA),
        training=training,
    )


def records(width: int = 8, bits: int = 8, seed: int = 0, rows: int = 5) -> list[Record]:
    generator = np.random.default_rng(seed)

    def made(shape: tuple[int, int], precision: int) -> RowScaled:
        return quantise_rows((generator.normal(size=shape) * 0.01).astype(np.float32), precision)  # type: ignore[arg-type]

    return [
        Record("l", made((rows, width), bits), bits),  # type: ignore[arg-type]
        Record("k", made((3, width), bits), bits),  # type: ignore[arg-type]
        Record("head.bias", made((1, 3), 16), 16),
    ]


def part_of_l(number: int, exponent: int) -> Record:
    return Record("l", RowScaled(np.full((5, 8), number, np.int16), np.full(5, exponent, np.int8)), 8)


def check(tmp_path: Path, header: UpdateHeader, content: Iterable[Record]) -> CheckedUpdate:
    write_update(tmp_path / "u", header, content)
    return check_update(tmp_path / "u", the_plan(), "r", "a")


def test_a_right_update_and_one_of_smaller_rank_are_taken_with_their_norm(tmp_path: Path) -> None:
    small = msgspec.structs.replace(HEADER, rank=2)
    for header, content in ((HEADER, records()), (small, records(width=4))):
        update = check(tmp_path, header, content)
        assert update.header == header
        # Squares of 16-bit integers by powers of two: exact in float64 too.
        assert update.squared == sum(float((r.part.values().astype(np.float64) ** 2).sum()) for r in content) * 2**64


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"run": "other"}, "run is 'other' where the plan has 'r'"),
        ({"round": 2}, "round is 2"),
        ({"node": "b"}, "node is 'b'"),
        ({"version": 4}, "version is 4"),
        ({"rank": 8}, "rank 8 is outside 2 to 4"),
        ({"subspaces": (0, 3)}, "not distinct indices of 3 seeds"),
        ({"subspaces": (1, 1)}, "not distinct"),
        ({"subspaces": ()}, "not distinct"),
        ({"examples": 0}, "0 examples is outside"),
        ({"examples": 2**40}, "is outside 1 to"),
        ({"examples": -3}, "-3 examples is outside"),
        ({"loss": float("nan")}, "loss"),
        ({"loss": float("-inf")}, "loss"),
        ({"loss": 1e300}, "loss"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"rank": 1}, "rank 1 is outside 2 to 4"),
        ({"run": "x" * 1_500}, "run is 'xxx"),
        ({"run": "x" * 100_000}, "not an update"),
        ({"subspaces": tuple(range(900))}, "are not distinct indices of 3 seeds"),
    ],
)
def test_wrong_headers_are_refused_by_name_in_a_short_line(tmp_path: Path, change: dict, match: str) -> None:
    with pytest.raises(UpdateRefused, match=match) as refused:
        check(tmp_path, msgspec.structs.replace(HEADER, **change), records())
    assert refused.value.place == "a" and len(refused.value.one_line()) < 300


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (records(width=7), "a: l: 5x7 with 8 bits where the plan has 5x8 with 8"),
        (records(rows=4), "a: l: 4x8"),
        (records(bits=16), "with 16 bits where the plan has 5x8 with 8"),
        (records()[:2], "1 tensors are missing, first head.bias"),
        ([*records(), *records()[:1]], "a: l: a tensor that the plan does not have, or twice"),
        ([Record("x", records()[0].part, 8)], "a: x: a tensor that the plan does not have"),
        ([part_of_l(100, 10)], "a: l: a value beyond 128"),
        ([part_of_l(100, 1)], "a: l: a value beyond 128"),
        ([part_of_l(1, 8)], "a: l: a value beyond 128"),
        ([part_of_l(0, 8)], "a: l: a value beyond 128, or a scale beyond"),
        ([part_of_l(0, 127)], "a: l: an exponent is outside"),
        ([part_of_l(1, -33)], "exponent"),
        ([Record("l", part_of_l(1, 0).part, 8, difference=True)], "a: l: 5x8 with 8 bits as a difference"),
        ([Record("\x1b[2J" + "n" * 100_000, part_of_l(1, 0).part, 8)], "a: "),
    ],
)
def test_wrong_tensors_are_refused_by_name_in_a_short_line(tmp_path: Path, content: list[Record], match: str) -> None:
    with pytest.raises(UpdateRefused, match=match) as refused:
        check(tmp_path, HEADER, content)
    assert refused.value.one_line().isprintable() and len(refused.value.one_line()) < 1200


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 8.0},
        {"bits": "8"},
        {"rows": 5.0},
        {"rows": True},
        {"columns": -8},
        {"columns": 2**62},
        {"name": 3},
        {"name": b"l"},
        {"coding": "other"},
        {"coding": ["raw"]},
        {"exponent": b""},
        {"exponent": None},
        {"data": b"x"},
        {"data": {"a": 1}},
        {"difference": 1},
        {"difference": None},
        {"rows": 2**27, "columns": 1},
        {"end": 0},
    ],
)
def test_a_record_with_fields_of_other_types_is_refused(tmp_path: Path, change: dict) -> None:
    header = {**msgspec.to_builtins(HEADER), "format": UPDATE_FORMAT}
    items = [header, {**pack_record(records()[0]), **change}, *map(pack_record, records()[1:]), {"end": 3}]
    (tmp_path / "u").write_bytes(b"".join(map(msgpack.packb, items)))
    with pytest.raises(UpdateRefused):
        check_update(tmp_path / "u", the_plan(), "r", "a")


def test_a_file_that_is_no_update_or_is_cut_short_is_refused(tmp_path: Path) -> None:
    write_update(tmp_path / "u", HEADER, records())
    raw = (tmp_path / "u").read_bytes()
    cuts = [raw[:length] for length in range(0, len(raw), 7)]
    for bad in (b"", b"garbage", raw[:-1], raw[:-3], raw + b"\x80", b"\x81" * 1000, *cuts):
        (tmp_path / "u").write_bytes(bad)
        with pytest.raises(UpdateRefused):
            check_update(tmp_path / "u", the_plan(), "r", "a")


def test_aggregate_is_the_weighted_mean_whatever_the_order(tmp_path: Path) -> None:
    plan, state, updates, expected = the_plan(), ExactState.zero(HALF.training(1, 5), SCHEMA), [], np.zeros((5, 12))
    for node, examples, seed in (("a", 7, 1), ("b", 3, 2)):
        header = msgspec.structs.replace(HEADER, node=node, examples=examples)
        content = records(seed=seed)
        write_update(tmp_path / node, header, content)
        updates.append(WeightedUpdate(tmp_path / node, header, examples))
        expected[:, [0, 1, 2, 3, 8, 9, 10, 11]] += examples / 10 * content[0].part.values()
    one, two = HALF.aggregate(state, plan, updates).publish(), HALF.aggregate(state, plan, updates[::-1]).publish()
    assert one.digest() == two.digest() and one.version == 1
    assert np.allclose(one.entries["l"].values(), expected, atol=1e-6)


def test_a_weight_and_a_clip_count_instead_of_what_is_claimed(tmp_path: Path) -> None:
    plan, state, clip = the_plan(), ExactState.zero(HALF.training(1, 5), SCHEMA), Clip(40_000, 17)
    for node, seed in (("a", 1), ("b", 2)):
        write_update(tmp_path / node, msgspec.structs.replace(HEADER, node=node, examples=1000), records(seed=seed))
    updates = [WeightedUpdate(tmp_path / "a", HEADER, 1, clip), WeightedUpdate(tmp_path / "b", HEADER, 3)]
    found = HALF.aggregate(state, plan, updates).sums["head.bias"] / 2**32
    a, b = (records(seed=seed)[2].part.values().astype(np.float64) for seed in (1, 2))
    assert np.allclose(found, (a * clip.factor + 3 * b) / 4, atol=2**-31, rtol=0)


class OnlyMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: AnySettings


@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        ('name = "fedprox"', r"method.name: invalid value 'fedprox' \(one of fedkrso, fedavg, "),
        ("rank = 4", r"method: 'name' is missing \(one of fedkrso, "),
        ('name = "ffa-lora"\nalhpa = 8.0', r"method: unknown key 'alhpa' \(did you mean 'alpha'"),
        ('name = "fedavg"\nrank = 4', r"method: unknown key 'rank' \(known keys: interval_steps, "),
        ('name = "fedit"\nrank = 0', "method.rank: rank is 0, it must be positive"),
    ],
)
def test_a_wrong_method_section_is_refused_with_what_there_is(tmp_path: Path, lines: str, refusal: str) -> None:
    (tmp_path / "job.toml").write_text(f"[method]\n{lines}\n")
    with pytest.raises(ConfigError, match=refusal):
        load_config(tmp_path / "job.toml", OnlyMethod)
