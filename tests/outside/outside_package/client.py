# SPDX-License-Identifier: Apache-2.0
"""The method at a node."""

from __future__ import annotations

from typing import Any

from edge_client.worker.methods.fedavg import FedAvg
from outside_package.light import SignTraining


def of_plan(model: Any, training: SignTraining) -> FedAvg:
    """Whole layers train as in federated averaging; what travels of them is the codec's."""
    assert isinstance(training, SignTraining)
    return FedAvg(model)
