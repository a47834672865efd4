# SPDX-License-Identifier: Apache-2.0
"""The compiled pass gives what torch's operations give, of all kinds of weights and widths, and stays in its buffers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from edge_client.worker.compiled.kernel import Kernel, compiled
from edge_client.worker.compiled.native import NativeLlama, Parts
from edge_client.worker.generate.cache import planned_cache
from edge_client.worker.generate.llama import LlamaParts, LlamaStep, llama_parts
from edge_client.worker.generate.native import native_parts
from edge_client.worker.generate.products import LinearProduct, StoredMatrix, TensorKernel, replaced
from fedcore.errors import ModelError

IDS = [5, 17, 3, 3, 250, 9, 61, 8]
# Width, heads, key-value heads, features a head, features inside: none a multiple of a vector's length, and all of them.
ODD, EVEN = (35, 5, 1, 6, 51), (64, 4, 2, 16, 96)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    library = tmp_path_factory.mktemp("kernel") / "rows.so"
    if not compiled(library, os.environ):
        pytest.skip("no compiler here")
    return Kernel(library)


def model_of(sizes: tuple[int, ...], *, normed: bool, bias: bool) -> Any:
    width, heads, key_heads, features, inner = sizes
    shape = {
        "vocab_size": 300,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": features,
        "intermediate_size": inner,
        "max_position_embeddings": 64,
        "attention_bias": bias,
    }
    torch.manual_seed(0)
    config = hf.Qwen3Config(**shape) if normed else hf.LlamaConfig(**shape, mlp_bias=bias)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def product_of(module: nn.Linear, dtype: torch.dtype, *, side: bool) -> LinearProduct:
    """Some weight of a module's shape, stored in a type."""
    m, n, rank = module.out_features, module.in_features, 3
    if dtype == torch.int8:
        weight = StoredMatrix(torch.randint(-127, 128, (m, n), dtype=dtype), torch.rand(m) / 300)
    else:
        weight = StoredMatrix(torch.randn(m, n).mul_(0.2).to(dtype))
    down = StoredMatrix(torch.randint(-1, 2, (rank, n), dtype=torch.int8), torch.rand(rank))
    up = StoredMatrix(torch.randint(-9999, 9999, (m, rank), dtype=torch.int16), torch.rand(m) * 1e-5)
    return LinearProduct(weight, module.bias, (down, up) if side else None, None)


def products_of(model: Any, dtype: torch.dtype, *, side: bool) -> dict[nn.Module, LinearProduct]:
    linear = [module for module in model.model.modules() if type(module) is nn.Linear]
    # Not every layer has learned something.
    return {module: product_of(module, dtype, side=side and place % 3 > 0) for place, module in enumerate(linear)}


def native_of(model: Any, products: dict[nn.Module, LinearProduct], kernel: Kernel) -> NativeLlama:
    parts = llama_parts(model, products)
    assert parts is not None
    native = parts_of(model, parts, kernel)
    assert native is not None
    return NativeLlama(native, kernel)


def parts_of(model: Any, parts: LlamaParts, kernel: Kernel) -> Parts | None:
    head = LinearProduct(StoredMatrix(model.lm_head.weight), None, None, None)
    return native_parts(parts, head, TensorKernel(kernel))


@torch.inference_mode()
def expected(model: Any, products: dict[nn.Module, LinearProduct]) -> Tensor:
    """The last hidden state after all tokens but one through transformers, and the last one through torch's step."""
    cache, parts = planned_cache(model.config, len(IDS)), llama_parts(model, products)
    assert parts is not None
    with replaced(products):
        model.model(input_ids=torch.tensor([IDS[:-1]]), past_key_values=cache, use_cache=True)
    return LlamaStep(parts)(IDS[-1], cache.layers)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sizes", [ODD, EVEN])
@pytest.mark.parametrize(("normed", "bias", "side"), [(False, False, True), (True, True, False), (False, True, True)])
@torch.inference_mode()
def test_a_pass_is_that_of_torch(
    kernel: Kernel, dtype: torch.dtype, sizes: tuple[int, ...], normed: bool, bias: bool, side: bool
) -> None:
    model = model_of(sizes, normed=normed, bias=bias)
    products = products_of(model, dtype, side=side)
    right = expected(model, products)
    native = native_of(model, products, kernel)
    for parts in ((8,), (7, 1), (1,) * 8, (3, 2, 3)):
        cache, left = native.cache(len(IDS)), IDS
        for count in parts:
            got, left = torch.from_numpy(native(left[:count], cache)), left[count:]
        assert cache.length == len(IDS)
        assert float((got - right).abs().max() / right.abs().max()) < 1e-5
    words, said = model.lm_head(right)[0], torch.from_numpy(native.logits(got.numpy()))
    assert float((words - said).abs().max() / words.abs().max()) < 1e-5


@torch.inference_mode()
def test_two_threads_give_what_one_gives(kernel: Kernel) -> None:
    model = model_of(EVEN, normed=False, bias=False)
    native = native_of(model, products_of(model, torch.int8, side=True), kernel)
    one, two = (native(IDS, native.cache(8), threads) for threads in (1, 2))
    assert np.array_equal(one, two)


@torch.inference_mode()
def test_what_is_forgotten_is_written_anew(kernel: Kernel) -> None:
    model = model_of(ODD, normed=False, bias=False)
    native = native_of(model, {}, kernel)
    cache = native.cache(8)
    whole = native(IDS, cache)
    cache.length = 5
    native([1, 2, 3], cache)
    cache.length = 5
    assert np.allclose(native(IDS[5:], cache), whole, atol=1e-5)


@torch.inference_mode()
def test_more_tokens_than_the_cache_has_room_for_are_refused(kernel: Kernel) -> None:
    model = model_of(ODD, normed=False, bias=False)
    native = native_of(model, {}, kernel)
    cache = native.cache(2)
    with pytest.raises(ModelError, match="3 tokens; the cache has room for 2"):
        native(IDS[:3], cache)
    native(IDS[:2], cache)
    kept = cache.keys.copy(), cache.values.copy()
    with pytest.raises(ModelError, match="3 tokens; the cache has room for 2"):
        native(IDS[2:3], cache)
    assert cache.length == 2 and np.array_equal(cache.keys, kept[0]) and np.array_equal(cache.values, kept[1])


def test_a_model_that_does_not_fit_goes_another_way(kernel: Kernel) -> None:
    model = model_of(EVEN, normed=True, bias=False)
    products = products_of(model, torch.int8, side=False)
    attention = model.model.layers[1].self_attn
    others: dict[nn.Module, LinearProduct] = {
        **products,
        attention.q_proj: LinearProduct(StoredMatrix(torch.ones(64, 64, dtype=torch.float64)), None, None, None),
    }
    parts = llama_parts(model, others)
    assert parts is not None and parts_of(model, parts, kernel) is None
    # A norm over all heads together.
    attention.k_norm.weight = nn.Parameter(torch.ones(32))
    parts = llama_parts(model, products)
    assert parts is not None and parts_of(model, parts, kernel) is None
