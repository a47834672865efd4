# SPDX-License-Identifier: Apache-2.0
"""PEFT's adapters of linear layers, around our frozen ones.

PEFT puts its layer around what it takes for an `nn.Linear`: here one that computes with the 8-bit weights. Layers are
handed to PEFT side by side, away from their model, since it freezes whatever else it finds there, and looks for layers
in one of several places that share one.

Legend: m features out, n in, t tokens, r rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edge_client.worker.adapters.packages import peft_package
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.standin import StandIn
from fedcore.config.adapters import IA3, DoRA, LayerAdapter, VeRA
from fedcore.errors import ConfigError, ModelError

__all__ = ["Frozen", "lengths_of", "own_tensors", "wrapped"]

_NAME = "default"


class Frozen(nn.Linear):
    """A layer of ours, as PEFT knows one.

    Args:
        rows: m.
        columns: n.
    """

    def __init__(self, rows: int, columns: int) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = rows, columns
        self.own: SubspaceLinear | None = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """One number, seen as (m, n): PEFT asks for shape, dtype and device, and looks at no number."""
        return torch.zeros(1).expand(self.out_features, self.in_features)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The layer's."""
        return None if self.own is None else self.own.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m)."""
        assert self.own is not None
        y: Tensor = self.own(x)
        return y


def wrapped(shapes: Mapping[str, tuple[int, int]], adapter: LayerAdapter, seed: int = 0) -> dict[str, Any]:
    """PEFT's layers around frozen ones, by name; torch's own generator is left as it was.

    Args:
        shapes: (m, n) of the layers that the adapter is on.
        adapter: Which.
        seed: Of the first numbers that PEFT draws, which nobody trains from.

    Raises:
        ModelError: PEFT is not installed, or cannot make it.
        ConfigError: The adapter is on no layer.
    """
    peft = peft_package()
    if not shapes:
        ends = ", ".join(adapter.target_modules)
        raise ConfigError(f"no layer's name ends with {ends}", place="method.peft.target_modules")
    holder = nn.Module()
    # PEFT asks it where a model lies.
    holder.register_parameter("device", nn.Parameter(torch.empty(0)))
    places = {f"layer{number}": name for number, name in enumerate(shapes)}
    for place, name in places.items():
        holder.add_module(place, Frozen(*shapes[name]))
    config = _config(peft, adapter, places, seed)
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # What it says of models in general does not hold of layers side by side.
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        try:
            PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](holder, config, _NAME)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"PEFT makes no {adapter.name} here: {error}", place="method.peft") from None
    made = {}
    for place, name in places.items():
        layer: Any = holder.get_submodule(place)
        if isinstance(adapter, DoRA):
            _with_lengths(layer)
        # Of a class of its own, which modules can compute with that look at a layer's weight themselves.
        layer.__class__ = type(type(layer).__name__, (_Seen, type(layer)), {})
        made[name] = layer
    return made


_CONFIGS = {"IA3": "IA3Config", "VERA": "VeraConfig", "LORA": "LoraConfig"}


def _config(peft: Any, adapter: LayerAdapter, places: Mapping[str, str], seed: int) -> Any:
    kind, said = getattr(peft, _CONFIGS[adapter.peft_type]), adapter.settings
    # Lengths of rows are ours: PEFT would make each weight whole for them.
    said.pop("use_dora", None)
    if isinstance(adapter, IA3):
        said["feedforward_modules"] = [place for place, name in places.items() if adapter.scales_input(name)]
    if isinstance(adapter, VeRA):
        said["projection_prng_key"] = seed
    return kind(target_modules=list(places), **said)


class _Seen(nn.Module):
    """What modules see of a layer with an adapter that compute with its weight themselves."""

    @property
    def weight(self) -> StandIn:
        """With what was learned."""
        return StandIn(self)

    @property
    def base(self) -> Any:
        """Says where the layer lies."""
        return self._frozen.own.base

    @property
    def _frozen(self) -> Any:
        found: Any = self
        return found.get_base_layer()

    def unbiased(self, x: Tensor) -> Tensor:
        """The layer's output without its bias, which the caller adds."""
        y: Tensor = self(x)
        bias = self._frozen.bias
        return y if bias is None else y - bias


def own_tensors(layer: Any) -> dict[str, Tensor]:
    """What PEFT's layer adds to the frozen one, by its name without the adapter's: those that train and those that do
    not."""
    out: dict[str, Tensor] = {}
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if not name.startswith("base_layer.") and not name.endswith(".base"):
            out[name.replace(f".{_NAME}", "")] = tensor
    return out


def _with_lengths(layer: Any) -> None:
    """Have PEFT's LoRA layer compute as DoRA, with lengths of rows that need no whole weight."""
    from peft.tuners.lora.variants import DoraLinearVariant

    layer.adapter_layer_names = (*layer.adapter_layer_names, "lora_magnitude_vector")
    layer.lora_magnitude_vector[_NAME] = _Lengths(layer.out_features)
    layer.lora_variant[_NAME] = DoraLinearVariant()


def lengths_of(layer: Any) -> _Lengths | None:
    """What a DoRA layer knows of the lengths of its rows; None in other layers."""
    made = (module for module in layer.modules() if isinstance(module, _Lengths))
    return next(made, None)


class _Lengths(nn.Module):
    """DoRA's part: the length of each row of W + s B A, which is learned apart.

    The length that a row has by itself is |w|^2 + 2 s b A w + s^2 b A A^T b for a row w of W and b of B: with |w| once
    computed, that takes a product of r rows with W and no whole weight. No gradient goes through it, as in the paper
    (section 4.3) and in PEFT.

    Args:
        rows: m.
    """

    base: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows))
        self.register_buffer("base", torch.ones(rows), persistent=False)

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: nn.Linear,  # noqa: N803 - PEFT's names
        lora_B: nn.Linear,  # noqa: N803
        scaling: float,
        base_layer: Frozen,
        base_result: Tensor | None = None,
        adapter_name: str = _NAME,
    ) -> Tensor:
        """What is added to W x + bias."""
        assert base_result is not None, "PEFT leaves it out where there is dropout, and there is none"
        factor = (self.weight / self._present(lora_A.weight, lora_B.weight, scaling, base_layer)).view(1, -1)
        bias = base_layer.bias
        product = base_result if bias is None else base_result - bias
        y: Tensor = (factor - 1) * product + factor * lora_B(lora_A(x)) * scaling
        return y

    @torch.no_grad()
    def _present(self, down: Tensor, up: Tensor, scaling: float, base_layer: Frozen) -> Tensor:
        """Lengths (m,) of the rows of W + s B A."""
        assert base_layer.own is not None
        across = base_layer.own.biased(down, None)  # (r, m): A W^T
        squares = self.base.square() + 2 * scaling * (up * across.T).sum(1)
        squares += scaling**2 * ((up @ (down @ down.T)) * up).sum(1)
        return squares.clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()
