# SPDX-License-Identifier: Apache-2.0
"""How many nodes it takes until the noise on a round's mean is no larger than the mean may be, and what few nodes
would spend for as little noise:

    python -m benchmarks.privacy.needed

The noise on a mean of n updates has a norm of about z clip sqrt(d) / n, with d numbers; the mean has at most clip. Six
rounds, everybody in each, delta a tenth of one in n."""

from __future__ import annotations

import math

from fedcore.privacy.accounting import Releases, epsilon_of, noise_for

_ROUNDS = 6
# Rows of the target layers of all-MiniLM-L6-v2 together, its pooler among them, and the head for two labels.
_ROWS, _HEAD = 21_120, 770


def needed(epsilon: float, numbers: int) -> int:
    """Nodes for an epsilon: the noise depends on delta, and that on the nodes.

    Example:
        >>> needed(8.0, _ROWS + _HEAD)
        196
    """
    nodes = 100
    for _ in range(8):
        nodes = math.ceil(noise_for(epsilon, 0.1 / nodes, Releases(_ROUNDS)) * math.sqrt(numbers))
    return nodes


def main() -> None:
    """Print both tables."""
    sizes = {"rank 1, one subspace": _ROWS + _HEAD, "defaults: rank 16, four subspaces": 64 * _ROWS + _HEAD}
    for words, numbers in sizes.items():
        print(words, numbers, {epsilon: needed(epsilon, numbers) for epsilon in (2.0, 8.0, 32.0)})
    for nodes in (4, 10, 40, 400):
        noise = nodes / math.sqrt(_ROWS + _HEAD)
        print(nodes, "nodes:", f"{epsilon_of(noise, 0.1 / nodes, Releases(_ROUNDS)):.4g}")


if __name__ == "__main__":
    main()
