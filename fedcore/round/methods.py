# SPDX-License-Identifier: Apache-2.0
"""The table of federated methods: what each consists of, and where its parts are.

A method has four parts. What a plan says of it (`fedcore.round.training.Training`) is here; its settings and its server
half, whose sums need NumPy, and its client half, which needs torch, are named by `package.module:name` and imported by
who runs them. So the agent, which reads plans, needs neither.

A method of one's own is registered in the same way, in a module without NumPy or torch that an entry point of the group
`fedkrso.methods` names:

    @register_method("heads-only", settings="mine.server:Settings", server_half="mine.server:HeadsOnly",
                     client_half="mine.client:HeadsOnly")
    class HeadsOnlyTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="heads-only"): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fedcore.errors import ConfigError
from fedcore.registry import METHODS
from fedcore.round.training.adapter import AdapterTraining
from fedcore.round.training.base import Training
from fedcore.round.training.dense import BlockTraining, DenseTraining
from fedcore.round.training.directions import ScalarTraining, SketchTraining
from fedcore.round.training.evolution import EvolutionTraining
from fedcore.round.training.factors import FactorTraining, ResidualTraining, StackedTraining
from fedcore.round.training.head import HeadTraining
from fedcore.round.training.prompts import PromptTraining
from fedcore.round.training.sparse import SparseTraining
from fedcore.round.training.split import SplitTraining
from fedcore.round.training.subspace import SubspaceTraining
from fedcore.round.training.tensortrain import TensorTrainTraining
from fedcore.round.training.threshold import ThresholdTraining

__all__ = ["Method", "client_half_name", "register_method"]

K = TypeVar("K", bound=type[Training])


@dataclass(frozen=True)
class Method:
    """The parts of a method.

    Attributes:
        training: Its part of a plan. Several methods may have one struct, and then have one client half.
        settings: Name of its `fedcore.methods.interface.MethodSettings`, whose tag is the method's name.
        server_half: Name of what makes its `fedcore.methods.interface.ServerHalf` of the settings.
        client_half: Name of what makes its `edge_client.worker.methods.interface.ClientHalf` of a model and a plan's
            training.
    """

    training: type[Training]
    settings: str
    server_half: str
    client_half: str


def register_method(name: str, *, settings: str, server_half: str, client_half: str) -> Callable[[K], K]:
    """A decorator of a method's `Training`.

    Args:
        name: As a job's `[method]` says it.
        settings: `package.module:Class` of its settings.
        server_half: `package.module:name`, called with the settings.
        client_half: `package.module:name`, called with the built model, the plan's training, and what the run's
            artefact holds (None where there is none): `edge_client.worker.methods.interface.ClientHalf`.

    Raises:
        ConfigError: The name is taken, the struct is abstract or without a tag, its tag is another struct's, or it has
            another client half already.
    """

    def add(training: K) -> K:
        _check(name, training, client_half)
        METHODS.add(name, Method(training, settings, server_half, client_half), written=training)
        return training

    return add


def _check(name: str, training: type[Training], client_half: str) -> None:
    place = f"{training.__module__}:{training.__qualname__}"
    missing = [key for key in dir(training) if getattr(getattr(training, key), "__isabstractmethod__", False)]
    if missing:
        raise ConfigError(f"method {name!r} has no {', '.join(missing)}", place=place, remedy="define it in the struct")
    if training.__struct_config__.tag is None:
        raise ConfigError(f"method {name!r} has a struct without a tag", place=place, remedy=f'add tag="{name}"')
    for method in METHODS.registered():
        same_tag = method.training.__struct_config__.tag == training.__struct_config__.tag
        if same_tag and method.training is not training:
            raise ConfigError(
                f"tag {training.__struct_config__.tag!r} is that of {method.training.__qualname__}",
                place=place,
                remedy=f'give it another, such as tag="{name}"',
            )
        if method.training is training and method.client_half != client_half:
            raise ConfigError(
                f"{training.__qualname__} is trained by {method.client_half} already, not by {client_half}",
                place=place,
                remedy="derive a struct of its own from it",
            )


def client_half_name(training: Training) -> str:
    """`package.module:name` of the client half that trains what a plan says."""
    name: str = next(method.client_half for _, method in METHODS.items() if method.training is type(training))
    return name


_CLIENT = "edge_client.worker.methods"


def _own(name: str, training: type[Training], module: str, settings: str, half: str, client_half: str) -> None:
    register_method(
        name,
        settings=f"fedcore.methods.{module}:{settings}",
        server_half=f"fedcore.methods.{module}:{half}",
        client_half=f"{_CLIENT}.{client_half}",
    )(training)


_own("fedkrso", SubspaceTraining, "fedkrso", "FedKRSOSettings", "FedKRSO", "fedkrso.half:FedKRSO")
_own("fedavg", DenseTraining, "whole.fedavg", "FedAvgSettings", "FedAvg", "whole.fedavg:FedAvg")
_own("fedcybgd", BlockTraining, "whole.fedcybgd", "FedCyBGDSettings", "FedCyBGD", "whole.fedcybgd:FedCyBGD")
_own("spafl", ThresholdTraining, "whole.spafl", "SpaFLSettings", "SpaFL", "whole.spafl:SpaFL")
_own("fedit", FactorTraining, "lora.factors", "FedITSettings", "LoRA", "lora.factors:LoRA")
_own("ffa-lora", FactorTraining, "lora.factors", "FFALoRASettings", "LoRA", "lora.factors:LoRA")
_own("rolora", FactorTraining, "lora.factors", "RoLoRASettings", "LoRA", "lora.factors:LoRA")
_own("fedsa-lora", FactorTraining, "lora.factors", "FedSALoRASettings", "LoRA", "lora.factors:LoRA")
_own("flora", StackedTraining, "lora.flora", "FLoRASettings", "FLoRA", "lora.factors:LoRA")
_own("fedex-lora", ResidualTraining, "lora.fedex", "FedExLoRASettings", "FedExLoRA", "lora.factors:LoRA")
_own("slora", SparseTraining, "lora.slora", "SLoRASettings", "SLoRA", "lora.slora:SLoRA")
_own("fedavg-peft", AdapterTraining, "adapters.peft", "PeftSettings", "Peft", "adapters.peft:Adapters")
_own("fedtt", TensorTrainTraining, "adapters.fedtt", "FedTTSettings", "FedTT", "adapters.fedtt:TensorTrains")
_own("fedtt+", TensorTrainTraining, "adapters.fedtt", "FedTTPlusSettings", "FedTT", "adapters.fedtt:TensorTrains")
_own("fedpeptao", PromptTraining, "prompts.fedpeptao", "FedPepTAOSettings", "FedPepTAO", "prompts.fedpeptao:Prompts")
_own("fedbpt", EvolutionTraining, "prompts.fedbpt", "FedBPTSettings", "FedBPT", "prompts.fedbpt:BlackBoxPrompt")
_own("fedkseed", ScalarTraining, "seeded.fedkseed", "FedKSeedSettings", "FedKSeed", "seeded.fedkseed:FedKSeed")
_own("fedkseed-pro", ScalarTraining, "seeded.fedkseed", "FedKSeedProSettings", "FedKSeed", "seeded.fedkseed:FedKSeed")
_own("ferret", SketchTraining, "seeded.ferret", "FerretSettings", "Ferret", "seeded.ferret:Ferret")
_own("split", SplitTraining, "split", "SplitSettings", "Split", "split:split_half")
_own("fed3r", HeadTraining, "fed3r", "Fed3RSettings", "Fed3R", "fed3r:Fed3R")
