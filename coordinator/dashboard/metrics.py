# SPDX-License-Identifier: Apache-2.0
"""A run for Prometheus. Every name has its unit; what is not known is not there.

What is about the run goes through Prometheus' own library. Of the nodes there are thousands of lines, all of one shape,
for which the library takes ten times as long; the tests read them with the library's parser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.store.view import NodeView, RunView
from fedcore.device.readings import Readings

__all__ = ["exposition"]

_NO_READINGS = Readings()


def exposition(view: RunView) -> bytes:
    """The view in Prometheus' text format."""
    # Its own registry: this process' other numbers are nobody's business here.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_RunCollector(view))
    nodes = sorted(view.nodes.values(), key=lambda node: node.node)
    return generate_latest(registry) + "".join(_node_lines(nodes, set(view.excluded))).encode()


class _RunCollector(Collector):
    def __init__(self, view: RunView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        yield from _run(self._view)


def _run(view: RunView) -> Iterator[Metric]:
    rows = view.rows
    info = InfoMetricFamily("fedkrso_run", "The run.")
    info.add_metric([], {"run": view.run, "method": view.method, "digest": view.digest, "security": view.security})
    yield info
    phase = GaugeMetricFamily("fedkrso_phase", "1 for the phase that the run is in.", labels=["phase"])
    phase.add_metric([view.phase], 1)
    yield phase
    yield _gauge("fedkrso_round", "The round that is open, or that opens next.", view.round)
    yield _gauge("fedkrso_rounds_planned", "Rounds of the run.", view.total_rounds)
    yield _gauge("fedkrso_paused", "1 while no further round opens.", view.paused)
    yield _gauge("fedkrso_nodes_invited", "Nodes that the open round waits for or has waited for.", len(view.cohort))
    yield _gauge("fedkrso_round_updates_accepted", "Updates that are in, of the open round.", len(view.accepted))
    yield _gauge(
        "fedkrso_round_deadline_timestamp_seconds", "When the open round ends, if it has its quorum.", view.deadline_at
    )
    yield _gauge("fedkrso_view_timestamp_seconds", "When these numbers were taken.", view.written_at)
    # The row of a round is there before its updates leave the view.
    present = () if rows and rows[-1].round >= view.round else view.accepted
    accepted = sum(len(row.participants) for row in rows) + len(present)
    yield _counter("fedkrso_updates_accepted", "Updates that count or will count.", accepted)
    yield _counter(
        "fedkrso_updates_refused",
        "Updates and messages refused since this coordinator started.",
        view.counts.get("refused", 0),
    )
    yield _counter("fedkrso_rounds_closed", "Rounds with a published state.", len(rows))
    yield _counter("fedkrso_round_seconds", "Time that closed rounds took.", sum(row.seconds for row in rows))
    yield _counter("fedkrso_uplink_bytes", "From the nodes, in closed rounds.", sum(row.uplink_bytes for row in rows))
    yield _counter(
        "fedkrso_downlink_bytes",
        "To the nodes, in closed rounds; a broadcast counts for every node.",
        sum(r.downlink_bytes for r in rows),
    )
    if rows:
        yield _gauge("fedkrso_last_round_seconds", "Time that the last closed round took.", rows[-1].seconds)
        yield _gauge(
            "fedkrso_train_loss", "Mean of the participants' losses in the last closed round.", rows[-1].train_loss
        )
    measured = [row for row in rows if row.accuracy is not None]
    if measured:
        yield _gauge(
            "fedkrso_evaluated_round",
            "The last round whose published state was measured on held-out data.",
            measured[-1].round,
        )
        yield _gauge("fedkrso_accuracy_ratio", "Of that published state.", measured[-1].accuracy)
        yield _gauge("fedkrso_loss", "Of that published state.", measured[-1].loss)
        yield _metrics("fedkrso_metric", "Of that published state.", measured[-1].metrics)
    on_nodes = [row for row in rows if row.nodes is not None]
    if on_nodes and (found := on_nodes[-1].nodes) is not None:
        yield _gauge("fedkrso_nodes_measured_round", "The last round that nodes measured.", on_nodes[-1].round)
        yield _gauge("fedkrso_nodes_accuracy_ratio", "Of it, over all nodes' held-out rows.", found.accuracy)
        yield _gauge("fedkrso_nodes_loss", "Of it, over all nodes' held-out rows.", found.loss)
        yield _metrics("fedkrso_nodes_metric", "Of it, over all nodes' held-out rows.", found.metrics)
    events = CounterMetricFamily("fedkrso_events", "Events since this coordinator started.", labels=["kind"])
    for kind, count in sorted(view.counts.items()):
        events.add_metric([kind], count)
    yield events


def _metrics(name: str, meaning: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=["name"])
    for metric, value in values.items():
        family.add_metric([metric], value)
    return family


# Name, meaning, value; a value that is None is left out.
_NODE_GAUGES: tuple[tuple[str, str, Callable[[NodeView], float | None]], ...] = (
    ("online", "1 while the node is there.", lambda node: node.online),
    (
        "digest_ok",
        "0 while the node holds another model than the run published.",
        lambda node: None if not node.digest else not node.trouble,
    ),
    ("version", "Version of the model that the node holds.", lambda node: None if node.version < 0 else node.version),
    ("last_seen_timestamp_seconds", "When the node was last heard.", lambda node: node.last_seen_at),
    ("budget_bytes", "Memory that the node may use.", lambda node: node.budget_bytes or None),
    ("peak_bytes", "Highest memory of agent and worker so far.", lambda node: node.peak_bytes or None),
    ("available_bytes", "Memory that the device still has.", lambda node: node.available_bytes),
    ("step", "Local training step.", lambda node: node.step if node.steps else None),
    ("loss", "Local training loss.", lambda node: node.loss),
    ("temperature_celsius", "Of the hottest sensor.", lambda node: _readings(node).hottest_celsius),
    ("power_watts", "Drawn by the device.", lambda node: _readings(node).power_watts),
    ("battery_ratio", "Charge of the battery.", lambda node: _share(_readings(node).battery_percent)),
    ("throttled", "1 while the device runs slower than it could.", lambda node: _readings(node).throttled),
)


def _node_lines(nodes: list[NodeView], excluded: set[str]) -> Iterator[str]:
    # Names from the wire are letters, digits and `._-` (`fedcore.fields.checked.Name`): nothing in them needs escaping.
    for name, text, value in _NODE_GAUGES:
        yield _head(name, text)
        for node in nodes:
            known = value(node)
            if known is not None:
                yield f'fedkrso_node_{name}{{node="{node.node}"}} {float(known)!r}\n'
    yield _head("excluded", "1 for nodes that an operator takes out.")
    yield from (f'fedkrso_node_excluded{{node="{node.node}"}} {float(node.node in excluded)!r}\n' for node in nodes)
    yield _head("memory_bytes", "Memory in use.")
    for node in nodes:
        for component, held in _memory(node):
            yield f'fedkrso_node_memory_bytes{{component="{component}",node="{node.node}"}} {float(held)!r}\n'


def _head(name: str, text: str) -> str:
    return f"# HELP fedkrso_node_{name} {text}\n# TYPE fedkrso_node_{name} gauge\n"


def _memory(node: NodeView) -> Iterator[tuple[str, float]]:
    if node.agent_rss_bytes:
        yield "agent", node.agent_rss_bytes
    if node.worker_bytes is not None and node.worker_anonymous_bytes is None:
        yield "worker", node.worker_bytes
    if node.worker_anonymous_bytes is not None:
        yield "worker_anonymous", node.worker_anonymous_bytes
        if node.worker_bytes is not None:
            yield "worker_file", max(0, node.worker_bytes - node.worker_anonymous_bytes)
    if node.accelerator_bytes is not None:
        yield "accelerator", node.accelerator_bytes


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], float(value))
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _readings(node: NodeView) -> Readings:
    return node.readings or _NO_READINGS


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
