# SPDX-License-Identifier: Apache-2.0
"""Recipes of FedKRSO for the intent calls, tried cheaply: the coordinator's round engine and the nodes' own trainer in
one process, the homes one after the other, no sockets.

    python -m benchmarks.calls.recipes MODEL --rounds 10 --set steps=50 --set learning_rate=1e-3

A line a round: rows that all homes trained on together, and of both held-out sets the mean loss of a token and the
share of calls of which every token is the likeliest (greedy answers are then the call, letter by letter)."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import torch
from transformers import AutoTokenizer

from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from edge_client.worker.data.batches import Encoded, states_and_labels
from edge_client.worker.data.reading import load_examples
from edge_client.worker.data.tasks import encode
from edge_client.worker.methods.artefact import ArtefactSources
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.loading import describe
from edge_client.worker.train.highwater import peak_bytes
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from examples.intent_calls.demo import CALIBRATION_ROWS, TRAINED_TENSORS, method_of
from examples.intent_calls.prompt import TEMPLATE
from fedcore.config.sections import DataSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from research.artefact import artefact_digest

_CHUNK_BYTES = 262_144
_MEASURED_AT_ONCE = 16
_CPU = torch.device("cpu")
_TASK = TaskSection(kind="instruction", max_length=96, template_text=TEMPLATE)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "changed", multiple=True, help="A key of [method] and its value, beside the demo's.")
@click.option("--tensors", multiple=True, default=TRAINED_TENSORS, help="Tensors trained whole.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--homes", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--rows", default=100, show_default=True, help="Measured, of each held-out set.")
@click.option("--every", default=1, show_default=True, help="Rounds between measurements.")
@click.option("--threads", default=1, show_default=True)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
def main(
    model: Path,
    changed: tuple[str, ...],
    tensors: tuple[str, ...],
    rounds: int,
    homes: int,
    seed: int,
    rows: int,
    every: int,
    threads: int,
    dtype: str,
) -> None:
    """Run a recipe and print a line for each round."""
    torch.set_num_threads(threads)
    method = msgspec.convert(method_of(rounds, **dict(map(_pair, changed))), FedKRSOSettings)
    folder = Path(tempfile.mkdtemp(prefix="recipes-"))
    try:
        run = _Run(model, folder, method, tensors, homes, seed, getattr(torch, dtype))
        click.echo(f"{method} {tensors} on {dtype}")
        held = {name: run.read(f"new_{name}", {"seed": seed, "examples": rows}) for name in ("names", "sentences")}
        started, measuring = time.monotonic(), 0.0
        for number in range(1, rounds + 1):
            loss = run.round(number)
            if number % every and number != rounds:
                continue
            before = time.monotonic()
            found = "; ".join(f"{name} {_measured(run.replica.model, part, run.pad_id)}" for name, part in held.items())
            measuring += time.monotonic() - before
            seen = number * homes * method.steps * method.batch_size
            seconds = time.monotonic() - started - measuring
            click.echo(f"round {number}, {seen} rows, {seconds:.0f} s, trained at {loss:.3f}; {found}")
        click.echo(f"peak {(peak_bytes() or 0) / 2**20:.0f} MiB, digest {run.replica.digest()[:12]}")
    finally:
        shutil.rmtree(folder)


def _pair(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return key, value


class _Run:
    """A run without a wire: one replica that all homes train in, one after the other."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        method: FedKRSOSettings,
        tensors: Sequence[str],
        homes: int,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._homes = {
            f"home-{index}": self.read("home", {"index": index, "homes": homes, "seed": seed}) for index in range(homes)
        }
        checkpoint, self._files = Checkpoint(model), RunFolder(folder)
        schema = describe(checkpoint, _TASK, tuple(tensors))
        sources = ArtefactSources(
            training=server_half(method).training(1, seed),
            base=Base(checkpoint, schema, "int8", self._files.base),
            task=_TASK,
            texts=self.read("calibration", {"seed": seed, "examples": CALIBRATION_ROWS}),
            torch_device=_CPU,
        )
        learning = Learning(
            method=method,
            seed=seed,
            task=_TASK,
            base_kind="int8",
            schema=schema,
            model_folder=model,
            artefact=artefact_digest(self._files.artefact, sources),
        )
        self._keeping = ScratchKeeping(self._files)
        self._model = GlobalModel(learning, self._keeping, 0)
        self._plan = self._begun(1)
        self.replica = Replica(self._plan, model, folder / "replica", _CPU, dtype, artefact=self._files.artefact)
        fuse(self.replica.model.module)
        self.pad_id = self.replica.model.pad_id

    def read(self, function: str, arguments: dict[str, Any]) -> list[Encoded]:
        """Rows of the example's data."""
        section = DataSection(source=f"examples.intent_calls.data:{function}", arguments=arguments)
        return encode(load_examples(section, _TASK), _TASK, self._tokenizer)

    def round(self, number: int) -> float:
        """One round; the homes' mean loss."""
        # The one replica is never behind and never damaged: nobody looks whether it is.
        plan = msgspec.structs.replace(self._begun(number), start_digest="", checkpoint_digest="")
        updates = [self._trained(name, plan) for name in self._homes]
        closed = self._model.close(plan, updates, _CHUNK_BYTES)
        self._model.publish(closed.objects, closed.row)
        taken = closed.objects[-1]
        path = self._files.published_state(taken.version, taken.kind)
        self.replica.adopt(path, taken.generation, taken.kind, taken.digest)
        return sum(update.header.loss for update in updates) / len(updates)

    def _begun(self, number: int) -> Any:
        self._model.begin(number, _CHUNK_BYTES, lambda text: None)
        return self._model.plan(number, tuple(self._homes), 0, _CHUNK_BYTES)

    def _trained(self, name: str, plan: Any) -> UpdateRow:
        path = self._files.root / f"{name}.bin"
        intervals = self._files.root / "intervals"
        trainer = Trainer(self.replica, self._homes[name], intervals, "recipes", name, self.pad_id, _CPU)
        size = plan.training.batch_size
        trainer.train(plan, (MemoryPlan(micro_batch_size=size, block_rows=4096, allocator="default"),), path)
        admitted = admit(path, plan, "recipes", name, SafetySection())
        return UpdateRow("", path.name, path.stat().st_size, admitted.header, admitted.norm, admitted.clip)


@torch.inference_mode()
def _measured(model: BuiltModel, rows: Sequence[Encoded], pad_id: int) -> str:
    assert model.output_weight is not None
    right, loss, tokens = 0, 0.0, 0
    for start in range(0, len(rows), _MEASURED_AT_ONCE):
        batch = rows[start : start + _MEASURED_AT_ONCE]
        states, wanted = states_and_labels(model, batch, pad_id, _CPU)
        logits = torch.nn.functional.linear(states, model.output_weight.weight.to(states.dtype))
        loss += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        tokens += len(wanted)
        counts = [row.weight for row in batch]
        right += sum(bool(part.all()) for part in torch.split(logits.argmax(-1) == wanted, counts))
    return f"{right / len(rows):.3f} at {loss / tokens:.3f}"


if __name__ == "__main__":
    main()
