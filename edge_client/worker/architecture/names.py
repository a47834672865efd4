# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a checkpoint a model's parameters are made of: what `from_pretrained` would do, told beforehand.

transformers renames tensors as it loads (LayerNorm's `gamma`, a base model's prefix), and makes one parameter of many
tensors (the experts of a mixture). Its own conversions are asked here, so that no list of ours can drift from them. A
parameter that comes by a conversion that nobody here can follow back is refused by name, as is one that the checkpoint
does not have at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.worker.architecture.pooled import PooledClassifier
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Tensors, hash_entry, to_float32
from fedcore.weights.quantise import INT8_MAX

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightConverter

__all__ = ["Stored", "same_numbers", "stored_tensors"]


@dataclass(frozen=True)
class Stored:
    """Where a parameter's numbers lie.

    Attributes:
        parts: Of a parameter that is one tensor, that tensor's name, once in one part. Of experts (e, m, n) that lie in
            tensors of their own, for each part of the rows the names of the e tensors.
        conversion: What transformers does to the tensors, where this package cannot follow; else empty.
    """

    parts: tuple[tuple[str, ...], ...]
    conversion: str = ""

    @property
    def name(self) -> str:
        """The one tensor's name, or the first one's."""
        return self.parts[0][0]

    @property
    def single(self) -> bool:
        """Whether the parameter is one tensor as it lies there."""
        return not self.conversion and len(self.parts) == len(self.parts[0]) == 1

    def numbers(self, checkpoint: Tensors) -> Tensor:
        """The parameter, float32.

        Raises:
            ModelError: It comes by a conversion that is not followed here.
        """
        if self.conversion:
            raise ModelError(
                f"{self.name!r} and others become one parameter by {self.conversion}, which is not understood",
                place=str(checkpoint.folder),
            )

        def one(name: str) -> Tensor:
            entry = checkpoint.tensors[name]
            values = torch.from_numpy(to_float32(checkpoint.read(name), entry.dtype))
            scale = f"{name.removesuffix('.weight')}.SCB"
            if entry.dtype == "I8" and scale in checkpoint.tensors:
                # bitsandbytes: a row's largest magnitude is 127.
                rows = torch.from_numpy(to_float32(checkpoint.read(scale), checkpoint.tensors[scale].dtype))
                return values * (rows.reshape(-1, 1) / INT8_MAX)
            if entry.dtype in ("I8", "U8"):
                raise ModelError(
                    f"{name!r} holds {entry.dtype} numbers without bitsandbytes' scales",
                    place=str(checkpoint.folder),
                    remedy="use the original, in floating point",
                )
            return values

        if self.single:
            return one(self.name)
        return torch.cat([torch.stack([one(name) for name in part]) for part in self.parts], dim=1)


def stored_tensors(model: Any, checkpoint: Tensors, *, tied: bool = True) -> dict[str, Stored | None]:
    """Of each parameter and saved buffer of a model where its numbers lie; None where the checkpoint has none.

    Args:
        model: Of transformers, on any device.
        checkpoint: Its tensors' names and shapes.
        tied: Let a parameter that the checkpoint does not have be one that the model ties it to.
    """
    if isinstance(model, PooledClassifier):
        inside = stored_tensors(model.backbone, checkpoint, tied=tied)
        named = {f"{model.base_model_prefix}.{name}": stored for name, stored in inside.items()}
        return {name: named.get(name) for name in model.state_dict()}
    # Here, not above: a worker hides packages that it does not need before transformers' models are imported.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    shapes = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix = model.base_model_prefix
    direct: dict[str, str] = {}
    gathered: dict[str, dict[str, list[str]]] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, shapes)
        if target not in shapes and name in shapes:
            target, pattern = rename_source_key(name, [], [], prefix, shapes)
        if target not in shapes:
            continue
        if pattern is None:
            direct.setdefault(target, name)
        else:
            gathered.setdefault(target, {}).setdefault(pattern, []).append(name)
    found = {target: Stored(((name,),)) for target, name in direct.items()}
    for target, sources in gathered.items():
        for one, stored in _converted(target, sources, by_pattern).items():
            found.setdefault(one, stored)
    others = _tied_names(model) if tied else {}
    return {name: _first(found, (name, *others.get(name, ()))) for name in shapes}


def same_numbers(checkpoint: Tensors, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint hold the same numbers; read piece by piece where they are of one dtype."""
    first, second = checkpoint.tensors[one], checkpoint.tensors[other]
    if one == other or first.shape != second.shape:
        return one == other
    if first.dtype == second.dtype:
        return hash_entry(first) == hash_entry(second)
    values, others = (to_float32(checkpoint.read(name), checkpoint.tensors[name].dtype) for name in (one, other))
    return np.array_equal(values, others)


def _first(found: Mapping[str, Stored], names: tuple[str, ...]) -> Stored | None:
    return next((found[name] for name in names if name in found), None)


def _tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of parameters that have more than one."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in by_identity.values() if len(names) > 1 for name in names}


def _converted(
    target: str, sources: Mapping[str, list[str]], by_pattern: Mapping[str, WeightConverter]
) -> dict[str, Stored]:
    """What a converter makes: one parameter of experts, or anything else, which is only named."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    converter = by_pattern[next(iter(sources))]
    names = tuple(tuple(sources.get(pattern, ())) for pattern in converter.source_patterns)
    stacked = [
        isinstance(one, MergeModulelist) and one.dim == 0
        if index == 0
        else isinstance(one, Concatenate) and one.dim == 1
        for index, one in enumerate(converter.operations)
    ]
    same_number = len({len(part) for part in names}) == 1 and bool(names[0])
    if all(stacked) and len(stacked) == 1 + (len(names) > 1) and same_number:
        return {target: Stored(names)}
    conversion = " and ".join(type(one).__name__ for one in converter.operations)
    given = tuple(part for part in names if part)
    targets = converter.target_patterns
    return {target.replace(targets[0], one): Stored(given, conversion) for one in targets}
