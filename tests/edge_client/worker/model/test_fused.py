# SPDX-License-Identifier: Apache-2.0
"""The replacements give the numbers and gradients of the modules they replace, and keep less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from edge_client.worker.model.fused import FusedGatedMLP, FusedRMSNorm, fuse


def tiny(kind: str = "Llama", **changes: object) -> nn.Module:
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.2)
    return model


def run(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = torch.randint(3, 50, (2, 11), generator=torch.Generator().manual_seed(4))
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def enable_checkpointing(model: nn.Module) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_llama_has_the_same_loss_and_gradients(dtype: torch.dtype, checkpointed: bool) -> None:
    model = tiny().to(dtype)
    fused = copy.deepcopy(model)
    assert fuse(fused) == 2 * 3 + 1
    assert isinstance(fused.model.layers[0].mlp, FusedGatedMLP)
    assert isinstance(fused.model.norm, FusedRMSNorm)
    if checkpointed:
        fused.train()
        enable_checkpointing(fused)
    (loss, expected), (fused_loss, got) = run(model), run(fused)
    # Another order of the same float operations; in bfloat16 the gradients are rounded at other places.
    tolerance = 2e-5 if dtype == torch.float32 else 4e-2
    assert abs(float(loss - fused_loss)) <= tolerance * float(loss)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((got[name] - gradient).abs().max()) <= tolerance * max(float(gradient.abs().max()), 1e-2), name


def test_evaluation_is_the_same() -> None:
    model = tiny().eval()
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        assert fuse(model) == 7
        torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2"])
def test_relatives_are_recognised_by_their_parts(kind: str) -> None:
    model = tiny(kind)
    expected, _ = run(copy.deepcopy(model))
    assert fuse(model) == 7
    loss, _ = run(model)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_lookalikes_are_left_alone() -> None:
    gemma = tiny("Gemma")  # its norm multiplies by 1 + weight, its MLP has GELU
    assert fuse(gemma) == 0
    assert fuse(tiny(hidden_act="gelu")) == 5
    assert fuse(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))) == 0
    once = tiny()
    assert (fuse(once), fuse(once)) == (7, 0)


class Plain(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


@pytest.mark.parametrize("frozen", [False, True])
def test_norm_gradients_over_many_blocks(frozen: bool) -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(64), requires_grad=not frozen)
    x = torch.randn(3, 1500, 64)  # several blocks of tokens
    gy = torch.randn(3, 1500, 64)
    results = []
    for module in (Plain(weight, 1e-6), FusedRMSNorm(weight, 1e-6)):
        leaf = x.clone().requires_grad_(True)
        weight.grad = None
        y = module(leaf)
        y.backward(gy)
        results.append((y.detach(), leaf.grad, weight.grad))
    torch.testing.assert_close(results[1][:2], results[0][:2], rtol=1e-5, atol=1e-5)
    if frozen:
        assert results[1][2] is None
    else:
        torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-4, atol=1e-4)


def test_a_second_backward_pass_fails_instead_of_lying() -> None:
    mlp = FusedGatedMLP(nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4))
    loss = mlp(torch.randn(5, 4)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("dtype", "norm_share"), [(torch.float32, 1.0), (torch.bfloat16, 0.6)])
def test_less_is_kept(dtype: torch.dtype, norm_share: float) -> None:
    def kept(module: nn.Module) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(100, 32, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = module(x)
        y.sum()
        return sum(storages.values())

    layer: Any = tiny().to(dtype).model.layers[0]
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    fused = copy.deepcopy(layer)
    fuse(fused)
    assert kept(fused.input_layernorm) <= norm_share * kept(layer.input_layernorm)
    assert kept(fused.mlp) < 0.8 * kept(layer.mlp)


def test_recomputed_gates_give_the_same_bits_and_keep_less() -> None:
    model = tiny()
    fuse(model)
    again = copy.deepcopy(model)
    for module in again.modules():
        if isinstance(module, FusedGatedMLP):
            module.recompute_gate = True

    def kept(model: nn.Module) -> tuple[int, Tensor, dict[str, Tensor]]:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = run(model)
        return sum(storages.values()), *found

    (before, loss, expected), (after, again_loss, got) = kept(model), kept(again)
    assert torch.equal(loss, again_loss) and got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    # Two layers of 22 tokens: 56 numbers of the gate give way to 32 of the input, which plain linear layers here keep
    # as well.
    assert before - after == 2 * 22 * 56 * 4
