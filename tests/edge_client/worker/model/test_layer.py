# SPDX-License-Identifier: Apache-2.0
"""The subspace layer against a dense reference that autograd differentiates by itself."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edge_client.worker.model.layer import FloatWeight, Int8Weight, Scratch, SubspaceLinear
from edge_client.worker.model.weights import row_blocks
from fedcore.errors import ExactnessError, ModelError
from fedcore.subspaces.projection import signs
from fedcore.weights.quantise import quantise_weight

M, N, RANK, POOL = 37, 24, 4, 3
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
BASES = ["int8", "float32", "bfloat16", "float16"]


def pool_projection() -> Tensor:
    return torch.cat([torch.from_numpy(signs(seed, "layer", RANK, N)) for seed in range(POOL)])


def make_layer(
    base: str = "int8",
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    block_rows: int = 16,
    learned: bool = True,
    scratch: Scratch | None = None,
) -> tuple[SubspaceLinear, Tensor]:
    """A layer with everything in it non-zero, and its dense float64 W without the factor."""
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(M, N, generator=generator) * 0.3
    if base == "int8":
        q, scale = (torch.from_numpy(part) for part in quantise_weight(w.numpy()))
        weight: Int8Weight | FloatWeight = Int8Weight(q, scale)
        dense = q.double() * scale.double()[:, None]
    else:
        w = w.to(getattr(torch, base))
        weight, dense = FloatWeight(w), w.double()
    b = torch.randn(M, generator=generator) if bias else None
    layer = SubspaceLinear("layer", weight, b, compute_dtype=dtype, block_rows=block_rows, scratch=scratch).to(device)
    state = torch.randint(-900, 900, (M, RANK * POOL), dtype=torch.int16, generator=generator)
    state_scale = 2.0 ** -torch.randint(11, 13, (M,), generator=generator).float()
    accumulators = {0: torch.randn(M, RANK, generator=generator) * 0.2}
    projection = pool_projection()
    if learned:
        layer.install(projection, RANK, state=state, state_scale=state_scale, accumulators=accumulators)
        side = state.double() * state_scale.double()[:, None]
        side[:, :RANK] += accumulators[0].double()
        dense = dense + side @ projection.double() / RANK**0.5
    else:
        layer.install(projection, RANK)
    return layer, dense.to(device)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(device, dtype)


CASES = (
    list(
        itertools.product(
            [(6, N), (2, 40, N)],  # few tokens: the side path stays aside; many: it is merged into the blocks
            [True, False],
            [torch.float32, torch.bfloat16],
            [True, False],
            BASES,
            [RANK, 2],
            DEVICES[:1],
        )
    )
    + [((2, 40, N), True, dtype, True, "int8", 2, "cuda") for dtype in (torch.float32, torch.bfloat16)]
)


@pytest.mark.parametrize(("shape", "bias", "dtype", "checkpointed", "base", "rank", "device"), CASES)
def test_output_and_gradients_equal_the_dense_reference(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, checkpointed: bool, base: str, rank: int, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layer, dense = make_layer(base, bias=bias, dtype=dtype, device=device)
    layer.select(1, rank)
    assert layer.factor is not None
    if layer.bias is not None:
        layer.bias.requires_grad_(True)
    with torch.no_grad():
        layer.factor.copy_(inputs((M, rank), torch.float32, device) * 0.3)
    x = inputs(shape, dtype, device).requires_grad_(True)
    gy = inputs((*shape[:-1], M), dtype, device)
    # x goes through an operation first, so that checkpointing has something to recompute.
    function = lambda v: layer(v * 2)  # noqa: E731
    y = checkpoint(function, x, use_reentrant=False) if checkpointed else function(x)
    y.backward(gy)
    y = y.detach()

    reference_x = x.detach().double().requires_grad_(True)
    factor = layer.factor.detach().double().requires_grad_(True)
    p = pool_projection()[RANK : RANK + rank].double().to(device) / RANK**0.5
    reference = (reference_x * 2) @ (dense + factor @ p).T
    if layer.bias is not None:
        reference = reference + layer.bias.detach().double()
    reference.backward(gy.double())
    reference = reference.detach()

    # float32 sums of 24 to 80 products; bfloat16 keeps 8 bits and rounds W, z and the partial sums.
    tolerance = 3e-6 if dtype == torch.float32 else 3e-2
    pairs = [(y, reference), (x.grad, reference_x.grad), (layer.factor.grad, factor.grad)]
    if layer.bias is not None:
        pairs.append((layer.bias.grad, gy.double().reshape(-1, M).sum(0)))
    for got, expected in pairs:
        assert got is not None and expected is not None
        assert float((got.double() - expected.detach()).abs().max()) <= tolerance * float(expected.abs().max())
    assert y.dtype == dtype and x.grad is not None and x.grad.dtype == dtype


@pytest.mark.parametrize("tokens", [6, 80])
@pytest.mark.parametrize("active", [None, 0, 1])
def test_a_dequantised_weight_gives_the_same_whatever_changes_below_it(tokens: int, active: int | None) -> None:
    kept, blocks = make_layer()[0], make_layer()[0]
    kept.dequantised.switch(True)
    generator = torch.Generator().manual_seed(11)
    gy = inputs((tokens, M), torch.float32, "cpu")

    def passes() -> None:
        values = torch.randn(M, 2, generator=generator) * 0.3
        results = []
        for layer in (kept, blocks):
            layer.select(active, None if active is None else 2)
            if layer.factor is not None:
                layer.factor.data.copy_(values)
            x = inputs((tokens, N), torch.float32, "cpu").requires_grad_(True)
            y = layer(x)
            y.backward(gy)
            results.append((y.detach(), x.grad, None if layer.factor is None else layer.factor.grad))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    passes()
    changes: list[Callable[[SubspaceLinear], None]] = [
        # The factor of this pass goes to the accumulators; another state comes; another base; what a restart takes up.
        lambda layer: layer.absorb(),
        lambda layer: layer.restore_accumulator(2, torch.ones(M, RANK)),
        lambda layer: layer.replace_base(FloatWeight(torch.ones(M, N))),
        lambda layer: layer.install(
            pool_projection(), RANK, state=torch.full((M, RANK * POOL), 300, dtype=torch.int16),
            state_scale=torch.full((M,), 2.0**-9),
        ),
        lambda layer: layer.install(pool_projection(), RANK),
    ]  # fmt: skip
    for change in changes:
        for layer in (kept, blocks):
            change(layer)
        passes()


def test_a_dequantised_weight_does_not_depend_on_how_it_came_about() -> None:
    one, other = make_layer()[0], make_layer()[0]
    one.dequantised.switch(True)
    other.dequantised.switch(True)
    x = inputs((6, N), torch.float32, "cpu")
    for value in (0.1, 0.7, -0.3):
        one.select(1)
        one.factor.data.fill_(value)  # type: ignore[union-attr]
        one(x)
        one.absorb()
        one.select(None)
    other.restore_accumulator(1, one.accumulators()[1])
    assert torch.equal(one(x), other(x))


def test_a_dequantised_weight_is_let_go_of_at_once() -> None:
    layer, _ = make_layer()
    layer.dequantised.switch(True)
    layer(inputs((6, N), torch.float32, "cpu"))
    assert layer.dequantised._whole is not None
    whole = weakref.ref(layer.dequantised._whole)
    layer.dequantised.switch(False)
    assert whole() is None


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("tokens", [4, 90])
def test_with_nothing_trained_the_gradient_of_x_remains(learned: bool, tokens: int) -> None:
    layer, dense = make_layer(learned=learned)
    x = inputs((tokens, N), torch.float32, "cpu").requires_grad_(True)
    layer(x).backward(torch.ones(tokens, M))
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), torch.ones(tokens, M).double() @ dense, rtol=1e-5, atol=1e-5)
    layer.select(2)
    layer.select(None)
    assert layer.factor is None and not [p for p in layer.parameters() if p.requires_grad]


def kept_bytes(function: object, x: Tensor) -> int:
    """Bytes that autograd is asked to keep."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)  # type: ignore[operator]
    return total


def test_only_z_is_kept() -> None:
    layer, _ = make_layer()
    x = inputs((50, N), torch.float32, "cpu").requires_grad_(True)
    assert kept_bytes(layer, x) == 0
    layer.select(1, 2)
    assert kept_bytes(layer, x) == 50 * 2 * 4


@pytest.mark.parametrize("active", [None, 1])
def test_x_does_not_live_on(active: int | None) -> None:
    layer, _ = make_layer()
    layer.select(active)
    leaf = inputs((50, N), torch.float32, "cpu").requires_grad_(True)
    x = leaf * 2
    storage = weakref.ref(x.untyped_storage())
    y = layer(x)
    del x
    gc.collect()
    assert storage() is None
    y.sum().backward()
    assert leaf.grad is not None


def test_checkpointing_does_not_repeat_the_last_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = make_layer()
    layer.select(0)
    calls: list[int] = []
    original = SubspaceLinear.product

    def counting(self: SubspaceLinear, x: Tensor, out: Tensor, beta: int) -> Tensor:
        calls.append(len(x))
        return original(self, x, out, beta)

    monkeypatch.setattr(SubspaceLinear, "product", counting)
    x = inputs((5, N), torch.float32, "cpu").requires_grad_(True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert calls == [5]


@pytest.mark.parametrize("tokens", [4, 90])
def test_block_rows_do_not_matter(tokens: int) -> None:
    x = inputs((tokens, N), torch.float32, "cpu")
    outputs = []
    for block_rows in (1, 7, M, 1000):
        layer, _ = make_layer(block_rows=block_rows, scratch=Scratch())
        outputs.append(layer(x))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-5)


def test_row_blocks_cover_everything_once() -> None:
    for rows, block_rows in [(1, 5), (5, 5), (6, 5), (768, 512), (37, 1)]:
        blocks = list(row_blocks(rows, block_rows))
        assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(rows))
        assert max(block.stop - block.start for block in blocks) <= block_rows


def test_intervals_add_up_exactly() -> None:
    layer, _ = make_layer(learned=False)
    expected = torch.zeros(M, RANK)
    for rank, seed in [(RANK, 1), (2, 2), (RANK, 3)]:
        layer.select(2, rank)
        assert layer.factor is not None and not layer.factor.any()
        change = torch.randn(M, rank, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            layer.factor.copy_(change)
        x = inputs((9, N), torch.float32, "cpu")
        before = layer(x)
        layer.absorb()
        assert not layer.factor.any()
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
        expected[:, :rank] += change
    accumulators = layer.accumulators()
    assert accumulators.keys() == {2}
    assert torch.equal(accumulators[2], expected)


def test_a_restarted_worker_goes_on_with_its_accumulators() -> None:
    layer, _ = make_layer()
    kept = {k: a.clone() for k, a in layer.accumulators().items()}
    other, _ = make_layer()
    other.install(pool_projection(), RANK, state=layer.state, state_scale=layer.state_scale, accumulators=kept)
    x = inputs((9, N), torch.float32, "cpu")
    assert torch.equal(layer(x), other(x))
    other.install(pool_projection(), RANK)
    assert other.accumulators() == {}


def test_what_does_not_fit_is_refused() -> None:
    layer, _ = make_layer()
    projection = pool_projection()
    state = torch.zeros(M, RANK * POOL, dtype=torch.int16)
    for refused in (
        lambda: layer.install(projection[:, :-1], RANK),
        lambda: layer.install(projection.float(), RANK),
        lambda: layer.install(projection, 5),
        lambda: layer.install(projection, RANK, state=state),
        lambda: layer.install(projection, RANK, state=state[:, 1:], state_scale=torch.ones(M)),
        lambda: layer.install(projection, RANK, accumulators={3: torch.zeros(M, RANK)}),
        lambda: layer.install(projection, RANK, accumulators={0: torch.zeros(M, 2)}),
        lambda: layer.select(POOL),
        lambda: layer.select(0, RANK + 1),
    ):
        with pytest.raises(ExactnessError, match="layer"):
            refused()
    with pytest.raises(ModelError):
        Int8Weight(torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ModelError):
        FloatWeight(torch.zeros(3, 2, dtype=torch.int8))
    with pytest.raises(ModelError, match="name"):
        SubspaceLinear("name", FloatWeight(torch.zeros(3, 2)), torch.zeros(2))


def test_rows_of_a_subspace_come_with_their_powers_of_two() -> None:
    layer = SubspaceLinear("l", FloatWeight(torch.zeros(2, 3)))
    rows, powers = (
        torch.tensor([[1, -2, 3], [4, 5, 6], [7, 8, 9], [1, 1, -1]], dtype=torch.int8),
        torch.tensor([1.0, 2.0, 0.5, 4.0]),
    )
    layer.install(rows, 2, row_scale=powers)
    assert layer.subspace_rows(1, 2).tolist() == [[3.5, 4.0, 4.5], [4.0, 4.0, -4.0]]
    assert layer.subspace_rows(0, 1).tolist() == [[1.0, -2.0, 3.0]] and torch.equal(layer.projection, rows)  # type: ignore[arg-type]
