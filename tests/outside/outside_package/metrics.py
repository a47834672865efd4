# SPDX-License-Identifier: Apache-2.0
"""Metrics over rows of labels."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fedcore.registry import register_metric


@register_metric("exact-match")
def exact_match(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Share of texts whose labels are all right."""
    return float((predictions == targets).all(axis=1).mean())


def hamming(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Share of labels that are wrong."""
    return float((predictions != targets).mean())
