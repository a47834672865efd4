# SPDX-License-Identifier: Apache-2.0
"""Client halves of the federated methods: one file each, found by a plan's training through one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_client.worker.methods.fedavg import FedAvg
from edge_client.worker.methods.fedkrso import FedKRSO
from edge_client.worker.methods.fedkseed import FedKSeed
from edge_client.worker.methods.ferret import Ferret
from edge_client.worker.methods.interface import ClientHalf
from fedcore.round.training import (
    AnyTraining,
    DenseTraining,
    FactorTraining,
    ResidualTraining,
    ScalarTraining,
    SketchTraining,
    StackedTraining,
    SubspaceTraining,
    Training,
)

__all__ = ["CLIENT_HALVES", "client_half"]


def _lora(model: Any, training: FactorTraining) -> ClientHalf:
    # Only who runs one of these methods needs PEFT.
    from edge_client.worker.methods.lora import LoRA

    return LoRA(model, training)


CLIENT_HALVES: dict[type[Training], Callable[..., ClientHalf]] = {
    SubspaceTraining: lambda model, training, artefact=None: FedKRSO(model, artefact),
    DenseTraining: lambda model, training: FedAvg(model),
    FactorTraining: _lora,
    StackedTraining: _lora,
    ResidualTraining: _lora,
    ScalarTraining: FedKSeed,
    SketchTraining: Ferret,
}


def client_half(model: Any, training: AnyTraining, artefact: Any = None) -> ClientHalf:
    """The half that trains a model as a plan says; it changes the model's target layers.

    Args:
        model: Built.
        training: Of the plan.
        artefact: What the run's artefact holds (`fedcore.round.artefact.read_artefact`), where the plan names one.
    """
    half = CLIENT_HALVES[type(training)]
    return half(model, training) if artefact is None else half(model, training, artefact)
