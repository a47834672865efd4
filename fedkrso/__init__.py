# SPDX-License-Identifier: Apache-2.0
"""The front door: everything that a program needs which takes part in a run, leads one, or adds to what runs can do.

    from fedkrso import Client, Coordinator, Job, load

    client = Client.from_file("node.toml", data=rows, on_event=print)
    client.run()

    with Coordinator(load("job.toml", Job), on_round=lambda row: print(row.accuracy)) as coordinator:
        result = coordinator.run()
    result.export("tuned")

Names are loaded when they are used, so `import fedkrso` brings neither torch nor NumPy, and a program that only is a
client stays as light as the agent.

Example:
    >>> import fedkrso, sys
    >>> "Client" in dir(fedkrso), fedkrso.__version__.count(".")
    (True, 2)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from coordinator.coordinator import Coordinator
    from coordinator.job import CalibrationSection, EvaluationSection, Job, ModelSection, RoundSection, SafetySection
    from coordinator.provisioning.broker import LocalBroker
    from coordinator.reports.result import Result
    from coordinator.store.ledger import RoundRow
    from edge_client.client import Client
    from edge_client.node import Node
    from edge_client.owner.policy import PolicySection
    from fedcore.config.reading import load_config as load
    from fedcore.config.sections import BrokerSection, DataSection, HeadSection, TaskSection, TrustSection
    from fedcore.config.tasks import register_task
    from fedcore.errors import ConfigError, DataError, FedkrsoError, RunError
    from fedcore.registry import register_device, register_metric, register_payload_codec, register_rule
    from fedcore.round.methods import register_method
    from fedcore.system.logs import Line

__all__ = [
    "BrokerSection",
    "CalibrationSection",
    "Client",
    "ConfigError",
    "Coordinator",
    "DataError",
    "DataSection",
    "EvaluationSection",
    "FedkrsoError",
    "HeadSection",
    "Job",
    "Line",
    "LocalBroker",
    "ModelSection",
    "Node",
    "PolicySection",
    "Result",
    "RoundRow",
    "RoundSection",
    "RunError",
    "SafetySection",
    "TaskSection",
    "TrustSection",
    "load",
    "register_device",
    "register_method",
    "register_metric",
    "register_payload_codec",
    "register_rule",
    "register_task",
]

_WHERE: Final = {
    "BrokerSection": "fedcore.config.sections",
    "CalibrationSection": "coordinator.job",
    "Client": "edge_client.client",
    "Coordinator": "coordinator.coordinator",
    "DataSection": "fedcore.config.sections",
    "EvaluationSection": "coordinator.job",
    "FedkrsoError": "fedcore.errors",
    "ConfigError": "fedcore.errors",
    "DataError": "fedcore.errors",
    "RunError": "fedcore.errors",
    "HeadSection": "fedcore.config.sections",
    "Job": "coordinator.job",
    "Line": "fedcore.system.logs",
    "LocalBroker": "coordinator.provisioning.broker",
    "ModelSection": "coordinator.job",
    "Node": "edge_client.node",
    "PolicySection": "edge_client.owner.policy",
    "Result": "coordinator.reports.result",
    "RoundRow": "coordinator.store.ledger",
    "RoundSection": "coordinator.job",
    "SafetySection": "coordinator.job",
    "TaskSection": "fedcore.config.sections",
    "TrustSection": "fedcore.config.sections",
    "load": "fedcore.config.reading:load_config",
    "register_device": "fedcore.registry",
    "register_method": "fedcore.round.methods",
    "register_metric": "fedcore.registry",
    "register_payload_codec": "fedcore.registry",
    "register_rule": "fedcore.registry",
    "register_task": "fedcore.config.tasks",
}
"""Each name's module, and its name there where that is another."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fedkrso")
    if name not in _WHERE:
        raise AttributeError(f"module 'fedkrso' has no attribute {name!r}")
    module, _, other = _WHERE[name].partition(":")
    found = getattr(importlib.import_module(module), other or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
