# SPDX-License-Identifier: Apache-2.0
"""What `edge_client.worker.model.loading.build` gives: a transformers module, and beside it, not on it, the parts that
training needs by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from edge_client.worker.model.head import OutputHead
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.padding import Padding
from fedcore.weights.schema import AdapterTensor

__all__ = ["CANNOT_RUN", "BuiltModel"]

CANNOT_RUN = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model of transformers may raise that cannot be run in the way it is asked to."""


@dataclass(frozen=True, eq=False)
class BuiltModel:
    """A model of a task, built on a base.

    A model that somebody else built, with nothing in it to be trained by name, is `BuiltModel(module)`.

    Attributes:
        module: The model as transformers has it, for the task; it has nothing of ours but modules in place of its own.
        layers: Target layers by canonical name. A method may put modules of its own in their places in `module`; the
            layers stay here, with the base.
        tensors: Parameters trained whole, by canonical name; float32.
        padding: What the layers share about a micro-batch.
        output_weight: The output head: the output embedding's W (v, n), v words and n numbers a hidden state, and what
            the model does beside its product, for the loss that never makes logits whole; None for a task with a head.
            It shares its storage with the parameters in `module`.
        adapter: What an adapter that a method puts into it must add.
    """

    module: nn.Module
    layers: Mapping[str, SubspaceLinear] = field(default_factory=lambda: MappingProxyType({}))
    tensors: Mapping[str, nn.Parameter] = field(default_factory=lambda: MappingProxyType({}))
    padding: Padding = field(default_factory=Padding)
    output_weight: OutputHead | None = None
    adapter: tuple[AdapterTensor, ...] = ()

    @property
    def backbone(self) -> nn.Module:
        """The module within `module` that makes hidden states (b, t, n) of token ids (b, t)."""
        found: nn.Module = getattr(self.module, str(self.module.base_model_prefix))
        return found

    @property
    def pad_id(self) -> int:
        """The token that fills up a micro-batch. Not the tokenizer's idea of it: classifiers of the Llama kind find a
        text's last token by this one."""
        config: Any = self.module.config
        return int(getattr(config, "pad_token_id", None) or 0)

    @property
    def takes_types(self) -> bool:
        """Whether its inputs have `token_type_ids`, which tell the first text of a pair from the second."""
        return (getattr(self.module.config, "type_vocab_size", 0) or 0) > 0

    def put_around(self, modules: Mapping[str, nn.Module]) -> None:
        """Put modules in the places of target layers, everywhere where a layer stands.

        Args:
            modules: By the layer's name; each may have the layer in it.
        """
        sought = {id(self.layers[name]): module for name, module in modules.items()}
        # Found first: what is put there has layers in it.
        places = [place for place, one in self.module.named_modules(remove_duplicate=False) if id(one) in sought]
        found = [(place, sought[id(self.module.get_submodule(place))]) for place in places]
        for place, module in found:
            parent, _, last = place.rpartition(".")
            setattr(self.module.get_submodule(parent), last, module)

    def parts(self) -> Iterator[nn.Module]:
        """All modules: those of `module`, and the output embedding's weight."""
        yield from self.module.modules()
        if self.output_weight is not None:
            yield self.output_weight

    def held(self) -> list[Tensor]:
        """All parameters and buffers; those that share a storage, each."""
        beside = () if self.output_weight is None else self.output_weight.buffers()
        return [*self.module.parameters(), *self.module.buffers(), *beside]
