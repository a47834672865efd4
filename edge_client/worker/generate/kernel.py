# SPDX-License-Identifier: Apache-2.0
"""The products of `rows.c`, compiled on this machine where it has a compiler, once, and kept.

Nothing depends on it but speed: whoever gets None computes the same products with torch (`products`)."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from edge_client.process.route import cache_folder, deciding, key_of

__all__ = ["Kernel", "compiled", "kernel_for"]

_SOURCE = Path(__file__).with_name("rows.c")
# Sums in any order, so that loops become vectors; no -ffast-math, which changes small numbers in the whole process.
_SUMS = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
_FLAGS = ("-O3", "-march=native", *_SUMS, "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 60
_NAMES = {torch.int8: "rows_int8", torch.int16: "rows_int16", torch.bfloat16: "rows_bfloat16"}


class Kernel:
    """Products with stored weights.

    Args:
        library: Compiled from `rows.c`.

    Raises:
        OSError: It cannot be loaded.
        AttributeError: It is not that library.
    """

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        self._functions = {dtype: getattr(loaded, name) for dtype, name in _NAMES.items()}
        for function in self._functions.values():
            function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_ssize_t] * 3 + [ctypes.c_int] * 2
            function.restype = None

    def takes(self, weight: Tensor) -> bool:
        """Whether there is a product for a weight as it is stored: int8, int16 or bfloat16, on the processor."""
        return weight.dtype in self._functions and weight.device.type == "cpu" and weight.is_contiguous()

    def product(self, weight: Tensor, scale: Tensor | None, x: Tensor, out: Tensor, *, add: bool = False) -> None:
        """out (t, m) becomes x W^T scale, or that is added to it.

        Args:
            weight: W (m, n), of a kind that `takes` names.
            scale: float32 (m,), or None for ones.
            x: float32 (t, n); it and `out` contiguous.
            out: float32 (t, m).
            add: Add to what is there.
        """
        self._functions[weight.dtype](
            weight.data_ptr(),
            None if scale is None else scale.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            weight.shape[0],
            weight.shape[1],
            x.numel() // weight.shape[1],
            add,
            torch.get_num_threads(),
        )


def kernel_for(environment: Mapping[str, str] | None = None) -> Kernel | None:
    """This machine's, from the cache folder or compiled into it; None where there is no compiler, or it does not do."""
    environment = os.environ if environment is None else environment
    folder = cache_folder(environment)
    if folder is None:
        return None
    source = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()
    library = folder / f"rows-{key_of(deciding(environment) | {'source': source})}.so"
    if not library.exists() and not compiled(library, environment):
        return None
    try:
        kernel = Kernel(library)
    except (OSError, AttributeError):
        return None
    return kernel if _right(kernel) else None


def compiled(library: Path, environment: Mapping[str, str]) -> bool:
    """Compile `rows.c` to a file; whether that was possible."""
    compiler = shutil.which(environment.get("CC", "cc"), path=environment.get("PATH"))
    if compiler is None:
        return False
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # A folder beside it: whoever compiles at the same time does not get in the way, and the rename is whole.
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="rows-") as scratch:
            made = Path(scratch) / "rows.so"
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, timeout=_COMPILE_SECONDS, check=False)
            if done.returncode:
                return False
            made.replace(library)
    except (OSError, subprocess.TimeoutExpired):
        with contextlib.suppress(OSError):
            library.unlink()
        return False
    return True


def _right(kernel: Kernel) -> bool:
    """Whether it gives what it should, to the bit: of whole numbers every sum is exact, in any order."""
    x = torch.arange(-50.0, 51.0).repeat(2, 1)
    x[1] *= 3
    scale = torch.tensor([1.0, 0.5, 2.0])
    for dtype in _NAMES:
        weight = (torch.arange(303).reshape(3, 101) % 251 - 125).to(dtype)
        out = torch.ones(2, 3)
        kernel.product(weight, scale, x, out, add=True)
        if not torch.equal(out, 1 + (x @ weight.float().T) * scale):
            return False
    return True
