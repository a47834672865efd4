# SPDX-License-Identifier: Apache-2.0
"""The products of `rows.c` and the pass of `llama.c`, compiled on this machine where it has a compiler, once, and kept.

Nothing depends on it but speed: whoever gets None computes the same with torch (`products`, `llama`)."""

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

__all__ = ["Kernel", "Matrix", "compiled", "kernel_for"]

_FOLDER = Path(__file__).parent
_SOURCES = (_FOLDER / "rows.c", _FOLDER / "llama.c")
_HEADER = _FOLDER / "rows.h"
# Sums in any order, so that loops become vectors; no -ffast-math, which changes small numbers in the whole process.
_SUMS = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
_FLAGS = ("-O3", "-march=native", *_SUMS, "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 60
_KINDS = {torch.int8: 0, torch.int16: 1, torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}


class Matrix(ctypes.Structure):
    """A weight (m, n) as `rows.h` has it; whoever makes one keeps its tensors alive. Empty: there is none."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("m", ctypes.c_ssize_t),
        ("n", ctypes.c_ssize_t),
        ("kind", ctypes.c_int),
    )

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor | None) -> Matrix:
        """Of a weight that `Kernel.takes`, and float32 (m,) or None for ones."""
        return cls(weight.data_ptr(), None if scale is None else scale.data_ptr(), *weight.shape, _KINDS[weight.dtype])


class Kernel:
    """Products with stored weights, and tokens through a model made of them.

    Args:
        library: Compiled from `rows.c` and `llama.c`.

    Raises:
        OSError: It cannot be loaded.
        AttributeError: It is not that library.
    """

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        pointer, size, number = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
        self._product = loaded.rows_product
        self._product.argtypes, self._product.restype = [pointer] * 3 + [size, number, number], None
        self.llama_pass = loaded.llama_pass
        """(model, buffers, cache, x, cosines, sines, last, tokens, seen, threads) to 0, or 1 where there is no room."""
        self.llama_pass.argtypes, self.llama_pass.restype = [pointer] * 7 + [size, size, number], number

    def takes(self, weight: Tensor) -> bool:
        """Whether there is a product for a weight as it is stored: int8, int16 or floating point of 16 or 32 bits, on
        the processor."""
        return weight.dtype in _KINDS and weight.device.type == "cpu" and weight.is_contiguous() and weight.ndim == 2

    def product(self, weight: Tensor, scale: Tensor | None, x: Tensor, out: Tensor, *, add: bool = False) -> None:
        """out (t, m) becomes x W^T scale, or that is added to it.

        Args:
            weight: W (m, n), of a kind that `takes` names.
            scale: float32 (m,), or None for ones.
            x: float32 (t, n); it and `out` contiguous.
            out: float32 (t, m).
            add: Add to what is there.
        """
        matrix = Matrix.of(weight, scale)
        rows, threads = x.numel() // weight.shape[1], torch.get_num_threads()
        self._product(ctypes.byref(matrix), x.data_ptr(), out.data_ptr(), rows, add, threads)


def kernel_for(environment: Mapping[str, str] | None = None) -> Kernel | None:
    """This machine's, from the cache folder or compiled into it; None where there is no compiler, or it does not do."""
    environment = os.environ if environment is None else environment
    folder = cache_folder(environment)
    if folder is None:
        return None
    text = b"".join(file.read_bytes() for file in (_HEADER, *_SOURCES))
    source = hashlib.sha256(text + " ".join(_FLAGS).encode()).hexdigest()
    library = folder / f"rows-{key_of(deciding(environment) | {'source': source})}.so"
    if not library.exists() and not compiled(library, environment):
        return None
    try:
        kernel = Kernel(library)
    except (OSError, AttributeError):
        return None
    return kernel if _right(kernel) else None


def compiled(library: Path, environment: Mapping[str, str]) -> bool:
    """Compile the sources to a file; whether that was possible."""
    compiler = shutil.which(environment.get("CC", "cc"), path=environment.get("PATH"))
    if compiler is None:
        return False
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # A folder beside it: whoever compiles at the same time does not get in the way, and the rename is whole.
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="rows-") as scratch:
            made = Path(scratch) / "rows.so"
            command = [compiler, *_FLAGS, *map(str, _SOURCES), "-o", str(made), "-lm"]
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
    scale = torch.tensor([1.0, 0.5, 2.0, 4.0, 0.25])
    for rows in (1, 5):
        x = torch.arange(-50.0, 51.0) * torch.arange(1.0, 1 + rows)[:, None]
        for dtype in _KINDS:
            weight = (torch.arange(505).reshape(5, 101) % 251 - 125).to(dtype)
            out = torch.ones(rows, 5)
            kernel.product(weight, scale, x, out, add=True)
            if not torch.equal(out, 1 + (x @ weight.float().T) * scale):
                return False
    return True
