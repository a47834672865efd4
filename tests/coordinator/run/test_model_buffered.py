# SPDX-License-Identifier: Apache-2.0
"""What a buffered round's updates come to, against fractions without limit; and the same whatever their order."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import Closed, GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.rows import UpdateRow
from fedcore.config.safety import SafetySection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model.update import write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record, read_records
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.staleness import Staleness, StalenessFactor
from tests.coordinator.run.test_model import CHUNK_BYTES, SCHEMA, learning

__all__ = ["learning"]
METHODS = (
    FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8),
    FedAvgSettings(steps=20, bits=8),
)
EXAMPLES = {"a": 50, "b": 7, "slow": 90}


class Engine:
    """A run whose updates are drawn from the round that they are for, and from their node."""

    def __init__(self, learning: Learning, folder: RunFolder) -> None:
        self.learning, self.folder = learning, folder
        self.model = GlobalModel(learning, ScratchKeeping(folder), 0)
        self.plans: dict[int, Plan] = {}

    def open(self, server_round: int) -> None:
        self.model.begin(server_round, CHUNK_BYTES, pytest.fail)
        self.plans[server_round] = self.model.plan(server_round, tuple(EXAMPLES), 0, CHUNK_BYTES)

    def update(self, node: str, trained_for: int, into: int) -> UpdateRow:
        plan, path = self.plans[trained_for], self.folder.update(trained_for, node)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = UpdateHeader(
            run="r",
            round=trained_for,
            node=node,
            version=plan.version,
            examples=EXAMPLES[node],
            rank=plan.training.rank,
            subspaces=tuple(range(len(plan.training.seeds))),
            loss=1.0,
            seconds=1.0,
        )
        chance, records = np.random.default_rng((trained_for, len(node))), []
        for name, want in plan.training.expected(SCHEMA, header).items():
            change = (chance.normal(size=want.shape) * 0.02).astype(np.float32)
            records.append(Record(name, encoded(change, want.coding, name), want.coding.bits, kind=want.coding.kind))
        write_update(path, header, records)
        found = admit(path, plan, "r", node, self.learning.safety)
        return UpdateRow("t", str(path.relative_to(self.folder.root)), 1, found.header, found.norm, found.clip, into)

    def close(self, rows: list[UpdateRow]) -> Closed:
        plan = self.plans[max(self.plans)]
        done = self.model.close(plan, rows, CHUNK_BYTES)
        self.model.publish(done.objects, done.row)
        return done


def engine(learning: Learning, root: Path, method: MethodSettings, factor: StalenessFactor = "sqrt") -> Engine:
    safety = SafetySection(max_share_ratio=0.0)
    return Engine(
        replace(learning, method=method, safety=safety, staleness=Staleness(4, factor)), RunFolder(root / "scratch")
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
@pytest.mark.parametrize(
    ("factor", "scale"), [("sqrt", (46340, 37837)), ("inverse", (32768, 21845)), ("constant", (65536, 65536))]
)
def test_changes_to_older_versions_are_scaled_and_added_to_the_present_state(
    learning: Learning,  # noqa: F811
    tmp_path: Path,
    method: MethodSettings,
    factor: StalenessFactor,
    scale: tuple[int, int],
) -> None:
    run = engine(learning, tmp_path, method, factor)
    for number in (1, 2):
        run.open(number)
        run.close([run.update("a", number, number)])
    run.open(3)
    before = {name: array.copy() for name, array in run.model.state.sums.items()}
    rows = [run.update("a", 3, 3), run.update("b", 2, 3), run.update("slow", 1, 3)]
    done = run.close(rows)
    scales = {"a": 65536, "b": scale[0], "slow": scale[1]}
    expected = {name: np.zeros(array.shape, object) for name, array in before.items()}
    for row in rows:
        node = row.header.node
        for record in read_records(run.folder.root / row.file, largest=10**6):
            units = record.part.units(slice(0, record.part.shape[0])).astype(object)
            small = np.sign(units) * (abs(units) * scales[node] // 65536)
            expected[record.name] = expected[record.name] + small * row.header.examples
    total = sum(EXAMPLES.values())
    for name, array in expected.items():
        mean = np.array([round(Fraction(int(one), total)) for one in array.ravel()]).reshape(array.shape)
        assert (run.model.state.sums[name] - before[name] == mean).all(), name
    assert done.row.participants == ("a", "b", "slow")
    assert done.row.stale == {"b": (1, scale[0] / 65536), "slow": (2, scale[1] / 65536)}
    assert done.row.clipped == {} and run.plans[3].max_staleness == 2


def test_no_order_of_arrival_changes_a_bit(learning: Learning, tmp_path: Path) -> None:  # noqa: F811
    digests = set()
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        run = engine(learning, tmp_path, METHODS[0])
        for number in (1, 2):
            run.open(number)
            run.close([run.update("a", number, number)])
        run.open(3)
        rows = [run.update("a", 3, 3), run.update("b", 2, 3), run.update("slow", 1, 3)]
        digests.add(run.close([rows[place] for place in order]).objects[0].digest)
    assert len(digests) == 1


def test_an_update_that_is_clipped_and_behind_is_scaled_by_both(learning: Learning, tmp_path: Path) -> None:  # noqa: F811
    run = engine(learning, tmp_path, METHODS[0])
    run.learning = replace(run.learning, safety=SafetySection(norm_bound=0.1))
    run.open(1)
    run.close([run.update("a", 1, 1)])
    run.open(2)
    row = run.update("slow", 1, 2)
    assert row.clip is not None
    before = {name: array.copy() for name, array in run.model.state.sums.items()}
    run.close([row])
    changes = [(run.model.state.sums[name] - array) * 2.0**-32 for name, array in before.items()]
    moved = sum(float(np.square(change).sum()) for change in changes)
    assert 0.1 / 2**0.5 * 0.999 < moved**0.5 <= 0.1 / 2**0.5
