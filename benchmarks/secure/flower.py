# SPDX-License-Identifier: Apache-2.0
"""One node's round in Flower's SecAgg+, by Flower's own functions, beside `benchmarks.secure.cost`: with the same
neighbours, threshold and numbers.

    python benchmarks/secure/flower.py [--nodes 4 30 100 300] [--numbers 829440]

It runs where Flower is installed (`pip install flwr`; nothing here needs it otherwise): the stages of its client, as
the server's messages would call them, with the settings of its documentation (values clipped to 8 and quantised to 22
bits, sums modulo 2**32). Its messages carry no signatures."""

from __future__ import annotations

import argparse
import importlib
import math
import time
from typing import Any

import numpy as np

_NEIGHBOURS = {4: 3, 30: 29, 100: 42, 300: 74}
"""As `benchmarks.secure.cost` prints them."""


def measured(near: int, numbers: int) -> tuple[float, float, int, int, str]:
    """Processor seconds of keys and shares, and of masking; bytes of shares, and of the masked update; the version."""
    mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    common: Any = importlib.import_module("flwr.common")
    holders = near + 1
    threshold = math.floor(2 / 3 * holders) + 1
    settings = {
        "sample_num": holders,
        "share_num": holders,
        "threshold": threshold,
        "clipping_range": 8.0,
        "target_range": 1 << 22,
        "mod_range": 1 << 32,
        "max_weight": 1000.0,
    }
    states = []
    for number in range(holders):
        state = mod.SecAggPlusState()
        state.nid = number
        states.append(state)
    began = time.process_time()
    mod._setup(states[0], _as_config(mod, settings))
    seconds = time.process_time() - began
    for state in states[1:]:
        mod._setup(state, _as_config(mod, settings))
    keys = {str(state.nid): (state.pk1, state.pk2) for state in states}
    began = time.process_time()
    sent = mod._share_keys(states[0], keys)
    seconds += time.process_time() - began
    boxes = sent[mod.Key.CIPHERTEXT_LIST]
    shares_bytes = sum(map(len, boxes)) + len(states[0].pk1) + len(states[0].pk2)
    incoming: dict[str, list[Any]] = {mod.Key.SOURCE_LIST: [], mod.Key.CIPHERTEXT_LIST: []}
    # Of the others' shares one set is as good as another: this node only decrypts and keeps them.
    shares = [mod.create_shares(secret, threshold, holders)[0] for secret in (bytes(32), states[1].sk1)]
    own = mod.bytes_to_public_key(states[0].pk2)
    for state in states[1:]:
        shared = mod.generate_shared_key(mod.bytes_to_private_key(state.sk2), own)
        incoming[mod.Key.SOURCE_LIST].append(state.nid)
        box = mod.encrypt(shared, mod.share_keys_plaintext_concat(state.nid, 0, *shares))
        incoming[mod.Key.CIPHERTEXT_LIST].append(box)
    update = common.ndarrays_to_parameters([np.random.default_rng(0).normal(size=numbers).astype(np.float32)])
    began = time.process_time()
    masked = mod._collect_masked_vectors(states[0], incoming, 1000, update)
    masking = time.process_time() - began
    size = sum(map(len, masked[mod.Key.MASKED_PARAMETERS]))
    return seconds, masking, shares_bytes, size, importlib.import_module("importlib.metadata").version("flwr")


def _as_config(mod: Any, settings: dict[str, Any]) -> dict[str, Any]:
    names = {
        "sample_num": mod.Key.SAMPLE_NUMBER,
        "share_num": mod.Key.SHARE_NUMBER,
        "threshold": mod.Key.THRESHOLD,
        "clipping_range": mod.Key.CLIPPING_RANGE,
        "target_range": mod.Key.TARGET_RANGE,
        "mod_range": mod.Key.MOD_RANGE,
        "max_weight": mod.Key.MAX_WEIGHT,
    }
    return {names[key]: value for key, value in settings.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 30, 100, 300])
    parser.add_argument("--numbers", type=int, default=829_440)
    options = parser.parse_args()
    print("| nodes | neighbours | keys and shares up | masked update | node: keys and shares, masking | Flower |")
    print("|---|---|---|---|---|---|")
    for count in options.nodes:
        near = _NEIGHBOURS.get(count, count - 1)
        seconds, masking, shares_bytes, size, version = measured(near, options.numbers)
        print(
            f"| {count} | {near} | {shares_bytes / 1000:.1f} kB | {size / 1e6:.2f} MB | {seconds:.3f}, {masking:.2f} s "
            f"| {version} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
