# SPDX-License-Identifier: Apache-2.0
"""Parts of transformers rewritten to keep less for the backward pass. Same numbers, same parameter names.

- RMS norm: keeps x in its own dtype and one number per token (the original keeps a float32 copy of a 16-bit x, and the
  normed x where the weight trains), and goes back in blocks of tokens instead of through six matrices of x's size.
- Gated MLP: keeps what gate and up gave, recomputes silu(gate) * up, and writes the gradients over what was kept. Where
  memory is short it keeps its input instead of the (wider) gate, and computes the gate once more.

LayerNorm, GELU and scaled dot-product attention have native backward passes that keep as little; they stay.

`fuse` knows a module by its parts and then by its numbers: whatever does not give the same output as the replacement on
a small probe (Gemma's norm, which multiplies by 1 + weight; another activation; another order of operations) is left
alone.

Legend: t tokens, n features, i features inside the MLP.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from edge_client.worker.model.weights import worth_running

__all__ = ["FusedGatedMLP", "FusedRMSNorm", "fuse"]

# Elements of one token block in the backward passes: small enough for a core's second-level cache.
_BLOCK_ELEMENTS = 131_072


def fuse(model: nn.Module) -> int:
    """Replace the RMS norms and gated MLPs inside a model by those that keep less; returns how many.

    Candidates are compared by what small twins of them compute, so that the model's own weights need not be there.
    """
    replaced = 0
    for name, module in list(model.named_modules()):
        fused = _fused(module)
        if name and fused is not None:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, fused)
            replaced += 1
    return replaced


_FEATURES = 8


def _fused(module: nn.Module) -> nn.Module | None:
    """The replacement of a module, or None where there is none that gives the same numbers."""
    if isinstance(module, FusedGatedMLP | FusedRMSNorm):
        return None
    children = dict(module.named_children())
    own = dict(module.named_parameters(recurse=False))
    if children.keys() >= {"gate_proj", "up_proj", "down_proj"} and not own:
        twin = _twin(
            module,
            modules={**children, **{part: _small_linear(part) for part in ("gate_proj", "up_proj", "down_proj")}},
        )
        return _made(FusedGatedMLP, module) if _agree(twin, _made(FusedGatedMLP, twin)) else None
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not children and own.keys() == {"weight"} and own["weight"].ndim == 1 and isinstance(eps, float):
        weight = nn.Parameter(torch.linspace(0.5, 1.5, _FEATURES, dtype=own["weight"].dtype))
        twin = _twin(module, parameters={"weight": weight})
        return _made(FusedRMSNorm, module) if _agree(twin, _made(FusedRMSNorm, twin)) else None
    return None


def _made(kind: type[nn.Module], module: Any) -> nn.Module:
    """The replacement of `kind` with the parts of a module."""
    new: nn.Module
    if kind is FusedGatedMLP:
        new = FusedGatedMLP(module.gate_proj, module.up_proj, module.down_proj)
    else:
        new = FusedRMSNorm(
            module.weight, module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        )
    return new.train(module.training)


def _twin(module: nn.Module, *, modules: Any = None, parameters: Any = None) -> nn.Module:
    """A module with the same code and settings, but other parts."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules if modules is None else modules)
    twin._parameters = dict(module._parameters if parameters is None else parameters)
    return twin


def _small_linear(part: str) -> nn.Linear:
    linear = nn.Linear(_FEATURES, _FEATURES, bias=False)
    phase = {"gate_proj": 1, "up_proj": 2, "down_proj": 3}[part]
    with torch.no_grad():
        linear.weight.copy_(torch.sin(phase + torch.arange(float(_FEATURES**2)).view(_FEATURES, _FEATURES)))
    return linear


@torch.no_grad()
def _agree(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules give the same numbers for three tokens, one of them large, one small."""
    dtype = next((tensor.dtype for tensor in one.parameters() if tensor.is_floating_point()), torch.float32)
    x = torch.sin(torch.arange(3.0 * _FEATURES)).view(3, _FEATURES)
    x *= torch.tensor([1.0, 30.0, 0.01])[:, None]
    try:
        expected, got = one(x.to(dtype)), other(x.to(dtype))
    except (TypeError, RuntimeError):
        # The module wants other arguments, or the parts do not fit together as assumed: not the one we know.
        return False
    if not isinstance(expected, Tensor) or expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    return bool(((expected - got).abs() <= tolerance).all())


def _token_blocks(x: Tensor) -> list[slice]:
    """Rows of x (t, n) in blocks that stay in the cache."""
    tokens, features = x.shape
    height = max(1, _BLOCK_ELEMENTS // max(1, features))
    return worth_running((slice(start, min(start + height, tokens)) for start in range(0, tokens, height)), x)


class FusedRMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, computed in float32.

    Args:
        weight: (n,); kept as it is, trained or frozen.
        eps: Added to the mean square.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., n)."""
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        # The first product is in float32 and rounded to x's dtype before the second, as in transformers.
        y = (x * inverse).to(x.dtype)
        return y.mul_(weight) if weight.dtype == x.dtype else y * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        n = x.shape[-1]
        flat_x, flat_gy, flat_inverse = x.reshape(-1, n), gy.reshape(-1, n), inverse.reshape(-1, 1)
        gx = torch.empty_like(flat_x) if ctx.needs_input_grad[0] else None
        gw = torch.zeros(n, device=x.device) if ctx.needs_input_grad[1] else None
        blocks = _token_blocks(flat_x)
        buffers = torch.empty(3, blocks[0].stop if blocks else 0, n, dtype=torch.float32, device=x.device)
        for rows in blocks:
            normed, g, product = buffers[:, : rows.stop - rows.start]
            torch.mul(flat_x[rows], flat_inverse[rows], out=normed)
            g.copy_(flat_gy[rows])
            if gw is not None:
                gw += (g * normed.to(x.dtype)).sum(dim=0)
            if gx is not None:
                g.mul_(weight)
                mean = torch.mul(g, normed, out=product).mean(dim=-1, keepdim=True)
                gx[rows] = g.sub_(normed.mul_(mean)).mul_(flat_inverse[rows])
        return (
            None if gx is None else gx.view_as(x),
            None if gw is None else gw.to(weight.dtype),
            None,
        )


class FusedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)).

    Args:
        gate_proj, up_proj: Linear layers n to i, of any kind; nobody else may keep their outputs.
        down_proj: Linear layer i to n. What it keeps is its own affair: `SubspaceLinear` keeps no part of its input.
    """

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj
        self.recompute_gate = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., n)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled():
            again = (x.detach(), self.gate_proj) if self.recompute_gate else (None, None)
            hidden = _GatedProduct.apply(gate, up, *again)  # type: ignore[no-untyped-call]
        else:
            hidden = F.silu(gate, inplace=True).mul_(up)
        del gate, up
        y: Tensor = self.down_proj(hidden)
        return y


class _GatedProduct(torch.autograd.Function):
    """silu(gate) * up, keeping both inputs; the backward pass writes their gradients over them.

    With `x` and `gate_proj`, x is kept instead of the gate, which is the same function of the same numbers once more.

    Autograd counts that as a change of what it kept, so a second backward pass through the same graph fails loudly.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, x: Tensor | None, gate_proj: nn.Module | None) -> Tensor:
        ctx.gate_proj = gate_proj
        ctx.save_for_backward(gate if x is None else x, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gh: Tensor) -> tuple[Tensor, Tensor, None, None]:
        kept, up = ctx.saved_tensors
        gate = kept if ctx.gate_proj is None else ctx.gate_proj(kept)
        features = gate.shape[-1]
        flat_gate, flat_up, flat_gh = (tensor.view(-1, features) for tensor in (gate, up, gh.contiguous()))
        blocks = _token_blocks(flat_gate)
        buffer = flat_gate.new_empty(blocks[0].stop if blocks else 0, features)
        for rows in blocks:
            g, u, d = flat_gate[rows], flat_up[rows], flat_gh[rows]
            through_silu = torch.mul(u, d, out=buffer[: rows.stop - rows.start])
            torch.ops.aten.silu.out(g, out=u)
            u.mul_(d)
            torch.ops.aten.silu_backward.grad_input(through_silu, g, grad_input=g)
        return gate, up, None, None
