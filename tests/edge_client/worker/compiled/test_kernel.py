# SPDX-License-Identifier: Apache-2.0
"""The compiled products are those of torch, and nothing breaks where they cannot be compiled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_client.worker.compiled.kernel import Kernel, compiled, floats, kernel_for
from edge_client.worker.generate.products import numbers_of

WITH_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    library = tmp_path_factory.mktemp("kernel") / "rows.so"
    if not compiled(library, os.environ):
        pytest.skip("no compiler here")
    return Kernel(library)


def product(kernel: Kernel, weight: Tensor, scale: Tensor | None, x: Tensor, out: Tensor, **how: int) -> None:
    scales = None if scale is None else numbers_of(scale)
    kernel.product(numbers_of(weight), scales, numbers_of(x), numbers_of(out), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("m", "n", "t"), [(1, 1, 1), (7, 33, 1), (64, 576, 3), (5, 1000, 6), (1, 1, 7), (13, 641, 17), (9, 320, 131)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_whole_numbers_are_exact(
    kernel: Kernel, dtype: torch.dtype, m: int, n: int, t: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(m * n)
    weight = torch.randint(-100, 101, (m, n), generator=generator).to(dtype)
    x = torch.randint(-8, 9, (t, n), generator=generator).float()
    scale = 2.0 ** torch.randint(-3, 4, (m,), generator=generator)
    before, out = torch.full((t, m), 5.0), torch.full((t, m), 5.0)
    product(kernel, weight, scale, x, out, add=True, threads=threads)
    assert torch.equal(out, before + (x @ weight.float().T) * scale)
    product(kernel, weight, None, x, out, threads=threads)
    assert torch.equal(out, x @ weight.float().T)
    assert np.array_equal(floats(numbers_of(weight)), weight.float().numpy())


def test_products_round_as_float32_does(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (200, 777), dtype=torch.int8, generator=generator)
    scale, x = torch.rand(200, generator=generator), torch.randn(1, 777, generator=generator)
    out = torch.empty(1, 200)
    product(kernel, weight, scale, x, out)
    exact = (x.double() @ weight.double().T) * scale
    assert float((out - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t", [1, 9])
def test_numbers_of_16_bits_are_what_torch_makes_of_them(kernel: Kernel, dtype: torch.dtype, t: int) -> None:
    # All finite ones, the smallest among them: the product with the identity.
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()].reshape(-1, 8)
    for some in numbers.split(1024):
        out = torch.empty(t, len(some))
        for column in range(8):
            x = torch.zeros(t, 8)
            x[:, column] = 1
            product(kernel, some, None, x, out)
            assert torch.equal(out, some[:, column].float().expand(t, -1))


def test_loading_leaves_small_numbers_as_they_are(kernel: Kernel) -> None:
    # What -ffast-math would flush to zero in the whole process.
    assert float(torch.tensor(1e-40) * 0.5) > 0


@WITH_COMPILER
def test_it_is_compiled_once_and_kept(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    assert kernel_for(environment) is not None
    (library,) = (tmp_path / "fedkrso").glob("rows-*")
    made = library.stat().st_mtime_ns
    assert kernel_for({**environment, "CC": "no-such-compiler"}) is not None
    assert library.stat().st_mtime_ns == made


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_without_a_compiler_that_does_there_is_none(tmp_path: Path, compiler: str) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"], "CC": compiler}
    assert kernel_for(environment) is None
    assert not list((tmp_path / "fedkrso").glob("rows-*"))
    assert kernel_for({"PATH": os.environ["PATH"]}) is None


@WITH_COMPILER
def test_another_library_in_its_place_is_not_used(tmp_path: Path) -> None:
    good, bad = ({"XDG_CACHE_HOME": str(tmp_path / name), "PATH": os.environ["PATH"]} for name in ("good", "bad"))
    assert kernel_for(good) is not None
    (library,) = (tmp_path / "good" / "fedkrso").glob("rows-*")
    damaged = tmp_path / "bad" / "fedkrso" / library.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no library")
    assert kernel_for(bad) is None
