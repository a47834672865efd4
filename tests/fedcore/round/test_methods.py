# SPDX-License-Identifier: Apache-2.0
"""What may be registered as a method."""

from __future__ import annotations

import pytest

from fedcore.errors import ConfigError
from fedcore.registry import METHODS
from fedcore.round.methods import register_method
from fedcore.round.training import DenseTraining, Training

PARTS = {"settings": "a:B", "server_half": "a:C", "client_half": "a:D"}


class Tagged(DenseTraining, frozen=True, kw_only=True, tag_field="method", tag="fedavg"):
    """With the tag of another."""


class Untagged(Training, frozen=True, kw_only=True, tag=False):
    """Without one."""

    def layer_shapes(self, schema: object) -> dict[str, tuple[int, int]]:
        return {}


class Abstract(Training, frozen=True, kw_only=True, tag_field="method", tag="abstract"):
    """Without entries."""


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (Abstract, "has no layer_shapes"),
        (Untagged, "has a struct without a tag"),
        (Tagged, "tag 'fedavg' is that of DenseTraining"),
        (DenseTraining, "is trained by edge_client.worker.methods.whole.fedavg:FedAvg already, not by a:D"),
    ],
)
def test_a_method_that_cannot_be_is_refused_where_it_is_registered(training: type[Training], words: str) -> None:
    before = METHODS.names()
    with pytest.raises(ConfigError, match=words):
        register_method("mine", **PARTS)(training)
    assert METHODS.names() == before
