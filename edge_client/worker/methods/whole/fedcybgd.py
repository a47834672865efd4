# SPDX-License-Identifier: Apache-2.0
"""FedCyBGD's client half: the layers of the round's block train in float32, with one Adam for the round; all others
stay 8-bit numbers, with the published change beside them (`edge_client.worker.methods.whole.some`)."""

from __future__ import annotations

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.whole.some import SomeLayers
from edge_client.worker.model.built import BuiltModel
from fedcore.round.training import BlockTraining, Training
from fedcore.round.training.dense import blocks_of

__all__ = ["FedCyBGD"]


class FedCyBGD(SomeLayers):
    """One block of the target layers at a time as ordinary linear layers.

    Args:
        model: Built.
        training: Of the plan; which block trains is learned when a round is opened.
        artefact: None; the method asks for none.
    """

    def __init__(self, model: BuiltModel, training: Training, artefact: None = None) -> None:
        del training, artefact
        super().__init__(model, tuple(model.layers))

    def block(self, training: Training) -> tuple[str, ...]:
        """The round's."""
        assert isinstance(training, BlockTraining)
        return training.block(self.layers)

    def outline(self, training: Training) -> Kept:
        """Of the largest block weights, gradients and moments. The first block trains: gradients go through all others
        before they are there."""
        blocks = blocks_of(self.layers)
        for name, layer in self.layers.items():
            layer.hold(name in blocks[0])
        sizes = {name: layer.out_features * layer.in_features for name, layer in self.layers.items()}
        return self.held(max(sum(sizes[name] for name in block) for block in blocks))
