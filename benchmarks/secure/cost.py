# SPDX-License-Identifier: Apache-2.0
"""What secure aggregation costs a node and the coordinator in a round: bytes, processor seconds and memory.

    python -m benchmarks.secure.cost [--nodes 4 30 100 300] [--numbers 829440] [--lost 0.1]

The exchange is the real one, of all nodes in one process: every message is signed, encoded, decoded and checked, and so
are the secrets that come out. An update is masked by a process of its own, which imports what an
agent does and is given one node's masks, so that its memory can be read off. `--numbers` is by default what FedKRSO
trains of MiniLM with rank 8 and five seeds."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from coordinator.secure.exchange import Exchange, KeptExchange, Tell
from edge_client.secure.party import Kept, Party, Trust
from fedcore.methods.beside.secure import SecureSection
from fedcore.model.lanes import from_lanes
from fedcore.secure.masks import CHUNK_BYTES, key_stream
from fedcore.wire.codec import decode, encode
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Envelope
from fedcore.wire.secure import certified_bytes, context_of

_AUTHORITY = SigningKey(bytes([255]) * 32)
_ATTEMPT = "1-train-0"
_MASKING = """\
import sys, time
import paho.mqtt.client, msgpack, msgspec, nacl.signing, psutil, sqlite3
from fedcore.secure.masks import masked_chunks
path, lane_bytes, masks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def most():
    # Not ru_maxrss, which begins with what the process that started this one has.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
before = most()
seeds = [(1 - 2 * (number % 2), number.to_bytes(32, "little")) for number in range(masks)]
began = time.process_time()
with open(path, "rb") as file, open(path + ".masked", "wb") as out:
    out.writelines(masked_chunks(file, lane_bytes, seeds, 64))
print(time.process_time() - began, before, most())
"""


@dataclass
class Costs:
    """Of one round's exchange.

    Attributes:
        up: Bytes that nodes have sent.
        down: Bytes that they were sent.
        node_seconds: All nodes' processor time, with the encoding and signing of their messages.
        led_seconds: The coordinator's.
    """

    up: int = 0
    down: int = 0
    node_seconds: float = 0.0
    led_seconds: float = 0.0
    parties: dict[str, Party] = field(default_factory=dict)


def exchanged(count: int, lost: int) -> tuple[Costs, Exchange]:
    """A round's whole exchange among so many nodes, of whom some are lost once they have shared their secrets."""
    names = [f"node-{number:04d}" for number in range(count)]
    section, costs, keys = SecureSection(), Costs(), {}
    settings = section.asked(count, 0.0, 0, "uniform")
    context = context_of("r", "", _ATTEMPT)
    for number, name in enumerate(names):
        keys[name] = key = SigningKey(number.to_bytes(32, "little"))
        trust = Trust(key, _AUTHORITY.public, _AUTHORITY.sign(certified_bytes(name, key.public.hex)))
        kept = Kept(attempt=_ATTEMPT, round=1, seed=(2**200 + number).to_bytes(32, "little"))
        costs.parties[name] = Party(name, trust, settings, context, kept)
    exchange = Exchange(settings, frozenset(names), 0.0, KeptExchange(attempt=_ATTEMPT))

    def stage(people: list[str]) -> None:
        """Nodes say what they have to say, and hear what comes of it, until nothing does."""
        said: dict[str, object] = {}
        while True:
            told: list[Tell] = []
            for name in people:
                began = time.process_time()
                body = costs.parties[name].saying
                if body is None or body == said.get(name):
                    costs.node_seconds += time.process_time() - began
                    continue
                said[name] = body
                packed = encode(Envelope(run="r", round=1, node=name, body=body), keys[name])
                costs.node_seconds += time.process_time() - began
                costs.up += len(packed)
                began = time.process_time()
                heard = decode(packed, keys[name].public).body
                actions = exchange.handle(name, heard, 0.0)  # type: ignore[arg-type]
                costs.led_seconds += time.process_time() - began
                told += [action for action in actions if isinstance(action, Tell)]
            if not told:
                return
            for tell in told:
                if tell.node in people:
                    began = time.process_time()
                    packed = encode(Envelope(run="r", round=1, node=tell.node, body=tell.body), _AUTHORITY)
                    costs.led_seconds += time.process_time() - began
                    costs.down += len(packed)
                    began = time.process_time()
                    costs.parties[tell.node].handle(decode(packed, _AUTHORITY.public).body)  # type: ignore[arg-type]
                    costs.node_seconds += time.process_time() - began

    stage(names)
    alive = names[lost:]
    began = time.process_time()
    actions = exchange.close(alive, 0.0)
    costs.led_seconds += time.process_time() - began
    for action in actions:
        if isinstance(action, Tell):
            packed = encode(Envelope(run="r", round=1, node=action.node, body=action.body), _AUTHORITY)
            costs.down += len(packed)
            costs.parties[action.node].handle(action.body)  # type: ignore[arg-type]
    stage(alive)
    assert exchange.result is not None, exchange.failure
    assert len(exchange.result.self_seeds) == len(alive) and len(exchange.result.mask_keys) == lost
    return costs, exchange


def masking(folder: Path, numbers: int, lane_bytes: int, masks: int) -> tuple[float, float, float]:
    """Seconds, MiB before and MiB at most, of a process that masks an update as an agent does."""
    path = folder / "lanes"
    path.write_bytes(np.random.default_rng(0).bytes(numbers * lane_bytes))
    command = [sys.executable, "-c", _MASKING, str(path), str(lane_bytes), str(masks)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, before, most = map(float, out.split())
    return seconds, before, most


def unmasking_rate(lane_bytes: int) -> float:
    """Processor seconds that the coordinator needs for a number and a mask."""
    total, count = np.zeros(CHUNK_BYTES // lane_bytes, np.uint64), 200
    began = time.process_time()
    for number in range(count):
        np.subtract(total, from_lanes(key_stream(bytes(32), number), lane_bytes), out=total)
    return (time.process_time() - began) / (count * len(total))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 30, 100, 300])
    parser.add_argument("--numbers", type=int, default=829_440)
    parser.add_argument("--lost", type=float, default=0.1)
    options = parser.parse_args()
    print(
        "| nodes | neighbours | lost | messages up, down a node | masked update | node: messages, masking "
        "| agent's memory | coordinator: messages, masks off |\n|---|---|---|---|---|---|---|---|"
    )
    for count in options.nodes:
        lost = int(options.lost * count)
        costs, exchange = exchanged(count, lost)
        near, alive = len(exchange.near[0]), count - lost
        lane_bytes = exchange.settings.lane_bytes
        with tempfile.TemporaryDirectory() as folder:
            seconds, before, most = masking(Path(folder), options.numbers, lane_bytes, near + 1)
        left = alive + sum(near - sum(other < lost for other in exchange.near[place]) for place in range(lost))
        off = unmasking_rate(lane_bytes) * options.numbers * left
        print(
            f"| {count} | {near} | {lost} | {costs.up / count / 1000:.1f}, {costs.down / count / 1000:.1f} kB "
            f"| {options.numbers * lane_bytes / 1e6:.2f} MB ({lane_bytes} bytes a number) "
            f"| {costs.node_seconds / count:.3f}, {seconds:.2f} s | {before:.1f} to {most:.1f} MiB "
            f"| {costs.led_seconds:.2f}, {off:.1f} s ({left} masks) |",
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nAll of it in {time.process_time():.0f} s and {peak:.0f} MiB; msgspec {msgspec.__version__}.")


if __name__ == "__main__":
    main()
