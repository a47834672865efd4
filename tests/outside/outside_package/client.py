# SPDX-License-Identifier: Apache-2.0
"""The method at a node."""

from __future__ import annotations

from edge_client.worker.methods.whole.fedavg import FedAvg
from edge_client.worker.model.built import BuiltModel
from outside_package.light import SignTraining


def of_plan(model: BuiltModel, training: SignTraining, artefact: None = None) -> FedAvg:
    """Whole layers train as in federated averaging; what travels of them is the codec's."""
    assert isinstance(training, SignTraining)
    return FedAvg(model, training, artefact)
