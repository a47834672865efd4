# SPDX-License-Identifier: Apache-2.0
"""A node whose owner wants privacy works for no job that promises less."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from plans import TRAINING, make_plan

from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.errors import ConfigError
from fedcore.round.plan import Plan
from fedcore.round.training import PrivateTraining


def node(wants: Any) -> Node:
    broker = BrokerSection(url="mqtt://localhost", insecure=True)
    return Node(node="n", run="r", model_folder="m", data=DataSection(source="d"), broker=broker, privacy=wants)


def plan(level: Any) -> Plan:
    privacy = PrivateTraining(level=level, clip=1.0, noise_multiplier=1.0, delta=1e-3) if level else None
    return make_plan(training=msgspec.structs.replace(TRAINING, privacy=privacy))


@pytest.mark.parametrize(
    ("wants", "said"), [("", ""), ("", "node"), ("node", "node"), ("node", "example"), ("example", "example")]
)
def test_who_promises_enough_is_worked_for(wants: str, said: str) -> None:
    assert node(wants).promised(plan(said)) == plan(said)


@pytest.mark.parametrize(
    ("wants", "said", "words"),
    [
        ("node", "", "its rounds promise no privacy, and this node wants privacy.node"),
        ("example", "", "its rounds promise no privacy, and this node wants privacy.example"),
        ("example", "node", "its rounds promise privacy.node, and this node wants privacy.example"),
    ],
)
def test_who_promises_less_is_not(wants: str, said: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        node(wants).promised(plan(said))
