# SPDX-License-Identifier: Apache-2.0
"""Client halves of the federated methods: in the same folders as their server halves (`fedcore.methods`), found by a
plan's training through the registry (`fedcore.round.methods`) and imported only by who runs one. What halves have in
common lies here: `interface`, tensors trained whole `named`, gradients by example `perexample`, files that all need
`artefact`."""

from __future__ import annotations

from typing import Any

from edge_client.worker.methods.interface import ClientHalf
from edge_client.worker.model.built import BuiltModel
from fedcore.registry import resolve
from fedcore.round.methods import client_half_name
from fedcore.round.training import Training

__all__ = ["client_half"]


def client_half(
    model: BuiltModel, training: Training, artefact: Any = None, inside: ClientHalf | None = None
) -> ClientHalf:
    """The half that trains a model as a plan says; it changes the model's target layers.

    Args:
        model: Built.
        training: Of the plan.
        artefact: What the run's artefact holds (`fedcore.round.artefact.read_artefact`), where the plan names one.
        inside: The half that trains in the rounds beside, where the model has it already.
    """
    half = resolve(client_half_name(training), place=f"method {training.method}")
    made: ClientHalf = half(model, training, artefact) if inside is None else half(model, training, artefact, inside)
    return made
