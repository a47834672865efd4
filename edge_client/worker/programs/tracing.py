# SPDX-License-Identifier: Apache-2.0
"""A worker's first command: reading the data, and finding out what training on it would keep in memory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.heldout import node_examples
from edge_client.worker.data.tasks import encode, worker_task
from edge_client.worker.trace.footprint import cached_footprint
from edge_client.worker.train.measuring import held_out_of
from fedcore.config.fitting import require_fitting
from fedcore.worker.messages import Route, Trace, Traced

__all__ = ["traced"]


def traced(command: Trace, route: Route) -> Traced:
    """The model's footprint on a node's data; no weight is loaded.

    Args:
        command: Names plan, model and data.
        route: How the worker will compute.

    Raises:
        FedkrsoError: The data cannot be read, or the model cannot serve.
    """
    torch.set_num_threads(command.threads)
    plan, folder = command.plan, Path(command.model_folder)
    require_fitting(folder, max_length=plan.task.max_length, virtual_tokens=plan.training.virtual_tokens)
    examples, held_out = node_examples(command.data, plan.task, plan.evaluation)
    tokenizer = read_tokenizer(folder)
    encoded = encode(examples, plan.task, tokenizer)
    longest = max(len(row.ids) for row in worker_task(plan.task).rows(encoded))
    # What metrics import is then in this process, and counts.
    asked = held_out_of(plan, held_out, encoded, plan.task, tokenizer).asked
    found = cached_footprint(
        Path(command.folder),
        folder,
        plan.model_schema,
        plan.task,
        plan.base_kind,
        plan.training,
        longest=longest,
        min_length=plan.task.min_length,
        compute_dtype=route.compute_dtype,
        answers=(asked.longest_prompt, asked.max_new_tokens) if asked.questions else None,
    )
    if route.torch_device != "cpu":
        # An accelerator has copies of what stays on the disk elsewhere.
        away = plan.training.untouched(plan.model_schema)
        numbers = sum(layer.rows * layer.columns for layer in plan.model_schema.layers if layer.name in away)
        weights = found.weights_bytes + numbers * {"int8": 1, "float32": 4}.get(plan.base_kind, 2)
        found = msgspec.structs.replace(found, weights_bytes=weights)
    return Traced(found, len(encoded), route)
