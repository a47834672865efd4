# SPDX-License-Identifier: Apache-2.0
"""A model's blocks, which of them are alike, and the model with only so many of them as a trace needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edge_client.worker.model.built import BuiltModel

__all__ = ["Repetition", "period_of", "repetition", "shortened"]

_Value = tuple[str, object]


@dataclass(frozen=True, eq=False)
class Repetition:
    """Blocks of a model that come again and again.

    Attributes:
        parent: The module that holds them.
        name: Their name in it.
        blocks: All of them.
        lead: So many at the beginning are not like later ones.
        period: After so many the same comes again: 2 where every other one looks at a window.
        kept: So many of the first are enough to see whether they repeat, and how.
    """

    parent: nn.Module
    name: str
    blocks: nn.ModuleList
    lead: int
    period: int
    kept: int

    @property
    def fewest(self) -> int:
        """So many are enough to see how, where it is known that they do."""
        return self.kept - self.period

    def copies(self, kept: int) -> int:
        """Periods that are not traced where so many blocks are."""
        return (len(self.blocks) - kept) // self.period

    @property
    def pattern(self) -> Sequence[nn.Module]:
        """One period's blocks."""
        return list(self.blocks)[self.kept - self.period : self.kept]


def repetition(model: BuiltModel) -> Repetition | None:
    """The blocks of a model that need not all be traced; None where there are too few, or they are not alike.

    Blocks are alike that have the same parts, with tensors of the same shapes and the same settings, and of which every
    list in the configuration that has an entry a block says the same. That they do the same shows in the trace.
    """
    found = _longest_list(model.backbone)
    if found is None:
        return None
    parent, name, blocks = found
    kinds = [hash(kind) for kind in _kinds(blocks, model.module.config)]
    # Of shared weights the gradient is there once, whatever the number of blocks.
    held = [{id(tensor) for tensor in block.parameters()} for block in blocks]
    if sum(map(len, held)) != len(set().union(*held)):
        return None
    shape = period_of(kinds)
    return None if shape is None else Repetition(parent, name, blocks, *shape)


def period_of(kinds: Sequence[object]) -> tuple[int, int, int] | None:
    """(lead, period, how many to keep) of the shortest beginning that shows how a sequence goes on; None where that is
    all of it.

    Example:
        >>> period_of("b" * 30), period_of("wwwf" * 6), period_of("d" + "m" * 9), period_of("ab")
        ((0, 1, 4), (0, 4, 12), (1, 1, 5), None)
    """
    count, best = len(kinds), None
    for period in range(1, count // 2):
        lead = next((at + 1 for at in range(count - period - 1, -1, -1) if kinds[at] != kinds[at + period]), 0)
        kept = lead + 2 * period + 2
        kept += (count - kept) % period
        if kept < count and (best is None or kept < best[2]):
            best = lead, period, kept
    return best


@contextmanager
def shortened(found: Repetition, kept: int) -> Iterator[Sequence[nn.Module]]:
    """The model with the first blocks alone, for a while; these blocks."""
    few = nn.ModuleList(list(found.blocks)[:kept])
    found.parent._modules[found.name] = few
    try:
        yield list(few)
    finally:
        found.parent._modules[found.name] = found.blocks


def _longest_list(backbone: nn.Module) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of modules that has most of the backbone's numbers."""
    lists = [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    return max(lists, key=lambda entry: _numbers(entry[2]), default=None)


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _kinds(blocks: nn.ModuleList, config: Any) -> list[tuple[object, ...]]:
    """What of each block another one may have otherwise."""
    count = len(blocks)
    listed = [value for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == count]
    said = [
        [*_values(block, index), *((f"config {place}", str(entries[index])) for place, entries in enumerate(listed))]
        for index, block in enumerate(blocks)
    ]
    # Numbers that only count the blocks differ, and mean nothing.
    by_name = [dict(values) for values in said]
    counters = {
        name
        for name, first in said[0]
        if type(first) is int and all(other.get(name) == first + index for index, other in enumerate(by_name))
    }
    return [tuple(value for value in values if value[0] not in counters) for values in said]


def _values(block: nn.Module, index: int) -> Iterator[_Value]:
    for place, module in block.named_modules():
        yield place, f"{type(module).__module__}.{type(module).__qualname__}"
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for own, tensor in value.items():
                    yield f"{place}.{own}", _of_tensor(tensor)
            elif not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | None):
                yield f"{place}.{name}", value.replace(f".{index}.", ".#.") if isinstance(value, str) else _plain(value)


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | None) else str(value)


def _of_tensor(tensor: Tensor | None) -> object:
    return None if tensor is None else (tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
