# SPDX-License-Identifier: Apache-2.0
"""Runs as an operator may meet them, made of the coordinator's own values; everything derives from a seed."""

from __future__ import annotations

import math
import random
from typing import Any

from coordinator.store.ledger import RoundRow
from coordinator.store.view import EventView, NodeView, RunView
from fedcore.device.memoryplan import MemoryComponents
from fedcore.device.readings import Readings

MIB = 2**20
NOW = 1_790_000_000.0
DIGEST = "a3f19c0de4b7" + "5" * 52
DEVICES = (
    ("NVIDIA Jetson Orin Nano Developer Kit", "float16 on cuda, sm_87", 2560, "15W"),
    ("NVIDIA Jetson Xavier NX", "float16 on cuda, sm_72", 2048, "MODE_15W_6CORE"),
    ("Raspberry Pi 5 Model B Rev 1.0", "float32 on cpu", 1536, ""),
    ("LENOVO ThinkPad T14 Gen 3", "float32 on cpu", 3072, ""),
    ("NVIDIA Jetson AGX Orin 64GB", "float16 on cuda, sm_87", 8192, "MAXN"),
)
PLACES = ("kitchen", "hall", "office", "garage", "attic", "porch", "cellar", "studio")


def rounds(number: int, nodes: list[str], *, evaluated: bool = True) -> list[RoundRow]:
    """Finished rounds that learn, the last one perhaps not yet evaluated."""
    draw = random.Random(7)
    rows = []
    for r in range(1, number + 1):
        measured = evaluated or r < number
        accuracy = 0.93 - 0.62 * math.exp(-r / 2.2) + draw.uniform(-0.01, 0.01)
        up, down = 1_580_000 * len(nodes), 790_000 * len(nodes) * (2 if r == 1 else 1)
        rows.append(
            RoundRow(
                r,
                tuple(nodes),
                int(up * draw.uniform(0.98, 1.02)),
                int(down * draw.uniform(0.95, 1.05)),
                draw.uniform(38, 61),
                0.25 + 2.6 * math.exp(-r / 2.0),
                accuracy if measured else None,
                0.31 + 2.7 * math.exp(-r / 2.1) if measured else None,
                norms={node: draw.uniform(0.8, 2.6) for node in nodes[:40]},
                clipped={nodes[0]: 0.71} if r == 2 and len(nodes) > 4 else {},
            )
        )
    return rows


def node(index: int, name: str, version: int, seed: int = 0) -> NodeView:
    """A node at work."""
    draw = random.Random(f"{seed}/{index}")
    device, route, budget, mode = DEVICES[index % len(DEVICES)]
    share = draw.uniform(0.45, 0.86)
    worker = int(budget * MIB * share) - 31 * MIB
    state = draw.choice(("training", "training", "training", "sending", "idle", "adopting"))
    heat = draw.uniform(41, 68)
    laptop = not mode and index % len(DEVICES) == 3
    temperatures = (
        {"package": 71.0}
        if laptop
        else {"cpu": round(heat, 1), "gpu": round(heat - 1.6, 1), "soc": round(heat - 0.8, 1)}
    )
    return NodeView(
        name,
        online=True,
        state=state,
        device=device,
        software="0.1.0",
        route=route,
        last_seen_at=NOW - draw.uniform(0, 4),
        version=version,
        digest=DIGEST,
        step=draw.randint(1, 60) if state == "training" else 0,
        steps=60 if state == "training" else 0,
        loss=draw.uniform(0.3, 0.9),
        budget_bytes=budget * MIB,
        agent_rss_bytes=int(31.4 * MIB),
        worker_bytes=worker,
        worker_anonymous_bytes=int(worker * 0.71),
        accelerator_bytes=None,
        available_bytes=3200 * MIB,
        peak_bytes=int(budget * MIB * min(0.97, share + 0.07)),
        agent_peak_rss_bytes=int(33.1 * MIB),
        memory_group="cgroup v2: memory.max",
        components=components(worker),
        readings=Readings(
            memory_total_bytes=7620 * MIB,
            memory_available_bytes=3200 * MIB,
            temperatures_celsius=temperatures,
            power_watts=round(draw.uniform(5, 19), 1) if mode else None,
            power_mode=mode,
            throttled=False,
            on_mains=True if laptop else None,
            battery_percent=88.0 if laptop else None,
            processor_percent=draw.uniform(20, 95),
        ),
        uplink_bytes=9_400_000,
        downlink_bytes=14_100_000,
        security="TLS 1.3, signed",
    )


def components(worker: int) -> MemoryComponents:
    share = worker // 100
    return MemoryComponents(
        runtime_bytes=38 * share,
        weights_bytes=14 * share,
        embeddings_bytes=11 * share,
        subspaces_bytes=5 * share,
        optimiser_bytes=4 * share,
        buffer_bytes=2 * share,
        activations_bytes=13 * share,
        logits_bytes=share,
        working_bytes=7 * share,
        slack_bytes=5 * share,
    )


def run(number: int, *, total_rounds: int = 12, done: int = 6, seed: int = 0, troubles: bool = True) -> RunView:
    """A run with so many nodes in the middle of a round; with `troubles`, a few nodes need attention."""
    names = [
        f"{PLACES[i % len(PLACES)]}-{i // len(PLACES) + 1:02d}" if number > 4 else f"home-{i}" for i in range(number)
    ]
    nodes = {name: node(i, name, done, seed) for i, name in enumerate(names)}
    view = RunView("voice-intents", "fedkrso rank 8, 5 seeds, pool", total_rounds)
    view.phase, view.round, view.written_at = "open", done + 1, NOW
    view.round_opened_at, view.deadline_at = NOW - 47, NOW + 260
    view.cohort, view.accepted = tuple(names), tuple(names[: number // 3])
    view.security = "TLS 1.3, messages signed"
    view.digest, view.rows, view.nodes = DIGEST, rounds(done, names, evaluated=False), nodes
    view.events = [
        EventView(NOW - 400, "clipped", names[0], 2, "round 2: norm 2.8134, scaled by 0.710882 to the bound of 2"),
        EventView(NOW - 90, "link", names[-1], done, "connection lost, back after 12 s"),
    ]
    if troubles and number > 4:
        _trouble(view, names)
    return view


def _trouble(view: RunView, names: list[str]) -> None:
    nodes = view.nodes
    away, wrong, tight, hot, full = (nodes[names[i]] for i in (3, 5, 8, 10, 12))
    away.online, away.state, away.last_seen_at = False, "lost", NOW - 372
    wrong.trouble = f"version {wrong.version} is 90ab12cd34ef, not {DIGEST[:12]}: resynchronising"
    tight.worker_bytes = int(0.94 * tight.budget_bytes) - tight.agent_rss_bytes
    hot.readings = Readings(
        temperatures_celsius={"cpu": 84.5}, power_watts=7.9, power_mode="15W", throttled=True, throttle_reason="too hot"
    )
    full.state, full.reason = (
        "full",
        "no room for the round's update: 84 MB free, 120 MB needed; 100 MiB stay in reserve",
    )
    view.excluded = (names[14],)
    view.cohort = tuple(name for name in view.cohort if name != names[14])
    view.events += [
        EventView(NOW - 60, "digest", wrong.node, view.round, wrong.trouble),
        EventView(NOW - 45, "declined", full.node, view.round, full.reason),
        EventView(NOW - 20, "refused", names[6], view.round, "late: the round is over"),
        EventView(NOW - 8, "command", names[14], view.round, "operator: excluded from the next round on"),
    ]


def history(seen: NodeView, points: int = 240) -> dict[str, list[Any]]:
    """A node's history: three rounds of training with pauses between."""
    draw = random.Random(seen.node)
    table: dict[str, list[Any]] = {key: [] for key in HISTORY}
    top = (seen.worker_bytes or 0) / 0.95
    for i in range(points):
        phase = (i % 80) / 80
        active = 0.12 < phase < 0.9
        worker = top * (min(1.0, 0.55 + 2.2 * (phase - 0.12)) + draw.uniform(-0.02, 0.02)) if active else None
        table["at"].append(NOW - (points - 1 - i) * 4)
        table["agent_bytes"].append(seen.agent_rss_bytes + draw.randint(-MIB, MIB))
        table["worker_anonymous_bytes"].append(worker and int(worker * 0.72))
        table["worker_file_bytes"].append(worker and int(worker * 0.28))
        table["accelerator_bytes"].append(None)
        table["available_bytes"].append(seen.available_bytes)
        table["budget_bytes"].append(seen.budget_bytes)
        table["hottest_celsius"].append(52 + 9 * math.sin(i / 19) + draw.uniform(-0.6, 0.6))
        power = seen.readings.power_watts if seen.readings else None
        table["power_watts"].append(
            None if power is None else power * (1.0 if active else 0.5) + draw.uniform(-0.4, 0.4)
        )
        table["step"].append(int(60 * phase) if active else None)
        table["loss"].append(0.3 + 1.4 * math.exp(-i / 60) + draw.uniform(-0.03, 0.03) if active else None)
    return table


HISTORY = (
    "at",
    "agent_bytes",
    "worker_anonymous_bytes",
    "worker_file_bytes",
    "accelerator_bytes",
    "available_bytes",
    "budget_bytes",
    "hottest_celsius",
    "power_watts",
    "step",
    "loss",
)
