# SPDX-License-Identifier: Apache-2.0
"""One bit a number, and a power of two for each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import MalformedMessage
from fedcore.numbers.accumulator import MatrixEntry, RowScaled, row_exponents
from fedcore.numbers.coding import Coding, Width
from fedcore.registry import register_payload_codec


@register_payload_codec("signs")
class Signs:
    """The sign of each number; its size is the mean of its row's, rounded up to a power of two."""

    widths: tuple[Width, ...] = (4,)

    def encode(self, values: NDArray[np.float32], coding: Coding, place: str) -> MatrixEntry:
        """q is 1 or -1."""
        del coding, place
        exponent = row_exponents(np.abs(values).mean(axis=1).astype(np.float64), 1)
        return RowScaled(np.where(values < 0, -1, 1).astype(np.int16), exponent.astype(np.int8))

    def pack(self, part: MatrixEntry, bits: Width, level: int) -> dict[str, Any]:
        """Eight signs a byte."""
        del bits, level
        assert isinstance(part, RowScaled)
        return {"exponent": part.exponent.tobytes(), "data": np.packbits(part.q < 0).tobytes()}

    def unpack(self, raw: Any, shape: tuple[int, int], bits: Width, place: str) -> MatrixEntry:
        """What `pack` made, of the right size and within bounds."""
        del bits
        numbers, exponent, data = shape[0] * shape[1], raw.get("exponent"), raw.get("data")
        if type(exponent) is not bytes or type(data) is not bytes:
            raise MalformedMessage("a record has fields of the wrong type", place=place)
        if (len(exponent), len(data)) != (shape[0], -(-numbers // 8)):
            raise MalformedMessage("signs of another size", place=place)
        exponents = np.frombuffer(exponent, np.int8)
        if (exponents < -32).any() or (exponents > 7).any():
            raise MalformedMessage("an exponent is out of bounds", place=place)
        negative = np.unpackbits(np.frombuffer(data, np.uint8), count=numbers).reshape(shape)
        return RowScaled(1 - 2 * negative.astype(np.int16), exponents)
