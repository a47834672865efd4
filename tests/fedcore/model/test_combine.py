# SPDX-License-Identifier: Apache-2.0
"""Update files by a rule: against NumPy on the same updates, in any order, in bounded memory, and after a kill."""

from __future__ import annotations

import itertools
import os
import signal
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from plans import make_plan

from fedcore.config.sections import TaskSection
from fedcore.errors import UpdateRefused
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.lora.factors import RoLoRASettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model import combine
from fedcore.model import update as update_module
from fedcore.model.combine import Combined
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate, add_updates, write_update
from fedcore.numbers.accumulator import RunningSum
from fedcore.numbers.clip import Clip
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.numbers.rules import MEAN, Mean, Median, Rule, TrimmedMean, rule_of
from fedcore.round.checksums import checksums
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema((LayerSpec("l", 9, 12), LayerSpec("k", 3, 14)), (TensorSpec("head.bias", (3,), False),))
KRSO = FedKRSOSettings(rank=4, min_rank=2, num_seeds=3, steps=20, projection="signs", bits=8)
ROBUST: list[Rule] = [Median(), rule_of("trimmed-mean", 0.2)]
# Seeds in another order, a smaller rank, fewer seeds, and neighbours that are a slice.
SAID = {"a": (4, (0, 1, 2)), "b": (4, (2, 0, 1)), "c": (2, (1, 2)), "d": (4, (1, 2)), "e": (4, (2, 1, 0))}


def plan_of(settings: MethodSettings, schema: ModelSchema = SCHEMA, server_round: int = 1) -> Plan:
    training = server_half(settings).training(server_round, 5)
    return make_plan(
        server_round,
        cohort=(),
        task=TaskSection(kind="regression"),
        model_schema=schema,
        checksums=checksums(training, schema),
        training=training,
    )


def sent(
    folder: Path, plan: Plan, nodes: Mapping[str, tuple[int, tuple[int, ...]]], size: float = 0.01
) -> list[WeightedUpdate]:
    """An update of each, its records in an order of its own, and what they claim."""
    updates = []
    for number, (node, (rank, subspaces)) in enumerate(nodes.items()):
        header = UpdateHeader(
            run="r",
            round=plan.round,
            node=node,
            version=plan.version,
            examples=10 + number,
            rank=rank,
            subspaces=subspaces,
            loss=1.0,
            seconds=1.0,
        )
        chance, records = np.random.default_rng(number), []
        for name, want in plan.training.expected(plan.model_schema, header).items():
            change = (chance.normal(size=want.shape) * size).astype(np.float32)
            records.append(Record(name, encoded(change, want.coding, name), want.coding.bits, kind=want.coding.kind))
        turn = number % len(records)
        write_update(folder / f"{node}.bin", header, records[turn:] + records[:turn])
        updates.append(WeightedUpdate(folder / f"{node}.bin", header, header.examples))
    return updates


def alone(update: WeightedUpdate, plan: Plan) -> dict[str, NDArray[np.int64]]:
    """What an update says of each entry, by the sum of itself."""
    total = RunningSum(plan.training.shapes(plan.model_schema))
    add_updates([replace(update, weight=1)], plan, total)
    return dict(total.means())


def reference(rule: Rule, said: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """NumPy's, of floats that hold every number."""
    floats = np.stack(said).astype(np.float64)
    if isinstance(rule, Median):
        return np.rint(np.median(floats, axis=0))
    cut = rule.tolerates(len(said))
    return np.rint(np.sort(floats, axis=0)[cut : len(said) - cut].mean(axis=0))


METHODS = [
    KRSO,
    msgspec.structs.replace(KRSO, moments="averaged", bits=4),
    msgspec.structs.replace(KRSO, moments="rows", bits=4),
    FedAvgSettings(steps=20),
    FedAvgSettings(steps=20, codec="float32"),
    RoLoRASettings(rank=2, steps=20),
]


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s.described())
@pytest.mark.parametrize("rule", ROBUST, ids=["median", "trimmed-mean"])
@pytest.mark.parametrize("block_numbers", [7, 2**20])
def test_updates_come_to_what_numpy_makes_of_them_whatever_the_order_and_the_block(
    tmp_path: Path, settings: MethodSettings, rule: Rule, block_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combine, "BLOCK_NUMBERS", block_numbers)
    plan = plan_of(settings)
    whole: tuple[int, tuple[int, ...]] = (plan.training.rank, ())
    nodes = SAID if isinstance(settings, FedKRSOSettings) else dict.fromkeys(SAID, whole)
    updates = sent(tmp_path, plan, nodes)
    updates[1] = replace(updates[1], clip=Clip(40_001, 17))
    said = [alone(update, plan) for update in updates]
    found = dict(Combined(updates, plan, rule).means())
    assert found.keys() == plan.training.shapes(SCHEMA).keys()
    for name, numbers in found.items():
        assert np.array_equal(numbers, reference(rule, [one[name] for one in said])), name
    half, zero = server_half(settings), ExactState.zero(plan.training, SCHEMA)
    digests = {
        half.aggregate(zero, plan, order, rule).publish().digest()
        for order in ([*updates], updates[::-1], [updates[n] for n in (3, 0, 4, 2, 1)])
    }
    assert len(digests) == 1 and half.aggregate(zero, plan, updates).publish().digest() not in digests
    assert any(value.any() for value in found.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{node}.bin" for node in SAID]


def test_claims_of_examples_count_for_the_mean_alone(tmp_path: Path) -> None:
    plan = plan_of(KRSO)
    updates = sent(tmp_path, plan, SAID)
    heavy = [replace(updates[0], weight=10**6), *updates[1:]]
    for rule in ROBUST:
        one, other = (dict(Combined(some, plan, rule).means()) for some in (updates, heavy))
        assert all(np.array_equal(one[name], other[name]) for name in one)
    total = RunningSum(plan.training.shapes(SCHEMA))
    add_updates(heavy, plan, total)
    # The mean has shares; so it has them as a rule.
    found = dict(Combined(heavy, plan, MEAN).means())
    assert all(np.array_equal(found[name], numbers) for name, numbers in total.means())


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s.described())
def test_updates_read_side_by_side_come_to_the_same_sum(
    tmp_path: Path, settings: MethodSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files are open at a time, in whatever order their records lie, and whoever has no part of some."""
    plan = plan_of(settings)
    whole: tuple[int, tuple[int, ...]] = (plan.training.rank, ())
    updates = sent(tmp_path, plan, SAID if isinstance(settings, FedKRSOSettings) else dict.fromkeys(SAID, whole))
    updates[1] = replace(updates[1], clip=Clip(40_001, 17))
    shapes, known = plan.training.shapes(SCHEMA), plan.training.averaged_by_column(SCHEMA)
    one, *others = sums = [RunningSum(shapes, known) for _ in range(4)]
    for update in updates:
        add_updates([update], plan, one)
    for together, total in zip((2, 3, 8), others, strict=True):
        monkeypatch.setattr(update_module, "_TOGETHER", together)
        add_updates(iter(updates[::-1]), plan, total)
    found = [dict(total.means()) for total in sums]
    assert all(np.array_equal(found[0][name], other[name]) for other in found for name in shapes)
    assert any(numbers.any() for numbers in found[0].values())


def test_of_updates_read_side_by_side_the_damaged_one_is_named_and_no_file_stays_open(tmp_path: Path) -> None:
    plan = plan_of(KRSO)
    updates = sent(tmp_path, plan, SAID)
    damaged = updates[2].path
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(UpdateRefused, match=damaged.stem):
        add_updates(updates, plan, RunningSum(plan.training.shapes(SCHEMA)))
    assert not [
        name for name in os.listdir("/proc/self/fd") if str(tmp_path) in os.path.realpath(f"/proc/self/fd/{name}")
    ]


def test_who_claims_a_subspace_that_few_used_is_no_majority_there(tmp_path: Path) -> None:
    plan = plan_of(msgspec.structs.replace(KRSO, moments="averaged"))
    nodes = {"a": (4, (0, 1)), "b": (4, (0, 1)), "c": (4, (0, 1)), "liar": (4, (2,)), "other": (4, (2,))}
    honest, lies = (dict(list(nodes.items())[:3]), dict(list(nodes.items())[3:]))
    updates = sent(tmp_path, plan, honest) + sent(tmp_path, plan, lies, size=5.0)
    found = dict(Combined(updates, plan, Median()).means())
    for name in ("l", "l/second", "k", "k/second"):
        assert found[name][:, :8].any() and not found[name][:, 8:].any()


def test_memory_is_that_of_a_block_however_many_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine, "BLOCK_NUMBERS", 2**15)
    schema = ModelSchema((LayerSpec("l", 64, 2048),), ())
    plan = plan_of(FedAvgSettings(steps=20), schema)
    peaks = []
    for participants in (3, 48):
        folder = tmp_path / str(participants)
        folder.mkdir()
        updates = sent(folder, plan, {f"n{number:02}": (0, ()) for number in range(participants)})
        tracemalloc.start()
        dict(Combined(updates, plan, Median()).means())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    entry_bytes = 8 * 64 * 2048
    # 45 participants more, whose numbers are 45 entries of int64: what each adds is where its records begin.
    assert abs(peaks[1] - peaks[0]) < entry_bytes / 4, peaks


class Killed(Mean):
    """A coordinator that is killed in the middle of an entry."""

    blocks = 0

    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        type(self).blocks += 1
        if type(self).blocks == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().combine(values, weights)


def test_a_coordinator_killed_in_mid_entry_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combine, "BLOCK_NUMBERS", 60)
    plan = plan_of(KRSO)
    updates = sent(tmp_path, plan, SAID)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    child = os.fork()
    if child == 0:
        dict(Combined(updates, plan, Killed()).means())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_is_not_what_was_admitted_any_more_is_refused_by_name(tmp_path: Path) -> None:
    plan = plan_of(KRSO)
    updates = sent(tmp_path, plan, SAID)
    raw = updates[2].path.read_bytes()
    for bad in (raw[:-1], raw + b"\x80", raw[: len(raw) // 2], raw.replace(b"head.bias", b"head.bia\x1b"), b""):
        updates[2].path.write_bytes(bad)
        with pytest.raises(UpdateRefused) as refused:
            dict(Combined(updates, plan, Median()).means())
        assert refused.value.place.startswith("c") and refused.value.one_line().isprintable()
    updates[2].path.write_bytes(raw)
    # Changed while it is read: what begins there is another tensor, or one with other numbers.
    indexed = Combined(updates, plan, Median())
    updates[2].path.write_bytes(raw.replace(b"\xa1l", b"\xa1k"))
    with pytest.raises(UpdateRefused, match="c: l: another tensor than before"):
        dict(indexed.means())
    updates[2].path.write_bytes(raw)
    with pytest.raises(UpdateRefused, match="weights together are outside"):
        Combined([replace(update, weight=2**23) for update in updates], plan, MEAN)


# A round by files: five of eleven lie together, whatever they send the rule holds to what the honest ones sent.
@pytest.mark.parametrize("liars", [1, 3, 5])
@pytest.mark.parametrize("attack", ["flip", "scale", "largest"])
def test_colluding_minorities_do_not_move_a_published_number_beyond_the_honest_ones(
    tmp_path: Path, liars: int, attack: str
) -> None:
    plan = plan_of(FedAvgSettings(steps=20))
    nodes = {f"n{number:02}": (0, ()) for number in range(11)}
    updates = sent(tmp_path, plan, nodes)
    honest = [alone(update, plan) for update in updates[liars:]]
    for update in updates[:liars]:
        records = []
        for name, want in plan.training.expected(SCHEMA, update.header).items():
            true = np.mean([one[name] for one in honest], axis=0) / 2.0**32
            lie = {"flip": -5 * true, "scale": 300 * true, "largest": np.full(want.shape, 120.0)}[attack]
            records.append(Record(name, encoded(lie.astype(np.float32), want.coding, name), want.coding.bits))
        write_update(update.path, update.header, records)
    for rule in (Median(), TrimmedMean(rule_of("trimmed-mean", 0.46).trim)):
        assert rule.tolerates(11) >= liars
        for name, found in Combined(updates, plan, rule).means():
            said = np.stack([one[name] for one in honest])
            assert (found >= said.min(axis=0)).all() and (found <= said.max(axis=0)).all()
    moved = dict(Combined(updates, plan, MEAN).means())
    assert attack == "flip" or any(
        (moved[name] > np.max([one[name] for one in honest], axis=0)).any()
        or (moved[name] < np.min([one[name] for one in honest], axis=0)).any()
        for name in moved
    )


def test_all_orders_of_few_give_the_same_bits(tmp_path: Path) -> None:
    plan = plan_of(KRSO)
    updates = sent(tmp_path, plan, dict(list(SAID.items())[:4]))
    for rule in ROBUST:
        found = {
            b"".join(numbers.tobytes() for _, numbers in Combined(list(order), plan, rule).means())
            for order in itertools.permutations(updates)
        }
        assert len(found) == 1
