# SPDX-License-Identifier: Apache-2.0
"""A layer's large products in a trace: each kind is run once, and then its events are written down again.

In such a product a layer dequantises its weight, multiplies, and lets go of all but the result. Which storages come and
go is decided by the layer's shape, what was learned, and the tokens: the same in each block, in each pass of as many
tokens, and whatever is recomputed. It is half of a trace's operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.weights import FloatWeight, Int8Weight
from edge_client.worker.trace.timeline import Event, Timeline

__all__ = ["Products"]


class Products:
    """What is known of the products of a model's layers."""

    def __init__(self) -> None:
        self._known: dict[object, list[Event]] = {}

    @contextmanager
    def remembered(self, layers: Iterable[SubspaceLinear], counter: Any) -> Iterator[None]:
        """Layers whose products are run once for a while.

        Args:
            layers: Of the model that is traced.
            counter: Writes events down (`LiveBytes`).
        """
        changed = [layer for layer in layers if _is_plain(layer)]
        for layer in changed:
            layer.product = partial(self._product, layer, counter)  # type: ignore[method-assign]
            layer.transposed_product = partial(self._transposed, layer, counter)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in changed:
                del layer.product, layer.transposed_product

    def _product(self, layer: SubspaceLinear, counter: Any, x: Tensor, out: Tensor, beta: int) -> Tensor:
        timeline: Timeline = counter.timeline
        key = "product", counter.phase, beta, _kind_of(layer), x.shape, x.stride(), x.dtype
        known = self._known.get(key)
        if known is not None:
            timeline.events += known
            return out
        begin = len(timeline.events)
        SubspaceLinear.product(layer, x, out, beta)
        self._known[key] = timeline.events[begin:]
        return out

    def _transposed(self, layer: SubspaceLinear, counter: Any, gy: Tensor) -> Tensor:
        timeline: Timeline = counter.timeline
        key = "transposed", counter.phase, _kind_of(layer), gy.shape, gy.stride(), gy.dtype
        before, after = (*key, "before"), (*key, "after")
        known = self._known.get(before)
        if known is not None:
            timeline.events += known
            gx = gy.new_empty(gy.shape[0], layer.in_features)
            timeline.events += self._known[after]
            return gx
        begin = len(timeline.events)
        gx = SubspaceLinear.transposed_product(layer, gy)
        place = counter.place_of(gx)
        if gx.shape == (gy.shape[0], layer.in_features) and gx.dtype == gy.dtype and place is not None:
            self._known[before] = timeline.events[begin:place]
            self._known[after] = timeline.events[place + 1 :]
        return gx


def _is_plain(layer: SubspaceLinear) -> bool:
    """Whether nothing of a product stays in buffers: in 16-bit types some does."""
    ours = type(layer).product is SubspaceLinear.product
    whole = layer.compute_dtype == torch.float32 and type(layer.base) in (Int8Weight, FloatWeight)
    return ours and whole and not layer.dequantised.on


def _kind_of(layer: SubspaceLinear) -> object:
    factor, projection = layer.factor, layer.projection
    return (
        layer.base.shape,
        type(layer.base),
        layer.active,
        layer.rank,
        None if factor is None else factor.shape,
        None if projection is None else projection.shape,
        layer.state is None,
        layer.row_scale is None,
        tuple(layer.accumulators()),
    )
