# SPDX-License-Identifier: Apache-2.0
"""What an interval keeps of a parameter: enough for its optimiser to go on as if nothing had been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edge_client.worker.methods.interface import adam_state, restore_adam


@pytest.mark.parametrize(
    ("kind", "parts"),
    [(torch.optim.Adam, {"value", "step", "exp_avg", "exp_avg_sq"}), (torch.optim.SGD, {"value"})],
    ids=["adam", "plain sgd"],
)
def test_an_optimiser_goes_on_from_what_was_kept(kind: Any, parts: set[str]) -> None:
    def step(parameter: Tensor, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        (parameter**2).sum().backward()
        optimiser.step()

    first = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = kind([first], lr=0.1)
    step(first, optimiser)
    kept = {name: value.detach().clone() for name, value in adam_state("w", first, optimiser)}
    assert kept.keys() == {f"w.{part}" for part in parts}
    second = torch.nn.Parameter(torch.zeros(2))
    other = kind([second], lr=0.1)
    restore_adam("w", second, other, kept.__getitem__)
    step(first, optimiser)
    step(second, other)
    assert torch.equal(first, second)
