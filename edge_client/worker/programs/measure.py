# SPDX-License-Identifier: Apache-2.0
"""Real training steps of a model under a memory plan for `fedkrso profile --measure` and the benchmarks, in a process
of its own.

Everything is the node's own path (footprint, replica, calibration, trainer, update) but the texts, which are random
tokens of one length, so that length and micro-batch are exactly what was asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import torch

from edge_client.memory.planner import Calibration, calibrated, predict
from edge_client.process.measuring import Measurement, Request
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.data.tasks import Encoded, worker_task
from edge_client.worker.model.loading import describe
from edge_client.worker.trace.footprint import TINY_LENGTH, footprint
from edge_client.worker.train.calibrate import calibrate
from edge_client.worker.train.highwater import begin_peak, peak_bytes, status_bytes
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer, apply
from fedcore.config.sections import TaskSection
from fedcore.fields.prepared import prepared
from fedcore.model.base import Base
from fedcore.numbers.accumulator import RowScaled
from fedcore.round.checksums import checksums
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint

__all__ = ["local_plan", "main", "measure"]


def local_plan(folder: Path, task: TaskSection, request: Request) -> Plan:
    """A round as a coordinator would announce it for this folder."""
    training = request.trains()
    schema = describe(Checkpoint(folder), task, request.trained_tensors)
    schema = with_adapter(schema, folder, task, training.adapter)
    with tempfile.TemporaryDirectory() as scratch:
        digest = Base(Checkpoint(folder), schema, request.base_kind, Path(scratch)).digest()
    return Plan(
        round=1,
        phase="train",
        cohort=("measure",),
        deadline_at=time.time() + 86_400,
        task=task,
        base_kind=request.base_kind,
        base_digest=digest,
        model_schema=schema,
        checksums=checksums(training, schema),
        training=training,
        chunk_bytes=262_144,
        version=0,
        objects=(),
    )


def measure(request: Request, scratch: Path) -> Measurement:
    """Train some steps in this process.

    Args:
        request: What and how.
        scratch: Folder for the replica; weights on disk are kept there between measurements of one model.
    """
    torch.set_num_threads(request.threads)
    folder, memory = Path(request.model_folder), request.memory
    plan = _kept_plan(folder, request, scratch)
    training = plan.training
    dtype: torch.dtype = getattr(torch, request.compute_dtype)
    trace = footprint(
        folder,
        plan.model_schema,
        plan.task,
        request.base_kind,
        training,
        longest=request.length,
        compute_dtype=request.compute_dtype,
    )
    before = predict(trace, memory, Calibration(), rank=training.rank)
    begin_peak()
    replica = Replica(plan, folder, scratch, torch.device("cpu"), dtype, mapped=memory.mapped)
    loading = peak_bytes() or 0
    _learn(replica)
    replica.lighten()
    apply(replica.model, memory)
    measured = calibrate(replica, plan, min(request.length, TINY_LENGTH), 0, torch.device("cpu"))
    calibration = calibrated(trace, memory, measured, rank=training.rank, before=Calibration())
    static, seconds, times = status_bytes("VmRSS") or 0, time.monotonic(), []

    def report(*_: object) -> None:
        nonlocal seconds
        now = time.monotonic()
        times.append(now - seconds)
        seconds = now

    at_work = worker_task(plan.task)
    typed = replica.model.takes_types

    def example(index: int) -> Encoded:
        # Every other text is a token shorter: a batch with padding has an attention mask, one without has none.
        tokens = max(1, request.length - index % 2)
        return at_work.sample(tuple((7 * index + j) % 97 + 3 for j in range(tokens)), (0,) * tokens if typed else None)

    examples = [example(index) for index in range(request.batch_size)]
    trainer = Trainer(
        replica, examples, scratch / "intervals", "measure", "measure", 0, torch.device("cpu"), Hooks(report)
    )
    begin_peak()
    header, _ = trainer.train(plan, (memory,), scratch / "update.bin")
    return Measurement(
        traced=before,
        predicted=predict(trace, memory, calibration, rank=training.rank),
        static_bytes=static,
        peak_bytes=peak_bytes() or 0,
        peak_loading_bytes=loading,
        step_seconds=sorted(times)[len(times) // 2],
        loss=header.loss,
    )


def _learn(replica: Replica) -> None:
    """A published state in every subspace, as in the middle of a run: small random numbers."""
    generator = np.random.default_rng(0)
    entries = {}
    for name, part in replica.state.entries.items():
        q = generator.integers(-1000, 1000, part.q.shape, np.int16)
        entries[name] = RowScaled(q, np.full_like(part.exponent, -24))
    replica.state = dataclasses.replace(replica.state, entries=entries)
    replica.restore()


def _kept_plan(folder: Path, request: Request, scratch: Path) -> Plan:
    """The local plan; the base's digest takes seconds for a large model, so it is kept in the scratch folder."""
    scratch.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(msgspec.msgpack.encode((request.trains(), request.base_kind, request.task))).hexdigest()[:16]
    path = scratch / f"plan-{key}.bin"
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=prepared(Plan))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        plan = local_plan(folder, request.task, request)
    path.write_bytes(msgspec.msgpack.encode(plan))
    return plan


def main() -> None:
    """Measure the request given as JSON (first argument) with the scratch folder (second); prints one line of JSON."""
    request = msgspec.json.decode(sys.argv[1], type=prepared(Request))
    found = measure(request, Path(sys.argv[2]))
    sys.stdout.write(json.dumps(msgspec.to_builtins(found)) + "\n")
