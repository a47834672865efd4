# SPDX-License-Identifier: Apache-2.0
"""What every federated method keeps, whatever it trains: joining the table of methods is joining these tests."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from coordinator.export import export_model
from edge_client.measuring import Request
from edge_client.worker.measure import local_plan
from edge_client.worker.methods import CLIENT_HALVES
from edge_client.worker.model import build
from edge_client.worker.principal import make_informed
from edge_client.worker.replica import Replica
from edge_client.worker.round import learning_rate_factor
from edge_client.worker.tasks import Encoded, batches, summed_loss
from edge_client.worker.trainer import Trainer
from fedcore.base import Base
from fedcore.checkpoint import Checkpoint
from fedcore.errors import ConfigError, UpdateRefused
from fedcore.informed import read_informed
from fedcore.initial import initial_factor
from fedcore.job import TaskSection
from fedcore.learned import layer_update
from fedcore.memoryplan import MemoryPlan
from fedcore.method import MethodSettings
from fedcore.methods import SERVER_HALVES, AnySettings, server_half
from fedcore.methods.fedavg import FedAvgSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.plan import InformedObject, Plan
from fedcore.projection import checksums, projection_of, signs
from fedcore.projections import KINDS
from fedcore.quantise import dequantise_weight, quantise_weight
from fedcore.records import read_records
from fedcore.schedule import interval_order, step_directions
from fedcore.schema import LayerSpec
from fedcore.snapshot import write_snapshot
from fedcore.state import ExactState, PublishedState, model_digest
from fedcore.training import AnyTraining, DirectionTraining, FactorTraining
from fedcore.types import BaseKind
from fedcore.update import WeightedUpdate, check_update
from fedcore.wire.files import manifest_of

CPU = torch.device("cpu")
TASK = TaskSection(kind="causal-lm", max_length=24)
WHOLE = MemoryPlan(micro_batch_size=4)
METHODS = list(SERVER_HALVES)
MOMENTS = ("reset", "carried", "averaged")
CODECS = ("float32", "bfloat16", "top-k")
# A method, and keys beside its defaults: choices that change what travels, or what an interval keeps.
Case = tuple[type[MethodSettings], dict[str, Any]]
CASES: list[Case] = [
    *((kind, {}) for kind in METHODS),
    *((FedKRSOSettings, {"num_seeds": 3, "moments": name}) for name in MOMENTS[1:]),
    (FedKRSOSettings, {"moments": "averaged", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "gaussian", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "coordinate", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "orthonormal"}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4, "informed_share": 0.5}),
    *((FedAvgSettings, {"codec": codec}) for codec in CODECS),
]
# FedIT averages each factor by itself; FedSA-LoRA has no model that all share.
NOT_EXACT = ("fedit", "fedsa-lora")


def examples(node: int) -> list[Encoded]:
    return [Encoded(tuple((5 * i + (node + 3) * j) % 200 + 3 for j in range(10 + i)), None, None) for i in range(6 + 2 * node)]


@dataclass
class Run:
    """A run's server half and what is published, without a wire."""

    settings: MethodSettings
    folder: Path
    own: Path
    kind: BaseKind = "int8"

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        plan = local_plan(self.folder, TASK, Request(model_folder="", task=TASK, batch_size=4, length=24, memory=WHOLE, rank=4, pool=3))
        self.schema, self._plan = plan.model_schema, msgspec.structs.replace(plan, base_kind=self.kind)
        self.base = Base(Checkpoint(self.folder), self.schema, self.kind, self.own / "coordinator")
        self.half = server_half(self.settings)
        self.file, self.informed, self._object = self.own / "informed.bin", None, None
        training = self.half.training(1, 5)
        if training.informed_subspaces:
            self._inform(training)
        self.base_digests = [self.base.digest()]
        self.state = ExactState.zero(self.half.training(1, 5), self.schema)
        self.published = [self.state.publish()]
        self.digests = [model_digest(self.base.digest(), self.published[0])]
        self.updates: dict[str, Path] = {}

    def _inform(self, training: AnyTraining) -> None:
        model, count = build(self.base, TASK, 5, CPU, torch.float32), training.informed_subspaces
        make_informed(
            self.file, model, self.schema.layers, examples(7), TASK, CPU, subspaces=count, rank=training.rank, pool=len(training.seeds)
        )
        self._object = InformedObject(manifest_of(self.file, 1024))
        self.half = server_half(self.settings, self._object.manifest.sha256)
        self.informed = read_informed(self.file, self._object.manifest.sha256, self.schema, count, training.rank)

    def plan(self, server_round: int) -> Plan:
        training = self.half.training(server_round, 5)
        if training.generation == self.base.generation + 1:
            self.base.fold(self.published[-1], training.generation)
            self.base_digests.append(self.base.digest())
            self.state = self.state.refreshed(training, self.schema)
        return msgspec.structs.replace(
            self._plan,
            round=server_round,
            version=server_round - 1,
            training=training,
            checksums=checksums(training, self.schema, self.informed),
            informed=self._object,
            base_digest=self.base_digests[training.generation],
            checkpoint_digest=self.base_digests[0],
        )

    def replica(self, name: str, server_round: int = 1) -> Replica:
        return Replica(self.plan(server_round), self.folder, self.own / name, CPU, torch.float32, informed=self.file)

    def trainer(self, name: str, replica: Replica, data: list[Encoded], stop: int = 0) -> tuple[Trainer, list[int]]:
        done: list[int] = []

        def report(step: int, *rest: object) -> None:
            done.append(step)
            if step == stop:
                sys.exit()

        return Trainer(replica, data, self.own / name / "intervals", "r", name, 0, CPU, report, lambda: 0), done

    def train(self, name: str, replica: Replica, number: int, server_round: int = 1) -> WeightedUpdate:
        plan, path = self.plan(server_round), self.own / f"{name}-{server_round}.bin"
        self.trainer(name, replica, examples(number))[0].train(plan, (WHOLE,), path)
        checked = check_update(path, plan, "r", name)
        return WeightedUpdate(path, checked.header, checked.header.examples)

    def close(self, server_round: int, updates: list[WeightedUpdate]) -> None:
        self.state = self.half.aggregate(self.state, self.plan(server_round), updates)
        self.published.append(self.state.publish())
        self.digests.append(model_digest(self.base.digest(), self.published[-1]))

    def adopt(self, replica: Replica, version: int, *, whole: bool) -> None:
        path, before = self.own / "outcome.bin", self.published[version - 1]
        whole = whole or before.seeds != self.published[version].seeds
        self.published[version].write(path, previous=None if whole else before)
        replica.adopt(path, self.half.training(version, 5).generation, "whole" if whole else "difference", self.digests[version])

    def adopt_snapshot(self, replica: Replica, server_round: int) -> None:
        """What the coordinator would write as a round of a new generation opens."""
        plan, path = self.plan(server_round), self.own / "snapshot.bin"
        state = self.published[server_round - 1].refreshed(plan.training, self.schema)
        write_snapshot(path, self.base, state)
        replica.adopt(path, plan.training.generation, "snapshot", model_digest(self.base.digest(), state))


def name_of(case: Case) -> str:
    return "-".join([str(case[0].__struct_config__.tag), *map(str, case[1].values())])


def settings_of(case: Case) -> MethodSettings:
    return case[0](steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, **case[1])


@pytest.fixture(params=CASES, ids=name_of)
def run(request: pytest.FixtureRequest, make_llama: Callable[..., Path], tmp_path: Path) -> Run:
    return Run(settings_of(request.param), make_llama(), tmp_path)


def test_every_method_is_in_every_table() -> None:
    assert set(get_args(AnySettings)) == set(SERVER_HALVES)
    trainings = {type(server_half(kind()).training(1, 0)) for kind in METHODS}
    assert trainings == set(get_args(AnyTraining)) == set(CLIENT_HALVES)


def values_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {record.name: record.part.values() for record in read_records(path, kinds=("integers", "floats", "sparse"))}


def test_every_replica_is_the_same_also_one_that_was_absent(run: Run) -> None:
    nodes = {name: run.replica(name) for name in ("a", "b")}
    for server_round in (1, 2):
        updates = [run.train(name, replica, number, server_round) for number, (name, replica) in enumerate(nodes.items())]
        run.close(server_round, updates[::-1])
        for replica in nodes.values():
            run.adopt(replica, server_round, whole=server_round == 1)
    absent = run.replica("absent")
    if run.settings.folds_every:
        run.adopt(absent, 1, whole=True)
    run.adopt(absent, 2, whole=True)
    restarted = run.replica("a", 3)
    assert {replica.digest() for replica in (*nodes.values(), absent, restarted)} == {run.digests[2]}
    token = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = [replica.model.model(token).last_hidden_state for replica in (nodes["b"], absent, restarted)]
    if run.settings.name != "fedsa-lora":
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert any(entry.q.any() for entry in absent.state.entries.values()), "something was learned"
    plan, replicas = run.plan(3), (nodes["b"], absent, restarted)
    for replica in replicas:
        replica.open(plan)
    assert len({replica.digest() for replica in replicas}) == 1
    assert absent.base.digest() == run.base.digest() == plan.base_digest


def test_a_snapshot_stands_for_the_folds_that_a_node_missed(run: Run) -> None:
    if not run.settings.folds_every:
        pytest.skip("a method that never folds")
    always, absent = run.replica("a"), run.replica("absent")
    for server_round in (1, 2):
        run.close(server_round, [run.train("a", always, 0, server_round)])
        run.adopt(always, server_round, whole=True)
    run.adopt_snapshot(absent, 3)
    always.open(run.plan(3))
    assert absent.base.generation == 2 and absent.digest() == always.digest()
    updates = [run.train(name, replica, 0, 3) for name, replica in (("a", always), ("a", absent))]
    assert updates[0].header.loss == updates[1].header.loss


def test_a_killed_worker_ends_with_the_same_update(run: Run) -> None:
    plan = run.plan(1)
    run.trainer("a", run.replica("whole"), examples(0))[0].train(plan, (WHOLE,), run.own / "whole.bin")
    with pytest.raises(SystemExit):
        run.trainer("a", run.replica("a"), examples(0), stop=5)[0].train(plan, (WHOLE,), run.own / "never.bin")
    trainer, done = run.trainer("a", run.replica("a"), examples(0))
    trainer.train(plan, (WHOLE,), run.own / "resumed.bin")
    assert done == [5, 6, 7, 8]
    one, other = values_of(run.own / "whole.bin"), values_of(run.own / "resumed.bin")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert any(value.any() for value in one.values())


def test_an_update_says_what_the_plan_asks_for_and_nothing_else(run: Run) -> None:
    update = run.train("a", run.replica("a"), 0)
    plan = run.plan(1)
    expected = plan.training.expected(run.schema, update.header)
    assert {name: value.shape for name, value in values_of(update.path).items()} == {name: want.shape for name, want in expected.items()}
    size_bytes = sum(want.coding.most_bytes(want.shape[0] * want.shape[1]) for want in expected.values())
    assert update.path.stat().st_size < size_bytes + 200 * len(expected) + 1000, "a number takes its bits, or less"
    # In floats bits are the codec's own.
    changed = {"codec": "integers"} if run.settings.described().endswith("float32") else {"bits": 8}
    changed = {"codec": "float32"} if run.settings.described().endswith("bfloat16") else changed
    other = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, **changed))
    with pytest.raises(UpdateRefused):
        check_update(update.path, other, "r", "a")


def test_the_model_of_an_exact_method_is_the_mean_of_the_participants_models(run: Run) -> None:
    if run.settings.name in NOT_EXACT:
        pytest.skip("not an exact method")
    updates = [run.train(name, run.replica(name), number) for number, name in enumerate(("a", "b"))]
    run.close(1, updates)
    plan, total = run.plan(1), sum(update.weight for update in updates)
    single = []
    for update in updates:
        alone = run.half.aggregate(ExactState.zero(plan.training, run.schema), plan, [update])
        single.append(alone.publish())
    for layer in run.schema.layers:
        each = [layer_update(plan.training, state, layer, run.informed) for state in single]
        mean = sum(update.weight / total * alone for update, alone in zip(updates, each, strict=True))
        found = layer_update(plan.training, run.published[1], layer, run.informed)
        assert np.abs(found).max() > 1e-3
        assert np.allclose(found, mean, atol=2e-3 * np.abs(found).max(), rtol=0)


def test_the_learned_part_is_what_the_replica_computes_with(run: Run) -> None:
    if run.settings.name == "fedsa-lora":
        pytest.skip("what a replica computes with is its own")
    replica = run.replica("a")
    run.close(1, [run.train("a", replica, 0)])
    layer = run.schema.layers[1]
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, layer.columns)).astype(np.float32))
    name = next(name for name, module in replica.model.named_modules() if module is _target(replica, layer.name))
    with torch.no_grad():
        before = replica.model.get_submodule(name)(x)
        run.adopt(replica, 1, whole=True)
        after = replica.model.get_submodule(name)(x)
    learned = torch.from_numpy(layer_update(run.plan(1).training, run.published[1], layer, run.informed))
    assert torch.allclose(after - before, x @ learned.T, atol=1e-5)


def _target(replica: Replica, name: str) -> nn.Module:
    """The module that stands where a target layer stood, whatever the method made of it."""
    return replica.model.get_submodule(name)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_an_export_computes_what_the_replica_computes(case: Case, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    settings = settings_of(case)
    run = Run(settings, make_llama(dtype="float32"), tmp_path, "float32")
    replica = run.replica("a")
    run.close(1, [run.train("a", replica, 0)])
    run.adopt(replica, 1, whole=True)
    training, out = run.plan(1).training, tmp_path / "out"
    if not training.shares_model:
        with pytest.raises(ConfigError, match="a model of its own"):
            export_model(run.base, run.published[1], run.schema, TASK, training, out)
        assert not out.exists()
        return
    token = torch.arange(3, 20)[None]
    before = AutoModelForCausalLM.from_pretrained(run.folder)
    export_model(run.base, run.published[1], run.schema, TASK, training, out, run.informed)
    exported = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        start, found, expected = (model.model(token).last_hidden_state for model in (before, exported, replica.model))
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, start, atol=1e-2)
    if settings.folds_every:
        # The next round is open: what was learned is in the base already.
        following = run.plan(2).training
        state = run.published[1].refreshed(following, run.schema)
        export_model(run.base, state, run.schema, TASK, training, tmp_path / "later")
        one, other = (Checkpoint(folder) for folder in (out, tmp_path / "later"))
        for layer in run.schema.layers:
            folded_first, folded_last = (point.read(f"{layer.name}.weight") for point in (one, other))
            assert np.allclose(folded_first, folded_last, rtol=0, atol=1e-6)


# Independent references: an ordinary model of dequantised weights, a loop of a few lines, textbook layers.


class Reference:
    """Full fine-tuning, or LoRA, with no code of ours but batches and the loss."""

    def __init__(self, run: Run, replica: Replica) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(run.folder, dtype=torch.float32)
        self.model.output_weight = replica.model.output_weight
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.weights: dict[str, nn.Parameter] = {}
        for layer in run.schema.layers:
            linear = self.model.get_submodule(layer.name)
            linear.weight = nn.Parameter(torch.from_numpy(dequantise_weight(*quantise_weight(linear.weight.numpy()))), requires_grad=False)
            self.weights[layer.name] = linear.weight

    def train(self, run: Run, plan: Plan, trained: list[Tensor]) -> None:
        adam = torch.optim.Adam(trained)
        stream = batches(examples(0), 4, 5, 1, "a")
        for step in range(8):
            adam.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(step, 8)
            adam.zero_grad()
            batch = next(stream)
            (summed_loss(self.model, batch, TASK, 0, CPU) / sum(e.weight for e in batch)).backward()
            adam.step()


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_full_fine_tuning_equals_its_reference(codec: Any, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    settings = FedAvgSettings(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, codec=codec, density=0.1)
    run = Run(settings, make_llama(), tmp_path)
    replica = run.replica("a")
    reference = Reference(run, replica)
    start = {name: weight.clone() for name, weight in reference.weights.items()}
    for weight in reference.weights.values():
        weight.requires_grad_(True)
    reference.train(run, run.plan(1), list(reference.weights.values()))
    found = values_of(run.train("a", replica, 0).path)
    for name, weight in reference.weights.items():
        change = (weight - start[name]).detach().numpy()
        if codec == "top-k":
            sent = found[name] != 0
            assert sent.sum() == change.size // 10
            # All that was sent is as large as all that was not, up to float rounding.
            assert np.abs(change[sent]).min() > 0.99 * np.sort(np.abs(change), axis=None)[-(change.size // 10)]
            change = np.where(sent, change, 0)
        assert _near(found[name], change)


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "rolora", "fedsa-lora", "flora", "fedex-lora"])
def test_lora_equals_its_reference(name: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    run = Run(kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, rank=4, alpha=8.0), make_llama(), tmp_path)
    replica = run.replica("a")
    reference, factors, start = Reference(run, replica), {}, {}
    training = run.plan(1).training
    assert isinstance(training, FactorTraining)
    for layer in run.schema.layers:
        a = nn.Parameter(torch.from_numpy(initial_factor(f"{layer.name}/A", 4, layer.columns, training.first_seed(training.seeds))))
        b = nn.Parameter(torch.zeros(layer.rows, 4))
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, a=a, b=b: nn.functional.linear(x, linear.weight) + 2 * (x @ a.T) @ b.T
        factors |= {f"{layer.name}/A": a, f"{layer.name}/B": b}
        start |= {f"{layer.name}/A": a.detach().clone(), f"{layer.name}/B": b.detach().clone()}
    reference.train(run, run.plan(1), [factor for n, factor in factors.items() if n[-1] in training.trained])
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {n for n in factors if n[-1] in training.trained and n[-1] in training.shared}
    for n, value in found.items():
        assert _near(value, (factors[n] - start[n]).detach().numpy())


@pytest.mark.parametrize("projection", [*KINDS, "informed"])
def test_fedkrso_equals_its_reference(projection: Any, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """One subspace, one interval: a linear layer with B between P and the output."""
    settings = FedKRSOSettings(
        steps=8, interval_steps=8, batch_size=4, learning_rate=1e-2, bits=16, rank=4, num_seeds=1, projection=projection
    )
    run = Run(settings, make_llama(), tmp_path)
    replica, seeds = run.replica("a"), run.plan(1).training.seeds
    reference, factors = Reference(run, replica), {}
    for layer in run.schema.layers:
        made = projection_of(run.published[0].rows_from, seeds, 4, layer.name, layer.columns, run.informed)
        p, b = torch.from_numpy(made.values().astype(np.float32)), nn.Parameter(torch.zeros(layer.rows, 4))
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, p=p, b=b: nn.functional.linear(x, linear.weight) + (x @ p.T) @ b.T
        factors[layer.name] = b
    reference.train(run, run.plan(1), list(factors.values()))
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == factors.keys()
    for name, value in found.items():
        assert _near(value, factors[name].detach().numpy())


def _signs(training: DirectionTraining, index: int, layer: LayerSpec) -> np.ndarray[Any, Any]:
    """Direction `index` of a layer, from the written definition: each 64 rows are a stream of bits, 1 for -1."""
    out = []
    for start in range(0, layer.rows, 64):
        rows = min(64, layer.rows - start)
        words = (index, layer.columns, start // 64)
        head = b"fedkrso direction 1" + training.seeds[0].to_bytes(8, "little") + b"".join(word.to_bytes(4, "little") for word in words)
        data = hashlib.shake_128(head + layer.name.encode()).digest((rows * layer.columns + 7) // 8)
        bits = [data[i // 8] >> (i % 8) & 1 for i in range(rows * layer.columns)]
        out.append(1 - 2 * np.array(bits, np.float32).reshape(rows, layer.columns))
    return np.concatenate(out)


@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro"])
def test_fedkseed_equals_its_reference(name: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    settings = kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, num_seeds=5)
    run = Run(settings, make_llama(), tmp_path)
    replica, training = run.replica("a"), run.plan(1).training
    reference, table, stream = Reference(run, replica), np.zeros(5), batches(examples(0), 4, 5, 1, "a")
    slopes: list[list[float]] = [[] for _ in table]
    # Nothing is known of the slopes yet: all directions are as likely.
    for step, k in enumerate(step_directions(5, 1, "a", 8, [1.0] * 5)):
        batch = next(stream)

        def loss(length: float, k: int = k, batch: list[Encoded] = batch) -> float:
            for layer in run.schema.layers:
                reference.weights[layer.name].data += length * torch.from_numpy(_signs(training, k, layer))
            return float(summed_loss(reference.model, batch, TASK, 0, CPU)) / sum(e.weight for e in batch)

        slope = (loss(5e-4) - loss(-1e-3)) / 1e-3
        move = -1e-2 * learning_rate_factor(step, 8) * slope
        loss(5e-4 + move)
        table[k] += move
        slopes[k].append(abs(slope))
    found = values_of(run.train("a", replica, 0).path)
    assert _near(np.ldexp(found.pop("/coefficients")[0], training.unit_exponent), table)
    if name == "fedkseed-pro":
        amplitudes, uses = found.pop("/amplitudes")[0], found.pop("/uses")[0] * 256
        assert _near(np.ldexp(amplitudes, training.unit_exponent) / 1e-2, np.array([sum(some) for some in slopes]))
        assert uses.tolist() == [len(some) for some in slopes]
    assert not found


@pytest.mark.parametrize("allocation", ["norm", "equal"])
def test_ferret_equals_its_reference(allocation: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == "ferret")
    settings = kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, num_directions=12, allocation=allocation)
    run = Run(settings, make_llama(), tmp_path)
    replica, training = run.replica("a"), run.plan(1).training
    reference = Reference(run, replica)
    start = {name: weight.clone() for name, weight in reference.weights.items()}
    for weight in reference.weights.values():
        weight.requires_grad_(True)
    reference.train(run, run.plan(1), list(reference.weights.values()))
    changes = {name: (weight - start[name]).detach().numpy() for name, weight in reference.weights.items()}
    largest = max(np.linalg.norm(change) for change in changes.values())
    found, used = values_of(run.train("a", replica, 0).path), []
    for layer in run.schema.layers:
        coefficients = found[f"{layer.name}/coefficients"][0]
        count = max(2, int(12 * np.linalg.norm(changes[layer.name]) / largest)) if allocation == "norm" else 12
        products = np.array([(_signs(training, k, layer) * changes[layer.name]).sum() for k in range(12)])
        assert _near(coefficients, np.where(coefficients != 0, products, 0) / count)
        used.append(int((coefficients != 0).sum()))
        assert used[-1] == count
    assert max(used) == 12 and (min(used) < 12) == (allocation == "norm")


def test_what_fedkseed_sends_does_not_grow_with_the_model(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == "fedkseed")
    for width, k in ((32, 4096), (96, 4096), (32, 16)):
        settings = kind(steps=4, interval_steps=2, batch_size=4, learning_rate=1e-2, num_seeds=k)
        run = Run(settings, make_llama(f"llama-{width}", width=width), tmp_path / f"{width}-{k}")
        update = run.train("a", run.replica("a"), 0)
        run.close(1, [update])
        run.published[1].write(run.own / "outcome.bin")
        assert max(update.path.stat().st_size, (run.own / "outcome.bin").stat().st_size) < 4096 + 2 * k


def _adam(value: Tensor, gradient: Tensor, step: int, state: dict[str, Any], prior: float = 0.0) -> None:
    """Adam as its paper has it; `prior` gradients with a mean square of state["s"] ** 2 came before."""
    state["t"] = state.get("t", 0) + 1
    first = state["m"] = 0.9 * state.get("m", torch.zeros_like(value)) + 0.1 * gradient
    before = (1 - 0.999**prior) * state["s"] ** 2 if prior else torch.zeros_like(value)
    second = state["v"] = 0.999 * state.get("v", before) + 0.001 * gradient**2
    corrected = second / (1 - 0.999 ** (prior + state["t"]))
    value.data -= 1e-2 * learning_rate_factor(step, 8) * first / (1 - 0.9 ** state["t"]) / (corrected.sqrt() + 1e-8)
    state["root"] = corrected.sqrt()


def _filled(roots: Tensor, mine: slice) -> Tensor:
    """A subspace's roots; each that is not known as the mean of the row's known ones: here, or where there is none, in all subspaces."""
    out = roots[:, mine].clone()
    for row, values in enumerate(out):
        known = values[values > 0] if bool((values > 0).any()) else roots[row][roots[row] > 0]
        values[values == 0] = known.mean() if len(known) else 0.0
    return out


def _subspaces(run: Run, moments: str, known: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A round of FedKRSO on an ordinary model: accumulators (m, K r) and roots of second moments; `known` are the roots of all before."""
    plan, replica = run.plan(1), run.replica("reference")
    reference, training = Reference(run, replica), plan.training
    seeds, rank, stream = training.seeds, training.rank, batches(examples(0), 4, 5, 1, "a")
    sums = {layer.name: torch.zeros(layer.rows, 3 * rank) for layer in run.schema.layers}
    roots = {name: known.get(name, torch.zeros(1)).clone().expand(value.shape).clone() for name, value in sums.items()}
    states: dict[tuple[str, int], dict[str, Any]] = {}
    before: int | None = None
    for interval, k in enumerate(interval_order("cycle", 5, 1, 3, 4, "a")):
        projections, factors, mine = {}, {}, slice(k * rank, (k + 1) * rank)
        for layer in run.schema.layers:
            all_of_them = [torch.from_numpy(signs(seed, layer.name, rank, layer.columns)).float() / rank**0.5 for seed in seeds]
            projections[layer.name], factor = all_of_them[k], torch.zeros(layer.rows, rank, requires_grad=True)
            factors[layer.name], linear = factor, reference.model.get_submodule(layer.name)
            linear.forward = lambda x, w=linear.weight, b=factor, p=all_of_them[k]: nn.functional.linear(x, w + b @ p)
            if moments != "carried" or before is None:
                states[layer.name, k] = {"s": _filled(roots[layer.name], mine)}
            elif (layer.name, k) not in states:
                old = states[layer.name, before]
                moved = old["m"] @ all_of_them[before] @ all_of_them[k].T * (rank / layer.columns)
                states[layer.name, k] = {"t": old["t"], "m": moved, "v": old["v"]}
        for step in (2 * interval, 2 * interval + 1):
            batch = next(stream)
            (summed_loss(reference.model, batch, TASK, 0, CPU) / sum(e.weight for e in batch)).backward()
            for name, factor in factors.items():
                state = states[name, k]
                _adam(factor, factor.grad, step, state, 2.0 if moments == "averaged" else 0.0)
                factor.grad = None
        for name, factor in factors.items():
            sums[name][:, mine] += factor.detach()
            roots[name][:, mine] = states[name, k]["root"]
            reference.weights[name].data += (factor @ projections[name]).detach()
        before = k
    return sums, roots


@pytest.mark.parametrize("moments", MOMENTS)
def test_fedkrso_equals_its_reference_for_each_choice_of_moments(moments: Any, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    # Four intervals in three subspaces: one comes back.
    settings = FedKRSOSettings(rank=4, num_seeds=3, steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, moments=moments)
    run = Run(settings, make_llama(), tmp_path)
    known: dict[str, Tensor] = {}
    if moments == "averaged":
        # As some round before left them: each row's in its own order of magnitude, one column and one subspace that nobody has trained.
        for layer in run.schema.layers:
            chance = torch.Generator().manual_seed(len(known))
            root = torch.rand(layer.rows, 12, generator=chance) * torch.rand(layer.rows, 1, generator=chance) * 1e-2 + 2.0**-20
            root[:, 5] = root[:, 8:] = 0
            run.state.sums[f"{layer.name}/second"] = np.rint(np.ldexp(root.numpy().astype(np.float64), 32)).astype(np.int64)
            known[layer.name] = root
        run.published[0] = run.state.publish()
        known = {layer.name: torch.from_numpy(run.published[0].entries[f"{layer.name}/second"].values()) for layer in run.schema.layers}
    replica = run.replica("a")
    replica.state = run.published[0]
    replica.state.write(run.own / "a" / "state.bin")
    replica.restore()
    found = values_of(run.train("a", replica, 0).path)
    sums, roots = _subspaces(run, moments, known)
    for layer in run.schema.layers:
        assert _near(found.pop(layer.name), sums[layer.name].numpy())
        if moments == "averaged":
            change = roots[layer.name] - known[layer.name]
            assert _near(found.pop(f"{layer.name}/second"), change.numpy())
    assert not found


def test_a_mean_of_second_moments_is_over_those_who_know(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    # Two of three subspaces a round, each node's own draw; one node trains half of the rank.
    settings = FedKRSOSettings(
        rank=4, min_rank=2, num_seeds=3, order="uniform", steps=4, interval_steps=2, batch_size=4, learning_rate=1e-2, moments="averaged"
    )
    run = Run(settings, make_llama(), tmp_path)
    updates, weights, totals = [], np.zeros(12), np.zeros((run.schema.layers[0].rows, 12))
    for number, name in enumerate("abcd"):
        plan, path, rank = run.plan(1), run.own / f"{name}.bin", 2 if name == "b" else 4
        memory = MemoryPlan(micro_batch_size=4, rank=rank)
        run.trainer(name, run.replica(name), examples(number))[0].train(plan, (memory,), path)
        header = check_update(path, plan, "r", name).header
        updates.append(WeightedUpdate(path, header, header.examples))
        columns = [4 * k + row for k in header.subspaces for row in range(rank)]
        weights[columns] += header.examples
        totals[:, columns] += header.examples * values_of(path)[f"{run.schema.layers[0].name}/second"].astype(np.float64)
    assert len({update.header.subspaces for update in updates}) > 1 and (weights > 0).all() and len(set(weights)) > 2
    run.close(1, updates)
    found = run.published[1].entries[f"{run.schema.layers[0].name}/second"].values()
    assert np.allclose(found, totals / weights, rtol=0, atol=found.max() * 2.0**-14) and (found.max(axis=0) > 0).all()
    other = run.half.aggregate(ExactState.zero(run.plan(1).training, run.schema), run.plan(1), updates[::-1])
    assert other.publish().digest() == run.published[1].digest(), "the order in which they came changes nothing"


def _near(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Up to float rounding: Adam's first steps are signs of gradients, so a gradient near zero may go either way."""
    cosine = float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
    return cosine > 0.999 and 0.99 < np.linalg.norm(one) / np.linalg.norm(other) < 1.01


def test_states_of_methods_without_subspaces_travel(tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == "fedavg")
    training = server_half(kind()).training(1, 5)
    from fedcore.schema import LayerSpec, ModelSchema

    schema = ModelSchema((LayerSpec("l", 3, 4),), ())
    state = PublishedState.zero(training, schema)
    state.write(tmp_path / "s")
    assert PublishedState.read(tmp_path / "s", training.shapes(schema)).digest() == state.digest()
