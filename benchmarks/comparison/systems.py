# SPDX-License-Identifier: Apache-2.0
"""The systems beside FedKRSO and LoRA's family (docs/details/other-methods.md), compared in the same way: three
learning rates in steps of about three, a head from sums wherever nodes share one, and as many steps of as many rows.

A head's rate goes with the method's, and is the same for all at the middle of a search, 2e-4 to 3e-4: an adapter of few
numbers wants a hundred times the rate of a head that is good already."""

from __future__ import annotations

from typing import Final

from benchmarks.comparison.methods import Compared

__all__ = ["SYSTEMS"]

SYSTEMS: Final = {
    one.name: one
    for one in (
        Compared("IA3", "fedavg-peft[peft.type=ia3]", (0.1, 0.333, 1.0), (0.333, 1.0, 3.33), 0.02),
        Compared("prompts", "fedavg-peft[peft.type=prompt]", (0.1, 0.3, 1.0), (0.3, 1.0, 3.0), 0.006),
        Compared("prefixes", "fedavg-peft[peft.type=prefix]", (0.1, 0.333, 1.0), (0.333, 1.0, 3.33), 0.02),
        Compared("FedTT", "fedtt", (0.3, 1.0, 3.0), (0.3, 1.0, 3.0), 0.02),
        Compared("FedTT+", "fedtt+", (0.333, 1.0, 3.33), (0.333, 1.0, 3.33), 0.006),
        Compared("SLoRA", "slora", (0.3, 1.0, 3.0), (1.0, 3.0, 10.0), 0.2),
        # Its rate's default is 1e-2. Prompts of half of the layers are each node's own, and so is its head.
        Compared("FedPepTAO, own rows", "fedpeptao", (1.0, 3.0, 10.0), (1.0, 3.0, 10.0), 0.1, head="random"),
        # The same, with a model of each node's own; SGD, but Adam for the head.
        Compared("SpaFL, own rows", "spafl", (1.0, 3.0, 10.0), (1.0, 3.0, 10.0), 0.1, head="random"),
        # No rate to search: the step size that was best on Shakespeare. 768 rows go forward in a
        # round; the others have 96 with gradients.
        Compared(
            "FedBPT",
            "fedbpt[sigma=0.3,num_virtual_tokens=10,intrinsic_dim=100,interval_steps=8,steps=8,batch_size=16,published_bits=16]",
            (1.0,),
            (1.0,),
        ),
        # A node at a time.
        Compared("FedCyBGD", "fedcybgd[order=random]", (0.03, 0.1, 0.3), (0.1, 0.3, 1.0), turns=4),
    )
}
