# SPDX-License-Identifier: Apache-2.0
"""What stays on a node: there after a restart, as it was before a round that is trained again, and each client's
own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from coordinator.job import EvaluationSection, Job, ModelSection, SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.model.loading import describe
from edge_client.worker.train.local import LocalTensors
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ConfigError
from fedcore.methods.lora.factors import FedSALoRASettings
from fedcore.numbers.accumulator import RowScaled
from fedcore.numbers.records import read_records
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
TASK = TaskSection(kind="text-classification", labels=("no", "yes"), max_length=16)
METHOD = FedSALoRASettings(rank=4, steps=4, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16)


def test_the_newest_sound_file_before_a_round_counts(tmp_path: Path) -> None:
    local = LocalTensors(tmp_path, b"run/a")
    assert local.load() == {}
    for number in (1, 3, 4):
        local.save(number, {"x": np.full((2, 3), number, np.float32)})
    assert [int(found["x"][0, 0]) for found in (local.load(), local.load(5), local.load(4))] == [4, 4, 3]
    assert local.load(3) == {}, "only what is needed again stays"
    assert LocalTensors(tmp_path, b"run/b").load() == {} == LocalTensors(tmp_path, b"other/a").load()
    newest = next(tmp_path.glob("*/4.local"))
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    assert int(local.load()["x"][0, 0]) == 3
    # A file of another run under this one's name.
    newest.write_bytes(next(tmp_path.glob("*/3.local")).read_bytes()[:32] + bytes(data[32:]))
    assert int(local.load()["x"][0, 0]) == 3
    # The same run again from its first round.
    local.save(1, {"x": np.ones((1, 1), np.float32)})
    assert int(local.load()["x"][0, 0]) == 1


class Homes:
    """Rounds of FedSA-LoRA, for any number of clients on any number of replicas."""

    def __init__(self, model_folder: Path, own: Path) -> None:
        torch.set_num_threads(1)
        self.model_folder, self.own, self.files = model_folder, own, RunFolder(own)
        self.schema = describe(Checkpoint(model_folder), TASK)
        learning = Learning(
            method=METHOD, seed=5, task=TASK, base_kind="int8", schema=self.schema, model_folder=model_folder
        )
        self.model, self.plans = GlobalModel(learning, ScratchKeeping(self.files), 0), dict[int, Plan]()

    def plan(self, server_round: int) -> Plan:
        if server_round not in self.plans:
            self.model.begin(server_round, 65_536, pytest.fail)
            self.plans[server_round] = self.model.plan(server_round, ("a", "b"), 0, 65_536)
        return self.plans[server_round]

    def replica(self, name: str, server_round: int = 1) -> Replica:
        return Replica(self.plan(server_round), self.model_folder, self.own / name, CPU, torch.float32)

    def train(self, replica: Replica, client: str, server_round: int, stop: int = 0) -> UpdateRow:
        number = ord(client)
        data = [
            Encoded(tuple((5 * i + number * j) % 200 + 3 for j in range(6 + i)), None, (i + number) % 2)
            for i in range(8)
        ]

        def report(step: int, *rest: Any) -> None:
            if step == stop:
                sys.exit()

        plan, path = self.plan(server_round), self.own / f"{client}.bin"
        trainer = Trainer(replica, data, self.own / f"intervals-{client}", "r", client, 0, CPU, Hooks(report))
        trainer.train(plan, (MemoryPlan(micro_batch_size=4),), path)
        found = admit(path, plan, "r", client, SafetySection())
        assert found.header.examples == 8
        return UpdateRow("", path.name, path.stat().st_size, found.header)

    def close(self, replicas: list[Replica], updates: list[UpdateRow], server_round: int) -> None:
        closed = self.model.close(self.plan(server_round), updates, 65_536)
        self.model.publish(closed.objects, closed.row)
        whole = closed.objects[0]
        for replica in replicas:
            path = self.files.published_state(whole.version, "whole")
            replica.adopt(path, whole.generation, "whole", whole.digest)

    def records(self, update: UpdateRow) -> dict[str, np.ndarray[Any, Any]]:
        found = {}
        for record in read_records(self.own / update.file):
            assert isinstance(record.part, RowScaled)
            found[record.name] = record.part.q
        return found


def values(replica: Replica) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in replica._local_parameters().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def homes(make_llama: Callable[..., Path], tmp_path: Path) -> Homes:
    return Homes(make_llama(), tmp_path)


def test_clients_on_one_replica_are_as_clients_on_their_own(
    homes: Homes, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    apart, alone, shared = Homes(homes.model_folder, tmp_path / "apart"), {}, homes.replica("shared")
    for client in "ab":
        alone[client] = apart.replica(client)
    for server_round in (1, 2):
        together = []
        for client in "ab":
            together.append(homes.train(shared, client, server_round))
        separate = [apart.train(alone[client], client, server_round) for client in "ab"]
        for one, other in zip(together, separate, strict=True):
            sent, expected = homes.records(one), apart.records(other)
            assert sent.keys() == expected.keys() and all(np.array_equal(sent[name], expected[name]) for name in sent)
            assert {name[-2:] for name in sent} == {"/A"}, "B and the head stay"
        homes.close([shared], together, server_round)
        apart.close([*alone.values()], separate, server_round)
        for client in "ab":
            shared.become("r", client)
            assert same(values(shared), values(alone[client]))
        assert {name.rsplit("/", 1)[-1] for name in values(shared)} == {"B", "score.weight"}
        assert not same(values(alone["a"]), values(alone["b"]))
        assert shared.digest() == alone["a"].digest() == alone["b"].digest()


def test_what_stays_survives_a_restart_and_a_round_that_is_trained_again(homes: Homes) -> None:
    replica = homes.replica("a")
    first = values(replica)
    update = homes.train(replica, "a", 1)
    learned, sent = values(replica), homes.records(update)
    assert not same(first, learned) and all(not torch.equal(first[name], learned[name]) for name in first)
    again = homes.replica("a")
    again.become("r", "a")
    assert same(values(again), learned)
    # The update was lost with the agent's word of it, or the coordinator opened the round again.
    redone = homes.train(again, "a", 1)
    assert same(values(again), learned)
    assert all(np.array_equal(q, sent[name]) for name, q in homes.records(redone).items())
    homes.close([again], [redone], 1)
    with pytest.raises(SystemExit):
        homes.train(again, "a", 2, stop=3)
    restarted = homes.replica("a", 2)
    assert same(values(restarted), first), "whose it is, it does not know yet"
    homes.train(restarted, "a", 2)
    further = values(restarted)
    assert not same(further, learned)
    for path in (homes.own / "a" / "local").glob("*/2.local"):
        path.unlink()
    homes.train(restarted, "a", 2)
    assert same(values(restarted), further)
    # Of another run nothing is taken.
    restarted.become("later", "a")
    assert same(values(restarted), first)


def test_a_plan_for_nodes_with_parts_of_their_own_asks_for_what_is_shared(homes: Homes) -> None:
    training = homes.plan(1).training
    assert not training.shares_model and training.shared_tensors(homes.schema) == ()
    layers, head = homes.schema.layers, homes.schema.tensors[0]
    assert (
        training.local_numbers(homes.schema)
        == 4 * sum(layer.rows for layer in layers) + head.matrix[0] * head.matrix[1]
    )
    assert {name[-2:] for name in training.shapes(homes.schema)} == {"/A"}
    sections: dict[str, Any] = {
        "model": ModelSection(folder="m"),
        "task": TASK,
        "broker": BrokerSection(url="mqtts://b"),
    }
    Job(run="r", method=FedSALoRASettings(), **sections)
    with pytest.raises(ConfigError, match="no model to evaluate"):
        Job(run="r", method=FedSALoRASettings(), evaluation=EvaluationSection(source="x.csv"), **sections)
    both = msgspec.structs.replace(training, shared=("A", "B"))
    assert both.shares_model and both.local_numbers(homes.schema) == 0 and head.name in both.shapes(homes.schema)
