# SPDX-License-Identifier: Apache-2.0
"""Whether training layers gives anything over a head alone, where both are private: CLINC150 with MiniLM.

    python -m benchmarks.privacy.layers --data DATA --out FOLDER --level example --line 8:1:sums:1e-3,2e-3
    python -m benchmarks.privacy.layers --data DATA --out FOLDER --level node --steps 1 --clip 0.3

A head from sums with noise (`benchmarks.privacy.heads`), then a round of FedKRSO on layers and head with noise, both
within one epsilon (`fedcore.privacy.accounting`, which composes them); beside it the head alone, with all of epsilon.
Everything is a round's own path. `times` is what there would be with so many times as many rows (or nodes) of the same
epsilon: all noise is so many times smaller, and the signal is that of the rows that there are, which is the least that
more would give. Private heads say scores rather than log-odds: `sums8` multiplies one by eight, which changes no label.
The signal is measured without noise: the inner product of the means of two halves, which noise of
sampling does not add to."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.lies import flat_update
from benchmarks.privacy.heads import Frozen, Sent, accuracy_of, frozen_features, head_round
from benchmarks.privacy.signal import gradients
from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.private import bounded, private_of
from coordinator.store.folder import RunFolder
from coordinator.store.rows import UpdateRow
from edge_client.worker.model.describing import describe
from edge_client.worker.train.evaluate import measures, scores_of
from edge_client.worker.train.replica import Replica
from fedcore.config.privacy import ExamplePrivacy, NodePrivacy, PrivacySection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.privacy.accounting import Releases, epsilon_of, noise_for
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import initial_tensor
from fedcore.weights.schema import ModelSchema
from fedkrso.tuning.trials import Sender, trained_update

_CPU: Final = torch.device("cpu")
_CHUNK: Final = 65_536
_MEMORY: Final = MemoryPlan(micro_batch_size=30, block_rows=4096, allocator="default", dequantised=True)
_HEAD_CLIPS: Final = {"example": 1.6, "node": 1.2}
_DELTAS: Final = {"example": 1e-5, "node": 1e-4}
_NODE_ROWS: Final = 8
_NO_NOISE: Final = 1e-9
_SAFETY: Final = SafetySection(norm_ratio=0.0, max_share_ratio=0.0)
"""No node lies here."""
Sums = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class _Asked:
    """A line of the table.

    Attributes:
        epsilon: Of head and round together; None for no privacy at all, infinite for the clip without noise.
        times: By which all noise is smaller.
        head: By what a head from sums is multiplied, which comes first; 0 for a random one.
        rates: Of layers and head.
    """

    epsilon: float | None
    times: float = 1.0
    head: float = 1.0
    rates: tuple[float, float] = (1e-3, 2e-3)


class _World:
    """What all lines have.

    Args:
        frozen: Rows, and the frozen model's features.
        level: `example` or `node`.
        options: Of the command line.
        out: For the replica.
    """

    def __init__(self, frozen: Frozen, level: str, options: Mapping[str, float], out: Path) -> None:
        self.frozen, self.level, self.out = frozen, level, out
        self.clip, self.head_share = options["clip"], options["head_share"]
        self.steps, self.batch, self.nodes = (int(options[name]) for name in ("steps", "batch", "nodes"))
        self.train, self.held = frozen.texts[0], frozen.texts[1][: int(options["held"])]
        self.of_head = len(self.train) // _NODE_ROWS if level == "node" else 1
        self.schema: ModelSchema = describe(Checkpoint(frozen.folder), frozen.task)
        self.replica: Replica | None = None
        self._kept = tempfile.TemporaryDirectory()
        self._sent = Sent(self._kept.name)
        self._sent.clip = _HEAD_CLIPS[level]

    @property
    def releases(self) -> Releases:
        """Of the layers' round."""
        return Releases(self.steps, self.batch / len(self.train)) if self.level == "example" else Releases(1)

    def privacy(self, clip: float, noise: float) -> PrivacySection:
        """Of a round; `noise` only says that there is some."""
        said = {"clip": clip, "delta": _DELTAS[self.level], "noise_multiplier": min(1000.0, max(0.1, noise))}
        if self.level == "node":
            return PrivacySection(node=NodePrivacy(**said))
        return PrivacySection(example=ExamplePrivacy(**said, least_examples=len(self.train)))

    def noises(self, epsilon: float) -> tuple[float, float]:
        """Multipliers of a head and a round that are worth epsilon together."""
        delta = _DELTAS[self.level]
        head = noise_for(self.head_share * epsilon, delta, Releases(1))
        layers = noise_for(epsilon, delta, self.releases, [(head, Releases(1))])
        assert epsilon_of(layers, delta, self.releases, [(head, Releases(1))]) <= epsilon
        return head, layers

    def head(self, noise: float | None, times: float = 1.0) -> tuple[tuple[float, float], Sums]:
        """Accuracy of a head from sums, on all held-out rows and on those that layers are measured on; its numbers, so
        many times as large."""
        section = PrivacySection() if noise is None else self.privacy(_HEAD_CLIPS[self.level], noise)
        with tempfile.TemporaryDirectory() as scratch:
            count = 1 if noise is None else self.of_head
            model, plan = head_round(self.frozen, count, section, self._sent, Path(scratch), noise)
            sums = {}
            for spec in plan.model_schema.tensors:
                begin = initial_tensor(spec.name, spec.shape, plan.training.run_seed, bias=spec.start)
                start = np.ldexp(begin.reshape(spec.matrix).astype(np.float64), 32)
                sums[spec.name] = np.rint(times * (start + model.state.sums[spec.name]) - start).astype(np.int64)
            found = [accuracy_of(self.frozen, model, plan, most) for most in (None, len(self.held))]
            return (found[0], found[1]), sums

    def begun(self, scratch: Path, asked: _Asked, noise: float | None, start: Sums) -> tuple[GlobalModel, Plan]:
        """A run of FedKRSO that starts with a head, and its round's plan; the replica stands there too."""
        settings = FedKRSOSettings(
            rank=1,
            num_seeds=1,
            steps=self.steps,
            interval_steps=self.steps,
            batch_size=self.batch,
            learning_rate=asked.rates[0],
            tensor_learning_rate=asked.rates[1],
            bits=8,
            share="uniform",
        )
        section = PrivacySection() if noise is None else self.privacy(self.clip, noise)
        private = private_of(section, settings, 1, None)
        if private is not None and noise is not None:
            private = dataclasses.replace(private, noise_multiplier=noise)
        learning = Learning(
            method=settings,
            seed=0,
            task=self.frozen.task,
            base_kind="int8",
            schema=self.schema,
            model_folder=self.frozen.folder,
            safety=bounded(_SAFETY, section),
            private=private,
        )
        scratch.mkdir(exist_ok=True)
        model = GlobalModel(learning, ScratchKeeping(RunFolder(scratch)), 0)
        model.state = dataclasses.replace(model.state, sums={**model.state.sums, **start})
        model.published = model.state.publish()
        model.begin(1, _CHUNK, print)
        plan = msgspec.structs.replace(model.plan(1, (), 0, _CHUNK), start_digest="", checkpoint_digest="")
        if self.replica is None:
            self.replica = Replica(plan, self.frozen.folder, self.out / "replica", _CPU, torch.float32)
            self.replica.lighten()
        self.stand(model)
        return model, plan

    def stand(self, model: GlobalModel) -> Replica:
        """The replica at what is published."""
        assert self.replica is not None
        self.replica.state = model.published
        self.replica.restore()
        return self.replica

    def accuracy(self, model: GlobalModel) -> float:
        """Of what is published, on the held-out rows."""
        replica = self.stand(model)
        scores = scores_of(replica.model, self.held, self.frozen.task, replica.model.pad_id, _CPU)
        return measures(scores, self.held, self.frozen.task)[0]

    def close(self, model: GlobalModel, plan: Plan, updates: Sequence[UpdateRow]) -> None:
        """And publish."""
        closed = model.close(plan, updates, _CHUNK)
        model.publish(closed.objects, closed.row)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder clinc150.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features.")
@click.option("--level", type=click.Choice(["example", "node"]), required=True)
@click.option("--rows", default=6000, show_default=True)
@click.option("--held", default=500, show_default=True, help="Rows that layers are measured on; heads: on 1,500.")
@click.option(
    "--nodes", default=100, show_default=True, help="Of 8 rows each, that train layers; at the level of nodes."
)
@click.option("--steps", default=8, show_default=True)
@click.option("--batch", default=150, show_default=True)
@click.option("--clip", default=1.0, show_default=True)
@click.option("--head-share", default=0.9, show_default=True, help="The head alone is worth so much of epsilon.")
@click.option("--signal/--no-signal", default=True, help="Of examples, before the table.")
@click.option("--line", "lines", multiple=True, help="EPSILON:TIMES:sums[FACTOR]|random:RATE,RATE of layers and head.")
def main(data: Path, out: Path, level: str, rows: int, signal: bool, lines: Sequence[str], **options: float) -> None:
    """Print the signal, then a table."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    world = _World(frozen_features("clinc150", rows, data, out), level, options, out)
    if level == "node":
        for words in _by_nodes(world, (1e-3, 2e-3)):
            print(words, flush=True)
        return
    if signal:
        for words in _signal_by_example(world):
            print(words, flush=True)
    print(
        "| epsilon | times | head alone, all of epsilon | head with its share | with layers | noise: head, layers | s |"
    )
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        epsilon, times, head, said = line.split(":")
        rates, factor = [float(rate) for rate in said.split(",")], 0.0 if head == "random" else float(head[4:] or 1)
        asked = _Asked(None if epsilon == "none" else float(epsilon), float(times), factor, (rates[0], rates[1]))
        started = time.process_time()
        found = _line(world, asked)
        print(f"| {line} | {found} | {time.process_time() - started:.0f} |", flush=True)


def _line(world: _World, asked: _Asked) -> str:
    """What one comes to."""
    if asked.epsilon is None:
        whole = of_head = of_layers = None
    elif math.isinf(asked.epsilon):
        whole = of_head = of_layers = _NO_NOISE
    else:
        whole = noise_for(asked.epsilon, _DELTAS[world.level], Releases(1)) / asked.times
        if asked.head:
            of_head, of_layers = (noise / asked.times for noise in world.noises(asked.epsilon))
        else:
            of_head, of_layers = None, noise_for(asked.epsilon, _DELTAS[world.level], world.releases) / asked.times
    alone = [world.head(whole)[0] for _ in range(1 if whole is None else 2)]
    first, start = world.head(of_head, asked.head) if asked.head else ((0.0, 0.0), {})
    with tempfile.TemporaryDirectory() as scratch:
        model, plan = world.begun(Path(scratch), asked, of_layers, start)
        sender = Sender("r", "n", _SAFETY)
        updates = [trained_update(world.stand(model), plan, world.train, Path(scratch) / "u", sender, _MEMORY)]
        world.close(model, plan, updates)
        after = world.accuracy(model)
    noise = "–" if of_layers is None else f"{of_head or 0:.3g}, {of_layers:.3g}"
    said = [statistics.mean(one[some] for one in alone) for some in (0, 1)]
    return f"{said[0]:.3f}, {said[1]:.3f} | {first[1]:.3f} | {after:.3f} | {noise}"


def _by_nodes(world: _World, rates: tuple[float, float]) -> Iterator[str]:
    """What nodes' updates of one round have in common, from a head that has no noise, and what the round comes to by
    the nodes that its noise is of: that of an epsilon of 8, all of it for this round."""
    first, start = world.head(None)
    yield f"head without privacy: {first[1]:.3f} of {len(world.held)}"
    needed = {epsilon: noise_for(epsilon, _DELTAS["node"], Releases(1)) for epsilon in (1.0, 3.0, 8.0)}
    asked, updates, norms, halves = _Asked(8.0, rates=rates), [], list[float](), [np.zeros(1), np.zeros(1)]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model, plan = world.begun(scratch / "first", asked, _NO_NOISE, start)
        replica, safety = world.stand(model), bounded(_SAFETY, world.privacy(world.clip, 1.0))
        for node in range(world.nodes):
            rows, path = world.train[node * _NODE_ROWS : (node + 1) * _NODE_ROWS], scratch / f"{node}.bin"
            row = trained_update(replica, plan, rows, path, Sender("r", f"n{node}", safety), _MEMORY)
            updates.append(msgspec.structs.replace(row, file=str(path)))
            numbers = flat_update(path, row.header, plan) * (1.0 if row.clip is None else row.clip.factor)
            halves[node % 2] = halves[node % 2] + numbers
            norms.append(float(np.linalg.norm(numbers)))
        square = float(halves[0] @ halves[1]) / (world.nodes // 2) ** 2
        common, size = math.copysign(math.sqrt(abs(square)), square), math.sqrt(numbers.size)
        counts = [f"{noise * world.clip * size / common:,.0f} at {epsilon:g}" for epsilon, noise in needed.items()]
        yield f"{numbers.size} numbers, norm {np.median(norms):.3g}, in common {common:.3g}; as large as the noise of "
        yield f"so many nodes at an epsilon: {', '.join(counts)}"
        for nodes in (*(750 * 10**power for power in range(4)), 10**12):
            other, again = world.begun(scratch / f"{nodes}", asked, needed[8.0] * world.nodes / nodes, start)
            world.close(other, again, updates)
            yield f"noise of {nodes:,} nodes: {world.accuracy(other):.3f}"


def _signal_by_example(world: _World) -> list[str]:
    """Of a step's gradient: norms of examples, what two halves of them have in common, and the noise on it."""
    found = []
    heads = (("head of epsilon 8", world.noises(8.0)[0], 1.0), ("ten times it", world.noises(8.0)[0], 10.0))
    for words, noise, times in (*heads, ("head without noise", None, 1.0)):
        _, start = world.head(noise, times)
        with tempfile.TemporaryDirectory() as scratch:
            _, plan = world.begun(Path(scratch), _Asked(8.0), world.noises(8.0)[1], start)
            assert world.replica is not None and plan.training.privacy is not None
            halves, norms = gradients(world.replica, plan, world.train[:240], world.train[240:480])
            world.replica.restore()
        layers = [name for name in halves[0] if name in world.replica.layers]
        for part, names in (("layers", layers), ("head", [name for name in halves[0] if name not in layers])):
            one, other = (np.concatenate([half[name].reshape(-1) for name in names]) for half in halves)
            common = float(one @ other)
            noise_norm = world.noises(8.0)[1] * world.clip * math.sqrt(one.size) / world.batch
            found.append(
                f"{words}, {part}: {one.size} numbers, an example's norm {np.median(norms[part]):.3g}, in common "
                f"{math.copysign(math.sqrt(abs(common)), common):.3g} after the clip {world.clip:g}, "
                f"noise on a step at epsilon 8 {noise_norm:.3g}"
            )
    return found


if __name__ == "__main__":
    main()
