# SPDX-License-Identifier: Apache-2.0
"""The linear layer that is trained in random subspaces, and the frozen weights below it.

    y = x W^T + bias + (x P^T) F^T        W (m, n) frozen, P (K r, n) small integers times a scale, F (m, K r) the side
    factor

F is the published state plus the round's accumulators plus, in the r columns of the subspace that trains, the factor B.
Training memory is what decides whether a device can take part, so of a forward pass only z = x P_k^T (tokens, r) is
kept: the gradient of B is gy^T z, and the gradient of x needs only W and F, which are there anyway. W is dequantised in
blocks of rows, so that no more than one block of it exists in floating point. Where memory is plenty, W + F P
without B is kept whole in float32 (`dequantised`).

z is computed and kept by a node of its own, in front of the large product. Checkpointing (torch stops recomputing once
the last kept tensor is back) therefore never recomputes the last large product of a block.

Legend: m features out, n in, t tokens, r rank, K subspaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edge_client.worker.model import products16
from edge_client.worker.model.dequantised import DequantisedWeight
from edge_client.worker.model.padding import Padding
from edge_client.worker.model.standin import StandIn
from edge_client.worker.model.weights import FloatWeight, Int8Weight, Scratch, Weight, row_blocks
from fedcore.errors import ExactnessError, ModelError

__all__ = ["FloatWeight", "Int8Weight", "Scratch", "SubspaceLinear", "Weight"]

# Rows of W, their values, and their side factor unless it is zero or merged into the values.
_Block = tuple[slice, Tensor, Tensor | None]


class SubspaceLinear(nn.Module):
    """A linear layer with a frozen base and a side path, of which one subspace trains at a time.

    Args:
        name: The layer's canonical name; errors carry it.
        base: The frozen W (m, n).
        bias: (m,), or None. A parameter is kept as it is, so that it can be trained or frozen.
        compute_dtype: dtype of the large products; what goes in and comes out is float32, cast back to the input's
            dtype.
        block_rows: Rows of W that are dequantised at a time; each takes n floats. No faster beyond 256.
        scratch: Buffer for the blocks, shared by the layers of a model. None: from the allocator on each call.
        padding: Says which tokens are real, shared by the layers of a model. None: all.

    Raises:
        ModelError: The bias does not fit the base.
    """

    factor: nn.Parameter | None
    projection: Tensor | None
    row_scale: Tensor | None
    by_example: Callable[[SubspaceLinear, Tensor, Tensor | None], Tensor] | None = None
    state: Tensor | None
    state_scale: Tensor | None

    def __init__(
        self,
        name: str,
        base: Weight,
        bias: Tensor | None = None,
        *,
        compute_dtype: torch.dtype = torch.float32,
        block_rows: int = 256,
        scratch: Scratch | None = None,
        padding: Padding | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.out_features, self.in_features = base.shape
        if bias is not None and bias.shape != (self.out_features,):
            raise ModelError(f"bias {tuple(bias.shape)} for {self.out_features} rows", place=name)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.bias = bias
        self.compute_dtype = compute_dtype
        self.block_rows = block_rows
        self.scratch = scratch
        self.padding = padding
        self.dequantised = DequantisedWeight()
        self.rank = 0
        self.scale = 1.0
        self.active: int | None = None
        self.register_parameter("factor", None)
        for buffer in ("projection", "row_scale", "state", "state_scale"):
            self.register_buffer(buffer, None, persistent=False)
        self._accumulators: dict[int, Tensor] = {}

    def install(
        self,
        projection: Tensor,
        rank: int,
        *,
        state: Tensor | None = None,
        state_scale: Tensor | None = None,
        accumulators: Mapping[int, Tensor] | None = None,
        scale: float | None = None,
        row_scale: Tensor | None = None,
    ) -> None:
        """Begin a round: the pool's subspaces and what has been learned in them. Nothing trains until `select`.

        Args:
            projection: int8 (K r, n); subspace k is rows k r to (k + 1) r.
            rank: r, the plan's rank, also where this device trains fewer rows.
            state: int16 (m, K r) as published, or None where all is zero.
            state_scale: float32 (m,); the cumulative state is state * state_scale[:, None].
            accumulators: Accumulators of this round's finished intervals, where a restarted worker goes on.
            scale: Factor on P; None means 1 / sqrt(r), so that E[P^T P] = I with signs.
            row_scale: float32 (K r,), a power of two for each row beside it, or None for ones.

        Raises:
            ExactnessError: A tensor does not have the shape or dtype the plan implies.
        """
        width = projection.shape[0]
        fits = projection.dtype == torch.int8 and projection.shape == (width, self.in_features)
        if not fits or rank < 1 or width % rank:
            raise ExactnessError(
                f"projection {projection.dtype} {tuple(projection.shape)}, rank {rank}", place=self.name
            )
        if (state is None) != (state_scale is None):
            raise ExactnessError("a state comes with its row scales", place=self.name)
        if state is not None and state_scale is not None:
            matrix, vector = (self.out_features, width), (self.out_features,)
            if state.dtype != torch.int16 or state.shape != matrix or state_scale.shape != vector:
                raise ExactnessError(f"state {state.dtype} {tuple(state.shape)}, not int16 {matrix}", place=self.name)
        restored = dict(accumulators or {})
        for k, accumulator in restored.items():
            if not 0 <= k < width // rank or accumulator.shape != (self.out_features, rank):
                raise ExactnessError(f"accumulator {tuple(accumulator.shape)} of subspace {k}", place=self.name)
        device = self.base.device
        self.projection = projection.to(device)
        self.rank = rank
        self.scale = 1.0 / math.sqrt(rank) if scale is None else scale
        self.row_scale = None if row_scale is None else row_scale.to(device, torch.float32)
        self.state = None if state is None else state.to(device)
        self.state_scale = None if state_scale is None else state_scale.to(device, torch.float32)
        self._accumulators = {k: a.to(device, torch.float32, copy=True) for k, a in restored.items()}
        self.dequantised.changed()
        self.active, self.factor = None, None

    def select(self, subspace_index: int | None, rank: int | None = None) -> None:
        """Begin an interval: `factor` becomes zero, float32 (m, rank), and trains in this subspace.

        Args:
            subspace_index: k of the pool, or None: nothing trains.
            rank: Train only the first rows of P_k, on devices with less memory. None means all r.

        Raises:
            ExactnessError: No such subspace, or a rank beyond the plan's.
        """
        self.active, self.factor = subspace_index, None
        if subspace_index is None:
            return
        rank = self.rank if rank is None else rank
        pool = 0 if self.projection is None else self.projection.shape[0] // self.rank
        if not 0 <= subspace_index < pool or not 1 <= rank <= self.rank:
            raise ExactnessError(f"subspace {subspace_index} of {pool}, rank {rank} of {self.rank}", place=self.name)
        self.factor = nn.Parameter(torch.zeros(self.out_features, rank, device=self.base.device))

    @torch.no_grad()
    def absorb(self) -> None:
        """End an interval: add the factor to the accumulator of its subspace and set it to zero."""
        if self.active is None or self.factor is None:
            return
        if self.active not in self._accumulators:
            self._accumulators[self.active] = self.factor.new_zeros(self.out_features, self.rank)
        self._accumulators[self.active][:, : self.factor.shape[1]] += self.factor
        self.dequantised.changed()
        self.factor.zero_()
        self.factor.grad = None

    @torch.no_grad()
    def restore_accumulator(self, subspace_index: int, accumulator: Tensor) -> None:
        """Take back what finished intervals left in a subspace, float32 (m, r).

        Raises:
            ExactnessError: No such subspace, or another shape.
        """
        pool = 0 if self.projection is None else self.projection.shape[0] // self.rank
        if not 0 <= subspace_index < pool or accumulator.shape != (self.out_features, self.rank):
            raise ExactnessError(
                f"accumulator {tuple(accumulator.shape)} of subspace {subspace_index}", place=self.name
            )
        self._accumulators[subspace_index] = accumulator.to(self.base.device, torch.float32, copy=True)
        self.dequantised.changed()

    def replace_base(self, base: Weight) -> None:
        """Take another frozen W of the same shape."""
        self.base = base
        self.dequantised.changed()

    def accumulators(self) -> dict[int, Tensor]:
        """The round's accumulators so far: float32 (m, r) by subspace index, only those used. Not copies."""
        return dict(self._accumulators)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.name}, in={self.in_features}, out={self.out_features}, rank={self.rank}, active={self.active}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m), differentiable in x, the factor and the bias."""
        flat = x.reshape(-1, self.in_features)  # (t, n)
        product = partial(self.biased, bias=self.bias)
        y = product(flat) if self.padding is None else self.padding.left_out(flat, product)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    @property
    def weight(self) -> StandIn:
        """W + F P, for modules that compute with it themselves."""
        return StandIn(self)

    def biased(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(t, n) to float32 (t, m), with a bias of the caller's."""
        x = x.to(torch.float32)
        y: Tensor = _FrozenProduct.apply(x, self._start(x, bias), self)  # type: ignore[no-untyped-call]
        return y

    def active_pair(self) -> tuple[Tensor, Tensor] | None:
        """The factor (m, r') without its graph, and its rows of P / scale (r', n); None where nothing trains."""
        if self.factor is None or self.active is None or self.projection is None:
            return None
        return self.factor.detach(), self.subspace_rows(self.active, self.factor.shape[1])

    def _start(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """bias + z B^T (t, m), float32 whatever the compute dtype: what trains, left to autograd, which keeps z."""
        bias = None if bias is None else bias.to(torch.float32)
        if self.factor is None or self.active is None or self.projection is None:
            return None if bias is None else bias.expand(x.shape[0], -1).clone()
        rows = self.subspace_rows(self.active, self.factor.shape[1])  # (r', n)
        z = (x.detach() @ rows.T).mul_(self.scale)  # (t, r')
        if self.by_example is not None:
            return self.by_example(self, z, bias)
        return z @ self.factor.T if bias is None else torch.addmm(bias, z, self.factor.T)

    def subspace_rows(self, subspace_index: int, rank: int) -> Tensor:
        """The first rows of P_k / scale, float32 (rank, n)."""
        assert self.projection is not None
        own = slice(subspace_index * self.rank, subspace_index * self.rank + rank)
        rows = self.projection[own].to(torch.float32)
        return rows if self.row_scale is None else rows.mul_(self.row_scale[own, None])

    def _side(self, rows: slice, *, with_factor: bool) -> Tensor:
        """F (rows, K r) float32, valid until the next call; its factor's part is the forward pass' `_start`."""
        assert self.projection is not None
        shape = (rows.stop - rows.start, self.projection.shape[0])
        side = (self.scratch or Scratch()).take("side", shape, torch.float32, self.base.device)
        if self.state is not None and self.state_scale is not None:
            side.copy_(self.state[rows]).mul_(self.state_scale[rows, None])
        else:
            side.zero_()
        for k, accumulator in self._accumulators.items():
            side[:, k * self.rank : (k + 1) * self.rank] += accumulator[rows]
        if with_factor and self.factor is not None and self.active is not None:
            first = self.active * self.rank
            side[:, first : first + self.factor.shape[1]] += self.factor.detach()[rows]
        return side

    def signs(self, *, with_factor: bool) -> Tensor | None:
        """P / scale (K r, n) in the compute dtype, valid until the next call; None where the side factor is zero."""
        learned = self.state is not None or bool(self._accumulators)
        if self.projection is None or not (learned or (with_factor and self.factor is not None)):
            return None
        signs = (self.scratch or Scratch()).take("signs", self.projection.shape, self.compute_dtype, self.base.device)
        signs.copy_(self.projection)
        return signs if self.row_scale is None else signs.mul_(self.row_scale[:, None])

    def _merges(self, tokens: int) -> bool:
        """Whether F P is added to the blocks of W, for m n K r products, or kept aside, for t (m + n) K r; never in
        16-bit types (`products16`), where a small update would be rounded away."""
        m, n = self.out_features, self.in_features
        return tokens * (m + n) > m * n

    def blocks(self, signs: Tensor | None, *, merge: bool, with_factor: bool) -> Iterator[_Block]:
        """W in blocks of rows, each valid until the next."""
        scratch = self.scratch or Scratch()
        for rows in row_blocks(self.out_features, self.block_rows):
            shape = (rows.stop - rows.start, self.in_features)
            block = self.base.copy_rows(rows, scratch.take("block", shape, self.compute_dtype, self.base.device))
            if signs is None:
                yield rows, block, None
                continue
            side = self._side(rows, with_factor=with_factor).to(self.compute_dtype)
            if merge:
                yield rows, block.addmm_(side, signs, alpha=self.scale), None
            else:
                yield rows, block, side

    def product(self, x: Tensor, out: Tensor, beta: int) -> Tensor:
        """out (t, m) becomes beta out + x W'^T, where W' = W + F P less the active factor; x is (t, n)."""
        if self.compute_dtype != torch.float32:
            return products16.product(self, x, out if beta else out.zero_())
        if self.dequantised.on:
            return self.dequantised.product(self, x, out, beta)
        signs = self.signs(with_factor=False)
        merge = self._merges(x.shape[0])
        z = None if signs is None or merge else (x @ signs.T).mul_(self.scale)  # (t, K r)
        for rows, block, side in self.blocks(signs, merge=merge, with_factor=False):
            out[:, rows].addmm_(x, block.T, beta=beta)
            if z is not None and side is not None:
                out[:, rows].addmm_(z, side.T)
        self.base.release()
        return out

    def transposed_product(self, gy: Tensor) -> Tensor:
        """gy (W + F P), the gradient of x (t, n), with gy (t, m) and all of F."""
        if self.compute_dtype != torch.float32:
            return products16.transposed_product(self, gy)
        if self.dequantised.on:
            return self.dequantised.transposed_product(self, gy)
        signs = self.signs(with_factor=True)
        merge = self._merges(gy.shape[0])
        gx = gy.new_empty(gy.shape[0], self.in_features)
        gz = None if signs is None or merge else gy.new_zeros(gy.shape[0], signs.shape[0])  # (t, K r)
        for rows, block, side in self.blocks(signs, merge=merge, with_factor=True):
            gx.addmm_(gy[:, rows], block, beta=int(rows.start > 0))
            if gz is not None and side is not None:
                gz.addmm_(gy[:, rows], side)
        self.base.release()
        if gz is not None and signs is not None:
            gx.addmm_(gz, signs, alpha=self.scale)
        return gx


class _FrozenProduct(torch.autograd.Function):
    """start + x W'^T, which keeps nothing: the layer has all that the gradient of x needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor | None, layer: SubspaceLinear) -> Tensor:
        ctx.layer = layer
        if start is None:
            return layer.product(x, x.new_empty(x.shape[0], layer.out_features), beta=0)
        ctx.mark_dirty(start)
        return layer.product(x, start, beta=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gx = ctx.layer.transposed_product(gy) if ctx.needs_input_grad[0] else None
        return gx, gy if ctx.needs_input_grad[1] else None, None
