# SPDX-License-Identifier: Apache-2.0
"""One row of the memory benchmark: builds a method's model, trains some steps, reads /proc/self/status.

LoRA is measured as people run it: `load_in_8bit`'s layers (all linear layers but the output embedding), PEFT adapters
on all of them, the model's own loss, AdamW. FedKRSO carries what it carries in the middle of a run: a pool of eight
subspaces, a published state in all of them and the round's first accumulator."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from edge_client.worker.model.fused import fuse
from edge_client.worker.model.layer import FloatWeight, Int8Weight, Scratch, SubspaceLinear
from edge_client.worker.model.loss import chunked_cross_entropy
from edge_client.worker.train.highwater import begin_peak, give_back_freed_memory, status_bytes
from edge_client.worker.train.trainer import set_recompute_gates
from fedcore.subspaces.projection import signs
from fedcore.weights.quantise import quantise_weight

__all__ = ["Loss", "Shape", "measure"]

RANK, POOL = 8, 8


@dataclass(frozen=True)
class Shape:
    """What is trained: `layers` of the benchmark's own model, or the model of a config.json."""

    layers: int = 12
    batch: int = 4
    length: int = 256
    config: str | None = None


Loss = Callable[[Tensor], Tensor]


def measure(method: str, *, checkpointing: bool, steps: int, threads: int, shape: Shape) -> tuple[int, int, float]:
    """Train the benchmark's model in this process.

    Args:
        method: A name in `edge_client.commands.bench_memory.METHODS` or `MORE_METHODS`.
        checkpointing: Whether each decoder layer is recomputed in the backward pass.
        steps: Timed steps after one warm-up step.
        threads: Of torch.
        shape: Of model and batch.

    Returns:
        Anonymous resident bytes before the first step, the highest during the steps, and the median step time in
        seconds.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(_config(shape))
    model, loss_of = _MADE[method](model)
    model.train()
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = (torch.optim.Adam if method.startswith("fedkrso") else torch.optim.AdamW)(trained, lr=1e-4)
    batches = torch.randint(0, 32_000, (steps + 1, shape.batch, shape.length))
    gc.collect()
    give_back_freed_memory()
    static_bytes = status_bytes("RssAnon") or 0
    peak_bytes, seconds = 0, []
    for tokens in batches:
        begin_peak()
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss_of(tokens).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seconds.append(time.perf_counter() - start)
        # The kernel keeps the peak of all resident memory; pages of files (libraries) are taken off.
        files = (status_bytes("RssFile") or 0) + (status_bytes("RssShmem") or 0)
        peak_bytes = max(peak_bytes, (status_bytes("VmHWM") or 0) - files)
    return static_bytes, peak_bytes, statistics.median(seconds[1:])


def _config(shape: Shape) -> LlamaConfig:
    if shape.config is not None:
        config: LlamaConfig = LlamaConfig.from_pretrained(shape.config)
        config.use_cache = False
        return config
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=shape.layers,
        num_attention_heads=12,
        max_position_embeddings=shape.length,
        use_cache=False,
    )


def _fedkrso(model: Any) -> tuple[Any, Loss]:
    generator = torch.Generator().manual_seed(1)
    scratch = Scratch()
    for name, linear in _linear_layers(model):
        q, scale = (torch.from_numpy(part) for part in quantise_weight(linear.weight.detach().numpy()))
        layer = SubspaceLinear(name, Int8Weight(q, scale), scratch=scratch)
        m, n = linear.weight.shape
        layer.install(
            torch.cat([torch.from_numpy(signs(seed, name, RANK, n)) for seed in range(POOL)]),
            RANK,
            state=torch.randint(-1000, 1000, (m, POOL * RANK), dtype=torch.int16, generator=generator),
            state_scale=torch.full((m,), 2.0**-22),
            accumulators={0: torch.randn(m, RANK, generator=generator) * 1e-4},
        )
        _put(model, name, layer)
    model.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, SubspaceLinear):
            layer.select(1)
    fuse(model)
    words = FloatWeight(model.lm_head.weight)

    def loss_of(tokens: Tensor) -> Tensor:
        hidden = model.model(input_ids=tokens).last_hidden_state
        return chunked_cross_entropy(hidden[:, :-1], words, tokens[:, 1:])

    return model, loss_of


def _fedkrso_gates(model: Any) -> tuple[Any, Loss]:
    """The same, with the gates of gated MLPs recomputed."""
    model, loss_of = _fedkrso(model)
    set_recompute_gates(model, True)
    return model, loss_of


def _fedkrso_dequantised(model: Any) -> tuple[Any, Loss]:
    """The same, with W + S P kept in float32 for an interval, as where the budget has room for it."""
    model, loss_of = _fedkrso(model)
    for layer in model.modules():
        if isinstance(layer, SubspaceLinear):
            layer.dequantised.switch(True)
    return model, loss_of


def _lora(model: Any) -> tuple[Any, Loss]:
    import bitsandbytes

    for name, linear in _linear_layers(model):
        layer = bitsandbytes.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
        layer.weight = bitsandbytes.nn.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
        _put(model, name, layer.to("cpu"))
    return _lora_float(model)


def _lora_float(model: Any) -> tuple[Any, Loss]:
    """LoRA on the layers as they are."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model, lambda tokens: model(input_ids=tokens, labels=tokens).loss


def _full(model: Any) -> tuple[Any, Loss]:
    return model, lambda tokens: model(input_ids=tokens, labels=tokens).loss


_MADE: dict[str, Callable[[Any], tuple[Any, Loss]]] = {
    "fedkrso": _fedkrso,
    "fedkrso-gates": _fedkrso_gates,
    "fedkrso-dequantised": _fedkrso_dequantised,
    "lora": _lora,
    "lora-float": _lora_float,
    "full": _full,
}


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """All linear layers but the output embedding, as `load_in_8bit` chooses them."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [(name, module) for name, module in found if name != "lm_head"]


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
