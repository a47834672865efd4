# SPDX-License-Identifier: Apache-2.0
"""Server halves of the federated methods: found by their settings through one table. A new method is a file, a line in
each of the two."""

from __future__ import annotations

from collections.abc import Callable

from fedcore.methods.fedavg import FedAvg, FedAvgSettings
from fedcore.methods.fedex import FedExLoRA, FedExLoRASettings
from fedcore.methods.fedkrso import FedKRSO, FedKRSOSettings
from fedcore.methods.fedkseed import FedKSeed, FedKSeedProSettings, FedKSeedSettings
from fedcore.methods.ferret import Ferret, FerretSettings
from fedcore.methods.flora import FLoRA, FLoRASettings
from fedcore.methods.interface import MethodSettings, ServerHalf
from fedcore.methods.lora import FedITSettings, FedSALoRASettings, FFALoRASettings, LoRA, RoLoRASettings

__all__ = ["SERVER_HALVES", "AnySettings", "server_half"]

AnySettings = (
    FedKRSOSettings
    | FedAvgSettings
    | FedITSettings
    | FFALoRASettings
    | RoLoRASettings
    | FedSALoRASettings
    | FLoRASettings
    | FedExLoRASettings
    | FedKSeedSettings
    | FedKSeedProSettings
    | FerretSettings
)
"""`[method]` of a job: its `name` says which."""

SERVER_HALVES: dict[type[MethodSettings], Callable[..., ServerHalf]] = {
    FedKRSOSettings: FedKRSO,
    FedAvgSettings: FedAvg,
    FedITSettings: LoRA,
    FFALoRASettings: LoRA,
    RoLoRASettings: LoRA,
    FedSALoRASettings: LoRA,
    FLoRASettings: FLoRA,
    FedExLoRASettings: FedExLoRA,
    FedKSeedSettings: FedKSeed,
    FedKSeedProSettings: FedKSeed,
    FerretSettings: Ferret,
}


def server_half(settings: MethodSettings, artefact: str = "") -> ServerHalf:
    """The server half that a job names.

    Args:
        settings: `[method]` of the job.
        artefact: SHA-256 of the run's artefact, for a method that asks for one (`Training.artefact_kind`), once it
            is made.
    """
    half = SERVER_HALVES[type(settings)]
    return half(settings, artefact) if artefact else half(settings)
