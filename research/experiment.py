# SPDX-License-Identifier: Apache-2.0
"""One run of the experiment in one process: many clients, one after the other, on one shared base model.

What a wire would carry is made and read as it would be there: updates and published states are the real files with
their real sizes, admitted, summed and published by the coordinator's round engine (`coordinator.run.model`), adopted by
the clients' own code. Only the sockets are left out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import torch

from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from coordinator.store.statefile import save_state
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.tasks import Encoded, encode
from edge_client.worker.methods.artefact import ArtefactSources
from edge_client.worker.model.loading import describe
from edge_client.worker.train.evaluate import Scores, measures, scores_of
from edge_client.worker.train.highwater import begin_peak, peak_bytes
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from fedcore.config.tasks import task_of
from fedcore.data.splits import Split
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ExactnessError, RunError
from fedcore.methods import server_half
from fedcore.methods.fed3r import require_solvable
from fedcore.model.averaging import LastStates
from fedcore.model.base import Base
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import ObjectKind, Plan, StateObject
from fedcore.round.training import HeadTraining
from fedcore.weights.checkpoint import Checkpoint
from research.artefact import artefact_digest
from research.clients import Client, clients_of, label_counts
from research.data.tasks import Parts, Task
from research.headsums import HeadSums, Spent
from research.presence import Downlink, taking_part
from research.runs.own import own_accuracy
from research.runs.predictions import Part, Predictions, predictions_of, save_predictions
from research.runs.rows import Row, RunFiles, Setup, rounds_done

__all__ = ["Experiment"]

_RUN = "paper"
_CHUNK_BYTES = 262_144
# All clients are honest here, and a Dirichlet split deals some of them many times what others have.
_NO_LIMITS = SafetySection(max_share_ratio=0.0, norm_ratio=0.0)


@dataclass(frozen=True)
class _Trained:
    """A round: its updates' headers, what was published, times, and the peaks of host and accelerator."""

    headers: list[UpdateHeader]
    published_bytes: dict[str, int]
    seconds: float
    processor_seconds: float
    peaks: tuple[int | None, int | None]


class Experiment:
    """A run, from its first round or from where it was left.

    Args:
        setup: What it is.
        task: Its task.
        parts: The task's rows.
        split: How they are dealt.
        model_folder: Checkpoint.
        files: The run's folder. What it holds of earlier rounds is gone on from; what is damaged begins anew.
        torch_device: Where to compute.
        compute_dtype: dtype of the products.
    """

    def __init__(
        self,
        setup: Setup,
        task: Task,
        parts: Parts,
        split: Split,
        model_folder: Path,
        files: RunFiles,
        torch_device: torch.device,
        compute_dtype: torch.dtype,
    ) -> None:
        self._setup, self._task, self._files, self._torch_device = setup, task, files, torch_device
        self._section = parts.section
        if task_of(self._section).outputs() is not None:
            self._section = msgspec.structs.replace(self._section, pooling=setup.pooling)
            self._section, _ = resolved_pooling(model_folder, self._section)
        tokenizer = read_tokenizer(model_folder)
        self._clients = clients_of(setup, parts, split, tokenizer, self._section)
        self._encoded: dict[Part, list[Encoded]] = {
            "held": encode(parts.tune if setup.tune else parts.held, self._section, tokenizer)
        }
        if not setup.tune:
            self._encoded["dev"] = encode(parts.dev, self._section, tokenizer)
        self._counts = label_counts(self._clients, self._section)
        # What a coordinator would have as calibration text: tuning rows, whatever their labels.
        self._calibration = encode(parts.tune[: setup.calibration_rows], self._section, tokenizer)
        self._checkpoint, self._folder = Checkpoint(model_folder), RunFolder(files.scratch)
        self._sums = HeadSums(setup, files.folder)
        self._borrowed = Spent(0.0, 0.0)
        schema = describe(self._checkpoint, self._section, setup.trained_tensors)
        self._schema = with_adapter(schema, model_folder, self._section, setup.method.adapter)
        self._compute_dtype = compute_dtype
        self._said: dict[Part, Predictions] = {}
        self._begin()

    def _begin(self) -> None:
        """Stand where the next round starts: after the rows that are there, or before the first round."""
        done = self._files.rows()
        try:
            self._open(done)
        except (RunError, ExactnessError):
            if not done:
                raise
            # A state that is not there, or a base that is damaged: the same rows come again.
            shutil.rmtree(self._files.scratch, ignore_errors=True)
            done = []
            self._open(done)
        self._files.keep(done)
        self.done = rounds_done(done)
        self._uplink_bytes, self._downlink_bytes = (done[-1].uplink_bytes, done[-1].downlink_bytes) if done else (0, 0)
        artefact = self._folder.artefact
        self._downlink = Downlink(
            self._setup.clients, _CHUNK_BYTES, artefact.stat().st_size if artefact.exists() else 0
        )
        for row in done:
            for server_round, published_bytes in enumerate(row.published_bytes, row.first_round):
                present = self._present(server_round)
                self._downlink.fetch(present)
                self._downlink.publish(server_round, self._model.training(server_round).generation, published_bytes)
                self._downlink.fetch(present)

    def _open(self, done: Sequence[Row]) -> None:
        setup, scratch = self._setup, self._files.scratch
        if not done:
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        checkpoint, folder = self._checkpoint, self._folder
        sources = ArtefactSources(
            training=server_half(setup.method).training(1, setup.seed),
            base=Base(checkpoint, self._schema, setup.base, folder.base),
            task=self._section,
            texts=self._calibration,
            torch_device=self._torch_device,
        )
        learning = Learning(
            method=setup.method,
            seed=setup.seed,
            task=self._section,
            base_kind=setup.base,
            schema=self._schema,
            model_folder=checkpoint.folder,
            artefact=artefact_digest(folder.artefact, sources),
            safety=_NO_LIMITS,
            head=setup.heads,
            last=LastStates(setup.average_last, setup.rounds),
        )
        self._model = GlobalModel(learning, ScratchKeeping(folder), rounds_done(done))
        require_solvable(self._model.training(1), self._schema)
        if self._model.state.rows_from != self._model.training(1).rows_from:
            raise ExactnessError("a state in other rows than this run's", place=str(scratch))
        plan = self._begun(rounds_done(done) + 1)
        self._replica = Replica(
            plan,
            checkpoint.folder,
            scratch / "replica",
            self._torch_device,
            self._compute_dtype,
            artefact=folder.artefact,
        )
        self._replica.lighten()
        self._pad_id = self._replica.model.pad_id
        if done:
            start = scratch / "start.bin"
            self._model.start_state(plan.training).write(start)
            self._replica.adopt(start, plan.training.generation, "whole", plan.start_digest)

    def rows(self) -> Iterator[Row]:
        """Train what is left of the run; a row for each measurement. What a row needs is dropped when the next one is
        asked for."""
        while self.done < self._setup.rounds:
            before = self.done
            self.done = next(number for number in count(before + 1) if self._setup.is_measured(number))
            trained = [self._round(server_round) for server_round in range(before + 1, self.done + 1)]
            save_state(self._folder.state(self.done), self._model.state)
            yield self._row(trained)
            self._folder.state(before).unlink(missing_ok=True)

    def _round(self, server_round: int) -> _Trained:
        # The clients' one replica is never behind and never damaged: no client looks whether it is.
        plan = msgspec.structs.replace(self._begun(server_round), start_digest="", checkpoint_digest="")
        present = self._present(server_round)
        self._downlink_bytes += self._downlink.fetch(present) + len(msgspec.msgpack.encode(plan)) * len(present)
        _begin_peaks(self._torch_device)
        started, used = time.monotonic(), time.process_time()
        updates = [self._trained(self._clients[index], plan) for index in present]
        borrowed, self._borrowed = self._borrowed, Spent(0.0, 0.0)
        seconds = time.monotonic() - started + borrowed.seconds
        processor_seconds, peaks = (
            time.process_time() - used + borrowed.processor_seconds,
            _peaks(self._torch_device),
        )
        closed = self._model.close(plan, updates, _CHUNK_BYTES)
        self._model.publish(closed.objects, closed.row)
        offered = self._offered(closed.objects, server_round)
        taken = next(iter(offered.values()))
        path = self._folder.published_state(taken.version, taken.kind)
        self._replica.adopt(path, taken.generation, taken.kind, taken.digest)
        published_bytes: dict[str, int] = {kind: obj.manifest.size_bytes for kind, obj in offered.items()}
        self._downlink.publish(server_round, plan.training.generation, published_bytes)
        self._downlink_bytes += self._downlink.fetch(present)
        headers = [update.header for update in updates]
        return _Trained(headers, published_bytes, seconds, processor_seconds, peaks)

    def _row(self, trained: Sequence[_Trained]) -> Row:
        """Measure the model after these rounds."""
        server_round, last = self.done, trained[-1]
        held, loss, metrics = self._measured("held", server_round)
        dev, _, dev_metrics = self._measured("dev", server_round) if "dev" in self._encoded else (None, 0.0, {})
        losses = [header.loss for one in trained for header in one.headers]
        return Row(
            label=self._setup.label,
            task=self._setup.task,
            split=self._setup.split,
            seed=self._setup.seed,
            dropout=self._setup.dropout,
            round=server_round,
            dev=dev,
            held=held,
            loss=loss,
            metrics={f"held_{name}": value for name, value in metrics.items()}
            | {f"dev_{name}": value for name, value in dev_metrics.items()},
            train_loss=sum(losses) / len(losses),
            uplink_bytes=self._uplink_bytes,
            downlink_bytes=self._downlink_bytes,
            published_bytes=tuple(one.published_bytes for one in trained),
            peak_bytes=_highest(one.peaks[0] for one in trained),
            accelerator_peak_bytes=_highest(one.peaks[1] for one in trained),
            seconds=sum(one.seconds for one in trained),
            processor_seconds=sum(one.processor_seconds for one in trained),
            clients=len(last.headers),
            examples=sum(header.examples for header in last.headers),
            digest=self._replica.digest(),
        )

    def _trained(self, client: Client, plan: Plan) -> UpdateRow:
        path = self._folder.root / f"{client.name}.bin"
        intervals = self._files.scratch / "intervals"
        trainer = Trainer(self._replica, client.encoded, intervals, _RUN, client.name, self._pad_id, self._torch_device)
        allocator = self._setup.allocator
        # Whole layers at a time where memory is not what is looked at.
        block_rows = 4096 if allocator == "default" else 256
        memory = MemoryPlan(micro_batch_size=self._setup.micro_batch_size, allocator=allocator, block_rows=block_rows)
        begun, used = time.monotonic(), time.process_time()
        heads = plan.round == 1 and isinstance(plan.training, HeadTraining)
        spent = self._sums.fetch(client.name, path) if heads else None
        if spent is not None:
            self._borrowed = Spent(*(a + b for a, b in zip(self._borrowed, spent, strict=True)))
        else:
            trainer.train(plan, (memory,), path)
            if heads:
                self._sums.keep(client.name, path, Spent(time.monotonic() - begun, time.process_time() - used))
        admitted, size_bytes = admit(path, plan, _RUN, client.name, _NO_LIMITS), path.stat().st_size
        self._uplink_bytes += size_bytes
        return UpdateRow("", path.name, size_bytes, admitted.header, admitted.norm, admitted.clip)

    def _begun(self, server_round: int) -> Plan:
        """The plan of a round that begins: where seeds change, with what was learned merged into the coordinator's
        base; the clients' replica merges by itself."""
        self._model.begin(server_round, _CHUNK_BYTES, lambda text: None)
        return self._model.plan(server_round, tuple(client.name for client in self._clients), 0, _CHUNK_BYTES)

    def _offered(self, objects: Sequence[StateObject], server_round: int) -> dict[ObjectKind, StateObject]:
        """What of a published state somebody fetches, first what those do who were there: the difference where there
        can be one; the whole where not, at a generation's end, for who was missing."""
        by_kind = {obj.kind: obj for obj in reversed(objects)}
        ends = self._model.training(server_round + 1).generation != self._model.base.generation
        if "difference" in by_kind and not ends and not self._setup.dropout:
            del by_kind["whole"]
        return by_kind

    def _measured(self, part: Part, server_round: int) -> tuple[float, float, dict[str, float]]:
        """Of the model that all share; where each client has its own, the mean over clients, all on the same rows."""
        encoded, found = self._encoded[part], []
        for scores in self._scores(encoded):
            found.append(scores)
        if server_round == self._setup.rounds:
            self._said[part] = predictions_of(found, encoded, self._section)
            save_predictions(self._files.predictions, self._said)
        each = [measures(scores, encoded, self._section) for scores in found]
        metrics = [{"accuracy": accuracy, **others} for accuracy, _, others in each]
        means = {name: sum(one[name] for one in metrics) / len(each) for name in metrics[0]}
        if self._counts.size:
            wanted = np.array([row.target for row in encoded])
            said = [scores.outputs.argmax(axis=1) for scores in found]
            means["own"] = own_accuracy(said, wanted, self._counts)
        return means[self._task.metric], sum(loss for _, loss, _ in each) / len(each), means

    def _scores(self, encoded: list[Encoded]) -> Iterator[Scores]:
        shared = self._model.training(1).shares_model
        for client in self._clients[:1] if shared else self._clients:
            if not shared:
                self._replica.become(_RUN, client.name)
            yield scores_of(self._replica.model, encoded, self._section, self._pad_id, self._torch_device)

    def _present(self, server_round: int) -> tuple[int, ...]:
        if self._setup.method.in_turn and not self._model.training(server_round).one_pass:
            return ((server_round - 1) % self._setup.clients,)
        return taking_part(self._setup.clients, self._setup.dropout, self._setup.seed, server_round)


def _highest(peaks: Iterable[int | None]) -> int | None:
    return max((peak for peak in peaks if peak is not None), default=None)


def _begin_peaks(torch_device: torch.device) -> None:
    begin_peak()
    if torch_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peaks(torch_device: torch.device) -> tuple[int | None, int | None]:
    accelerator = int(torch.cuda.max_memory_allocated()) if torch_device.type == "cuda" else None
    return peak_bytes(), accelerator
