# SPDX-License-Identifier: Apache-2.0
"""The products of `rows.c` and the pass of `llama.c`, compiled on this machine where it has a compiler, once, and kept.

Nothing depends on it but speed and memory: whoever gets None computes the same with torch
(`edge_client.worker.generate`)."""

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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.process.route import cache_folder, deciding, key_of
from fedcore.weights.checkpoint import to_float32

__all__ = ["Kernel", "Matrix", "compiled", "floats", "kernel_for"]

_FOLDER = Path(__file__).parent
_SOURCES = (_FOLDER / "rows.c", _FOLDER / "llama.c")
_HEADER = _FOLDER / "rows.h"
# Sums in any order, so that loops become vectors; no -ffast-math, which changes small numbers in the whole process.
_SUMS = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
_FLAGS = ("-O3", "-march=native", *_SUMS, "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 60
_KINDS: Final = {np.dtype(name): kind for kind, name in enumerate(("i1", "<i2", "<u2", "<f2", "<f4"))}
"""As `rows.h` numbers them; bfloat16 is carried as its 16 bits, uint16 (`fedcore.weights.checkpoint`)."""


class Matrix(ctypes.Structure):
    """A weight (m, n) as `rows.h` has it; whoever makes one keeps its arrays alive. Empty: there is none."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("m", ctypes.c_ssize_t),
        ("n", ctypes.c_ssize_t),
        ("kind", ctypes.c_int),
    )

    @classmethod
    def of(cls, weight: NDArray[Any], scale: NDArray[np.float32] | None) -> Matrix:
        """Of a weight that `Kernel.takes`, and float32 (m,) or None for ones."""
        scales = None if scale is None else scale.ctypes.data
        return cls(weight.ctypes.data, scales, *weight.shape, _KINDS[weight.dtype])


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

    def takes(self, weight: NDArray[Any]) -> bool:
        """Whether there is a product for a weight as it is stored: int8, int16, bfloat16 as uint16, or floating point
        of 16 or 32 bits."""
        return weight.dtype in _KINDS and weight.flags.c_contiguous and weight.ndim == 2

    def product(
        self,
        weight: NDArray[Any],
        scale: NDArray[np.float32] | None,
        x: NDArray[np.float32],
        out: NDArray[np.float32],
        *,
        add: bool = False,
        threads: int = 1,
    ) -> None:
        """out (t, m) becomes x W^T scale, or that is added to it.

        Args:
            weight: W (m, n), of a kind that `takes` names.
            scale: float32 (m,), or None for ones.
            x: float32 (t, n); it and `out` contiguous.
            out: float32 (t, m).
            add: Add to what is there.
            threads: To compute with.
        """
        matrix = Matrix.of(weight, scale)
        self._product(ctypes.byref(matrix), x.ctypes.data, out.ctypes.data, x.size // weight.shape[1], add, threads)


def floats(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as stored, bfloat16 as uint16, in float32.

    Example:
        >>> floats(np.array([0x3FC0], np.uint16))
        array([1.5], dtype=float32)
    """
    return to_float32(numbers, "BF16" if numbers.dtype == np.uint16 else "")


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
    scale = np.array([1.0, 0.5, 2.0, 4.0, 0.25], np.float32)
    whole = (np.arange(505).reshape(5, 101) % 251 - 125).astype(np.float32)
    for rows in (1, 5):
        x = np.arange(-50, 51).astype(np.float32) * np.arange(1, 1 + rows).astype(np.float32)[:, None]
        for dtype in _KINDS:
            # Of whole numbers up to 255 a bfloat16 has all bits.
            weight = (whole.view(np.uint32) >> 16).astype(dtype) if dtype == np.uint16 else whole.astype(dtype)
            out = np.ones((rows, 5), np.float32)
            kernel.product(weight, scale, x, out, add=True)
            if not np.array_equal(out, 1 + (x @ whole.T) * scale):
                return False
    return True
