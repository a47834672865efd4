# SPDX-License-Identifier: Apache-2.0
"""An agent of a node file: its keys are read, its model is found, its worker is to be started as the file says."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge_client.agent.agent import Agent
from edge_client.agent.lines import Callbacks
from edge_client.agent.messages import Keys
from edge_client.agent.resting import Surroundings
from edge_client.node import Node
from edge_client.process.supervisor import Supervisor
from fedcore.config.sections import TrustSection
from fedcore.system.logs import Line
from fedcore.transport.base import Transport
from fedcore.wire.identity import PublicKey, load_public_key, load_signing_key
from fedcore.worker.imported import imported_models, model_folder

__all__ = ["keys_of", "make_agent"]


def keys_of(trust: TrustSection) -> Keys:
    """What a node signs and believes by.

    Raises:
        ConfigError: A key cannot be read.
    """
    return Keys(
        None if trust.signing_key is None else load_signing_key(Path(trust.signing_key)),
        None if trust.coordinator_key is None else load_public_key(trust.coordinator_key),
        None if trust.authority_key is None else PublicKey(trust.authority_key),
        bytes.fromhex(trust.enrolment),
    )


def make_agent(
    node: Node,
    transport: Transport,
    jitter: random.Random,
    budget_bytes: int,
    callbacks: Callbacks,
    *,
    place: str,
    supervisor: Callable[..., Supervisor] = Supervisor,
    surroundings: Surroundings | None = None,
) -> Agent:
    """An agent that is ready to run.

    Args:
        node: Its file, with a run.
        transport: Not started yet.
        jitter: Spreads requests of many nodes; decides nothing in the model.
        budget_bytes: For agent and worker together.
        callbacks: Who hears of it on this machine.
        place: The node file, for errors.
        supervisor: Starts and watches the worker.
        surroundings: This machine and its clock by default.

    Raises:
        FedkrsoError: A key or the model cannot be read.
    """
    tell = lambda line: callbacks.say(Line(line, event="model"))  # noqa: E731
    cache = imported_models(Path(node.folder))
    found = model_folder(node.model_folder, cache, place=f"{place}: model_folder", tell=tell)
    supervise = partial(supervisor, node, found, budget_bytes)
    keys = keys_of(node.trust)
    return Agent(node, transport, jitter, supervise, keys=keys, callbacks=callbacks, surroundings=surroundings)
