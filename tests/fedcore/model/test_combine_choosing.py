# SPDX-License-Identifier: Apache-2.0
"""Update files by rules of whole updates, and in buckets: against Python's integers, in any order and block, and in
bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcore.methods import server_half
from fedcore.methods.interface import MethodSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model import combine
from fedcore.model.combine import Combined
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate
from fedcore.numbers.choosing import Choosing, GeometricMedian, Krum, MultiKrum
from fedcore.numbers.clip import Clip
from fedcore.numbers.rules import Median, Rule, TrimmedMean, rule_of
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema
from tests.fedcore.model.test_combine import KRSO, SAID, SCHEMA, alone, plan_of, sent

Said = list[dict[str, NDArray[np.int64]]]
NODES = {**SAID, "f": (4, (0, 1, 2)), "g": (4, (1, 0, 2))}
RULES: list[Rule] = [
    Krum(),
    MultiKrum(liars=2),
    GeometricMedian(),
    *(Median(bucket=size) for size in (2, 3)),
    TrimmedMean(rule_of("trimmed-mean", 0.3).trim, bucket=2),
    Krum(bucket=2, liars=0),
    GeometricMedian(bucket=2),
]


def flat(said: dict[str, NDArray[np.int64]]) -> list[int]:
    return [number for name in sorted(said) for number in said[name].reshape(-1).tolist()]


def halves_to_even(rows: list[list[int]], weights: list[int]) -> list[int]:
    """The weighted mean by Python's integers."""
    total, out = sum(weights), []
    for column in zip(*rows, strict=True):
        whole, rest = divmod(sum(number * weight for number, weight in zip(column, weights, strict=True)), total)
        out.append(whole + (2 * rest > total or (2 * rest == total and whole % 2)))
    return out


def reference(rule: Rule, said: dict[str, list[int]], plan: Plan) -> list[int]:
    """Numbers by node become what counts, without blocks, files or float products."""
    order = sorted(said, key=lambda node: combine._lot(plan, node))
    size = rule.bucket
    buckets = [[said[node] for node in order[start : start + size]] for start in range(0, len(order), size)]
    rows = [halves_to_even(bucket, [1] * len(bucket)) for bucket in buckets]
    if isinstance(rule, Choosing):
        gaps = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
        return halves_to_even(rows, rule.choose(gaps))
    kept = rule.tolerates(len(rows))
    columns = [sorted(column)[kept : len(rows) - kept] for column in zip(*rows, strict=True)]
    return [halves_to_even([[number] for number in column], [1] * len(column))[0] for column in columns]


@pytest.mark.parametrize("settings", [KRSO, FedAvgSettings(steps=20, codec="float32")], ids=lambda s: s.described())
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{rule.bucket}")
def test_updates_come_to_what_integers_say_whatever_the_order_and_the_block(
    tmp_path: Path, settings: MethodSettings, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(settings)
    whole: tuple[int, tuple[int, ...]] = (plan.training.rank, ())
    updates = sent(tmp_path, plan, NODES if settings is KRSO else dict.fromkeys(NODES, whole))
    updates[1] = replace(updates[1], clip=Clip(40_001, 17))
    said = {update.header.node: flat(alone(update, plan)) for update in updates}
    expected = reference(rule, said, plan)
    for block_numbers, order in ((2**20, updates), (11, updates[::-1])):
        monkeypatch.setattr(combine, "BLOCK_NUMBERS", block_numbers)
        assert flat(dict(Combined(order, plan, rule).means())) == expected
    assert any(expected)
    half, zero = server_half(settings), ExactState.zero(plan.training, SCHEMA)
    digests = {
        half.aggregate(zero, plan, some, rule).publish().digest() for some in (updates, updates[3:] + updates[:3])
    }
    assert len(digests) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{node}.bin" for node in NODES]


def test_each_round_draws_its_buckets_anew_from_seed_round_and_names_alone(tmp_path: Path) -> None:
    draws = set()
    for server_round in range(1, 6):
        plan = plan_of(KRSO, server_round=server_round)
        draws.add(tuple(sorted(NODES, key=lambda node: combine._lot(plan, node))))
        assert combine._lot(plan, "a") == combine._lot(plan_of(KRSO, server_round=server_round), "a")
    assert len(draws) == 5


def lying(updates: list[WeightedUpdate], folder: Path, plan: Plan, liars: int) -> list[WeightedUpdate]:
    """The first so many send what others send, 500 times as large."""
    lies = sent(folder, plan, {update.header.node: (0, ()) for update in updates[:liars]}, size=5.0)
    return lies + updates[liars:]


@pytest.mark.parametrize("rule", [Krum(liars=3), MultiKrum(liars=3), GeometricMedian(), Median(bucket=2)])
def test_a_lying_minority_has_next_to_no_weight(tmp_path: Path, rule: Rule) -> None:
    plan = plan_of(FedAvgSettings(steps=20))
    nodes: dict[str, tuple[int, tuple[int, ...]]] = {f"n{number:02}": (0, ()) for number in range(13)}
    honest = sent(tmp_path, plan, nodes)
    (tmp_path / "lies").mkdir()
    updates = lying(honest, tmp_path / "lies", plan, 3)
    assert rule.withstands(13) >= 3
    of_honest = np.array([flat(alone(update, plan)) for update in honest[3:]])
    found = np.array(flat(dict(Combined(updates, plan, rule).means())))
    middle = of_honest.mean(axis=0)
    # Half of what the honest ones differ by among themselves, or one of them.
    gap = np.linalg.norm(of_honest - middle, axis=1).max()
    assert np.linalg.norm(found - middle) <= 1.01 * gap
    assert np.linalg.norm(np.array(flat(alone(updates[0], plan))) - middle) > 50 * gap


def test_all_orders_of_few_give_the_same_bits(tmp_path: Path) -> None:
    plan = plan_of(KRSO)
    updates = sent(tmp_path, plan, dict(list(SAID.items())[:4]))
    for rule in (Krum(), MultiKrum(), GeometricMedian(bucket=3)):
        found = {
            b"".join(numbers.tobytes() for _, numbers in Combined(list(order), plan, rule).means())
            for order in itertools.permutations(updates)
        }
        assert len(found) == 1


def test_memory_is_that_of_a_block_however_many_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine, "BLOCK_NUMBERS", 2**15)
    plan = plan_of(FedAvgSettings(steps=20), ModelSchema((LayerSpec("l", 64, 1024),), ()))
    peaks = []
    for participants in (5, 40):
        folder = tmp_path / str(participants)
        folder.mkdir()
        updates = sent(folder, plan, {f"n{number:02}": (0, ()) for number in range(participants)})
        tracemalloc.start()
        dict(Combined(updates, plan, GeometricMedian()).means())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 35 participants more have 35 entries of int64 more; each adds where its records begin and its distances.
    assert abs(peaks[1] - peaks[0]) < 8 * 64 * 1024, peaks
