# SPDX-License-Identifier: Apache-2.0
"""Client halves of the federated methods: one file each, found by a plan's training through the registry
(`fedcore.round.methods`) and imported only by who runs one."""

from __future__ import annotations

from typing import Any

from edge_client.worker.methods.interface import ClientHalf
from fedcore.registry import resolve
from fedcore.round.methods import client_half_name
from fedcore.round.training import Training
from fedcore.subspaces.informed import InformedRows

__all__ = ["client_half"]


def client_half(model: Any, training: Training, informed: InformedRows | None = None) -> ClientHalf:
    """The half that trains a model as a plan says; it changes the model's target layers.

    Args:
        model: Built.
        training: Of the plan.
        informed: The run's informed rows, where the plan has some.
    """
    half = resolve(client_half_name(training), place=f"method {training.method}")
    made: ClientHalf = half(model, training) if informed is None else half(model, training, informed)
    return made
