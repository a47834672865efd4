# SPDX-License-Identifier: Apache-2.0
"""An ordinary model of dequantised weights, trained by a textbook loop: what a method is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from method_runs import CPU, TASK, Run, examples
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from edge_client.worker.data.tasks import batches, summed_loss
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.round import learning_rate_factor
from fedcore.round.plan import Plan
from fedcore.weights.quantise import dequantise_weight, quantise_weight


class Reference:
    """Full fine-tuning, or LoRA, with no code of ours but batches and the loss."""

    def __init__(self, run: Run, replica: Replica) -> None:
        kind = AutoModel if run.only_head else AutoModelForCausalLM
        self.model = kind.from_pretrained(run.folder, dtype=torch.float32)
        self.built = BuiltModel(self.model, output_weight=replica.model.output_weight)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.weights: dict[str, nn.Parameter] = {}
        for layer in run.schema.layers:
            linear = self.model.get_submodule(layer.name.removeprefix("model.") if run.only_head else layer.name)
            linear.weight = nn.Parameter(
                torch.from_numpy(dequantise_weight(*quantise_weight(linear.weight.numpy()))), requires_grad=False
            )
            self.weights[layer.name] = linear.weight

    def train(
        self, run: Run, plan: Plan, trained: list[Tensor], server_round: int = 1, optimiser: Any = torch.optim.Adam
    ) -> None:
        adam = optimiser(trained, lr=1e-2)
        stream = batches(examples(0), 4, 5, server_round, "a")
        for step in range(8):
            adam.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(step, 8)
            adam.zero_grad()
            batch = next(stream)
            (summed_loss(self.built, batch, TASK, 0, CPU) / sum(e.weight for e in batch)).backward()
            adam.step()


def near(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Up to float rounding: Adam's first steps are signs of gradients, so a gradient near zero may go either way."""
    cosine = float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
    return bool(cosine > 0.999 and 0.99 < np.linalg.norm(one) / np.linalg.norm(other) < 1.01)
