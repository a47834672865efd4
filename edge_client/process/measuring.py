# SPDX-License-Identifier: Apache-2.0
"""Measuring real training steps, or an answer, in a process of their own: what is asked, what comes back, and how the
process is started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec

from edge_client.memory.allocator import ALLOCATORS
from edge_client.memory.group import MemoryGroup
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import Allocator, MemoryComponents, MemoryPlan
from fedcore.errors import WorkerError
from fedcore.fields.types import BaseKind
from fedcore.round.training import AnyTraining, SubspaceTraining
from fedcore.subspaces.schedule import pool_seeds
from fedcore.system.processes import worker_python

__all__ = [
    "AnswerMeasurement",
    "AnswerRequest",
    "Measurement",
    "Request",
    "measured",
    "measured_answer",
    "subspace_round",
]


def subspace_round(*, pool: int, rank: int, batch_size: int, steps: int, intervals: int = 1) -> SubspaceTraining:
    """FedKRSO's training as a plan would have it, where there is no run."""
    return SubspaceTraining(
        seeds=pool_seeds(0, 0, pool),
        generation=0,
        rank=rank,
        min_rank=1,
        order="cycle",
        intervals=intervals,
        interval_steps=steps,
        batch_size=batch_size,
        learning_rate=1e-4,
        tensor_learning_rate=1e-4,
        bits=8,
        share="examples",
        run_seed=0,
    )


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: one round's steps of a model under a memory plan, on random tokens of one length."""

    model_folder: str
    task: TaskSection
    batch_size: int
    length: int
    memory: MemoryPlan
    rank: int = 8
    pool: int = 5
    steps: int = 2
    base_kind: BaseKind = "int8"
    threads: int = 1
    compute_dtype: str = "float32"
    trained_tensors: tuple[str, ...] = ()
    training: AnyTraining | None = None
    """The method, where it is another: then it says batch and rank."""

    def trains(self) -> AnyTraining:
        """What a plan of the measured round would say of its training."""
        if self.training is not None:
            return self.training
        return subspace_round(pool=self.pool, rank=self.rank, batch_size=self.batch_size, steps=self.steps)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a training step, predicted and measured."""

    traced: MemoryComponents
    """Predicted before anything was loaded."""
    predicted: MemoryComponents
    """Predicted after calibration."""
    static_bytes: int
    """Resident with the model loaded, before the first step."""
    peak_bytes: int
    """Highest resident size while training."""
    peak_loading_bytes: int
    """Highest resident size while the model was loaded."""
    step_seconds: float
    loss: float

    @property
    def error(self) -> float:
        """Error of the prediction before loading, relative to what was measured."""
        return self.traced.total_bytes / self.peak_bytes - 1


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: one answer of a model folder by itself, whose context is full at its end."""

    model_folder: str
    """With weights and tokenizer."""
    context_tokens: int
    threads: int = 1


class AnswerMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of an answer, predicted and measured."""

    predicted: MemoryComponents
    """Before anything was loaded, from `config.json` alone."""
    planned: MemoryComponents
    """With the model loaded: what a server plans with."""
    held_bytes: int
    """Resident with model and tokenizer loaded."""
    peak_bytes: int
    """Highest resident size while answering."""
    first_token_seconds: float

    @property
    def error(self) -> float:
        """Error of the prediction before loading, relative to what was measured."""
        return self.predicted.total_bytes / self.peak_bytes - 1


def measured(request: Request, scratch: Path, memory_group: MemoryGroup | None = None) -> Measurement:
    """Measure training steps in a process of its own.

    Args:
        request: What.
        scratch: Folder for weights on disk; measurements of one model may share it.
        memory_group: Limit to run under.

    Raises:
        WorkerError: The process failed or was killed; the message has its last line.
    """
    said = _run("measure", request, request.memory.allocator, scratch, memory_group)
    return msgspec.json.decode(said, type=Measurement)


def measured_answer(request: AnswerRequest, scratch: Path) -> AnswerMeasurement:
    """Measure an answer in a process of its own.

    Args:
        request: What.
        scratch: Folder for weights on disk.

    Raises:
        WorkerError: The process failed; the message has its last line.
    """
    return msgspec.json.decode(_run("measure_answer", request, "tuned", scratch, None), type=AnswerMeasurement)


def _run(
    program: str,
    request: Request | AnswerRequest,
    allocator: Allocator,
    scratch: Path,
    memory_group: MemoryGroup | None,
) -> str:
    """The last line of a measuring program."""
    own = {"OMP_NUM_THREADS": str(request.threads), "HF_HUB_OFFLINE": "1"}
    environment = os.environ | ALLOCATORS[allocator] | own
    command = [
        worker_python(os.environ),
        "-m",
        "edge_client.worker.programs.lean",
        program,
        msgspec.json.encode(request).decode(),
        str(scratch),
    ]
    prepare = None if memory_group is None else memory_group.prepare
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, preexec_fn=prepare)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on its error output"])[-1]
        raise WorkerError(f"the measuring process ended with {done.returncode}: {last}", place=request.model_folder)
    return done.stdout.splitlines()[-1]
