# SPDX-License-Identifier: Apache-2.0
"""What a plan says of the method. Agents import this module, so it does without NumPy and torch; the names say where
the rest is."""

from __future__ import annotations

from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema
from fedkrso import register_method


@register_method(
    "shrinking-average",
    settings="shrinking_average.server:Settings",
    server_half="shrinking_average.server:ShrinkingAverage",
    client_half="edge_client.worker.methods.whole.fedavg:FedAvg",
)
class ShrinkingTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="shrinking-average"):
    """Whole layers train as in federated averaging: the client half is that one's."""

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of what is learned: every number of a layer."""
        return {layer.name: (layer.rows, layer.columns) for layer in schema.layers}
