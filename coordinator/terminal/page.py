# SPDX-License-Identifier: Apache-2.0
"""The pages of `fedkrso status` and `fedkrso nodes`: a run on one screen, a node on one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.reports.nodes import NodeRow, node_rows
from coordinator.reports.runs import RunRecord
from coordinator.reports.spread import spread_of
from coordinator.reports.tables import Column, fitted, plain_table
from coordinator.store.ledger import RoundRow
from coordinator.store.standing import standing_of
from coordinator.store.view import RunView
from coordinator.terminal.console import ago, bar, clock, megabytes, minutes, sparkline
from coordinator.terminal.forecast import forecast
from fedcore.system.logs import printable

__all__ = ["nodes_page", "phase_words", "rounds_table", "status_page"]

_SHOWN_ROUNDS = 6
_SHOWN_EVENTS = 6
# Characters of a cell whose words come from a node; less on a narrow terminal.
_MOST = 28
_STATE_STYLES = {"running": "bold green", "finished": "bold", "stopped": "bold red"}


def status_page(record: RunRecord, now: float, *, width: int, ascii_only: bool) -> RenderableType:
    """A run on one screen.

    Args:
        record: The run.
        now: Unix seconds.
        width: Of the terminal, in cells.
        ascii_only: The terminal knows nothing else.
    """
    view = record.view
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, words, style in _facts(record, now, width=width, ascii_only=ascii_only):
        facts.add_row(name, Text(words, style=style))
    parts: list[RenderableType] = [_head(record), facts]
    if record.rows:
        parts += [Text(), rounds_table(record.rows[-_SHOWN_ROUNDS:], record.view.title)]
    if view.events:
        parts += [Text(), Text("last events", style="dim")]
        parts += [_cut(Text(f"  {clock(e.at)}  {printable(e.line())}"), width) for e in view.events[-_SHOWN_EVENTS:]]
    parts.append(_foot(record, now))
    return Group(*parts)


def phase_words(record: RunRecord, now: float) -> str:
    """What the run does, and until when."""
    view, total = record.view, record.view.total_rounds
    if record.state != "running":
        return f"{len(record.rows)} of {total} rounds"
    if view.phase in ("finishing", "finished"):
        return f"{len(record.rows)} of {total} rounds are published, no other opens; nodes report their last word"
    if view.phase == "preparing":
        return "preparing: what of the model is trained is being found out"
    rounds = f"round {min(view.round, total)} of {total}"
    if view.phase == "open":
        return f"{rounds} is open{_ahead(view, now)}"
    if view.phase == "closing":
        return f"{rounds} is closing: updates are summed"
    return f"{rounds} is next; waiting for nodes"


def rounds_table(rows: list[RoundRow], title: Callable[[int], str] = str) -> Table:
    """A row a round.

    Args:
        rows: Of the rounds.
        title: What a round is called, by its number (`RunView.title`).
    """
    table = plain_table()
    # On the nodes' own rows, where they measure.
    on_nodes = any(row.nodes is not None for row in rows)
    for column in ("round", "updates", "accuracy", *(("on nodes",) if on_nodes else ()), "train loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("up MB", "down MB", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.3f}"
        megabytes = (f"{size / 1e6:.2f}" for size in (row.uplink_bytes, row.downlink_bytes))
        table.add_row(
            title(row.round),
            str(len(row.participants)),
            accuracy,
            *((("-" if row.nodes is None else f"{row.nodes.accuracy:.3f}"),) if on_nodes else ()),
            f"{row.train_loss:.3f}",
            *megabytes,
            f"{row.seconds:.1f}",
        )
    return table


def _head(record: RunRecord) -> Text:
    head = Text()
    head.append(printable(record.name), style="bold")
    head.append(f"  {printable(record.view.method)}  ")
    head.append(record.state, style=_STATE_STYLES[record.state])
    if record.why:
        head.append(f": {printable(record.why)}")
    return head


def _facts(record: RunRecord, now: float, *, width: int, ascii_only: bool) -> list[tuple[str, str, str]]:
    view, facts = record.view, list[tuple[str, str, str]]()
    facts.append(("progress", phase_words(record, now), ""))
    if view.paused:
        facts.append(("paused", "no further round opens until somebody resumes", "bold yellow"))
    if record.state == "running" and view.cohort and view.phase in ("open", "closing"):
        facts.append(("updates", _updates(view), ""))
    if record.measured:
        facts.append(("accuracy", _accuracy(record, max(8, width - 56), ascii_only=ascii_only), ""))
    if (newest := next((row for row in reversed(record.rows) if row.nodes is not None), None)) and newest.nodes:
        words = f"accuracy {newest.nodes.accuracy:.3f} of version {newest.round}, {spread_of(newest.nodes).words}"
        facts.append(("on nodes", printable(words), ""))
    facts += [(where, printable(words), "") for where, words in _metrics(record)]
    if (standing := standing_of(record.rows, record.evaluation)) and standing.best is not None:
        facts.append(("best round", f"{standing.best}, {standing.by} {standing.value:.3f}", ""))
    if record.rows:
        up, down = (
            sum(sizes) for sizes in zip(*((row.uplink_bytes, row.downlink_bytes) for row in record.rows), strict=True)
        )
        facts.append(("wire", f"{megabytes(up)} up, {megabytes(down)} down in {len(record.rows)} rounds", ""))
    if view.nodes:
        facts.append(("nodes", _nodes(record), ""))
    if view.excluded:
        facts.append(("excluded", _names(view.excluded), "yellow"))
    if view.security:
        facts.append(("security", printable(view.security), "bold yellow" if "INSECURE" in view.security else ""))
    if record.rows and (spent := record.rows[-1].privacy) is not None:
        facts.append(("privacy", printable(spent.words()), ""))
    if view.digest:
        facts.append(("digest", printable(view.digest[:16]), ""))
    return facts


def _ahead(view: RunView, now: float) -> str:
    """How long it will probably take, and how long it may."""
    foreseen, words = forecast(view, now), ""
    if foreseen is not None:
        words = f", about {minutes(foreseen.round_seconds)} left"
        if view.round < view.total_rounds:
            words += f" of it and {minutes(foreseen.run_seconds)} of the run"
    if view.deadline_at is None:
        return words
    left = view.deadline_at - now
    return (
        f"{words}; its deadline is in {minutes(left)}" if left >= 0 else f"{words}; {minutes(-left)} over its deadline"
    )


def _updates(view: RunView) -> str:
    missing = [name for name in view.cohort if name not in view.accepted and name not in view.excluded]
    if view.buffer_size:
        words = f"{len(view.accepted)} of {view.buffer_size} are in the buffer"
        return f"{words}; at work: {_names(tuple(missing))}" if missing else words
    words = f"{len(view.accepted)} of {len(view.cohort)} are in"
    return f"{words}; missing: {_names(tuple(missing))}" if missing else words


def _metrics(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Of the newest state that was measured, here and on nodes: whatever is measured beside accuracy and loss."""
    here = next(((row.round, row.metrics) for row in reversed(record.measured)), (0, {}))
    there = next(((row.round, row.nodes.metrics) for row in reversed(record.rows) if row.nodes is not None), (0, {}))
    for where, (version, metrics) in (("metrics", here), ("metrics on nodes", there)):
        if metrics:
            words = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            yield where, f"{words} of version {version}"


def _accuracy(record: RunRecord, width: int, *, ascii_only: bool) -> str:
    values = [row.accuracy for row in record.measured if row.accuracy is not None]
    best = max(record.measured, key=lambda row: row.accuracy or 0.0)
    line = sparkline(values, width, ascii_only=ascii_only)
    return (
        f"{line}  {values[-1]:.3f} in round {record.measured[-1].round}, best {best.accuracy:.3f} in round {best.round}"
    )


def _nodes(record: RunRecord) -> str:
    rows = node_rows(record.view)
    online = sum(row.view.online for row in rows)
    words = f"{online} of {len(rows)} online" if record.state == "running" else f"{len(rows)}, as they were last seen"
    need = tuple(row.view.node for row in rows if row.notes)
    return f"{words}; attention: {_names(need)}" if need else words


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(printable(name) for name in names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


def _foot(record: RunRecord, now: float) -> Text:
    age = record.age_seconds(now)
    if age is None or record.state == "finished":
        return Text()
    return Text(f"as of {ago(age)} ago", style="dim" if age < 15 or record.state != "running" else "yellow")


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def nodes_page(record: RunRecord, rows: list[NodeRow], now: float, *, width: int, ascii_only: bool) -> RenderableType:
    """A line a node, under the run's own; what needs attention has the rest of the line."""
    most = min(_MOST, width // 4)
    columns = [
        Column("node", [_short(row.view.node, width // 3) for row in rows], 9),
        Column("state", [_short(row.activity, most) for row in rows], 8),
        Column("memory", [_memory(row, 8 if width >= 100 else 5, ascii_only=ascii_only) for row in rows], 7),
        Column("model", [f"{max(row.view.version, 0)} {row.digest}".strip() for row in rows], 4),
        Column("temp", ["" if row.celsius is None else f"{row.celsius:.0f} C" for row in rows], 6, right=True),
        Column(
            "seen",
            ["" if row.view.last_seen_at is None else ago(now - row.view.last_seen_at) for row in rows],
            5,
            right=True,
        ),
        Column("power", ["" if row.watts is None else f"{row.watts:.1f} W" for row in rows], 3, right=True),
        Column("device", [_short(row.view.device, most) for row in rows], 2),
        Column("version", [_short(row.view.software, most) for row in rows], 1),
    ]
    notes = Column("attention", ["; ".join(row.notes) for row in rows], 0)
    styles = [
        "red" if row.view.trouble else "dim" if not row.view.online else "yellow" if row.notes else "" for row in rows
    ]
    head = _head(record)
    head.append(f"; {phase_words(record, now)}" if not record.why else "")
    nobody = Text("no node needs attention" if record.view.nodes else "no node has been seen yet")
    return Group(
        _cut(head, width), fitted(columns, width, styles=styles, rest=notes) if rows else nobody, _foot(record, now)
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]}.."


def _memory(row: NodeRow, width: int, *, ascii_only: bool) -> str:
    if row.share is None:
        return ""
    used, budget = row.used_bytes / 2**20, row.view.budget_bytes / 2**20
    return f"{bar(row.share, width, ascii_only=ascii_only)} {used:.0f}/{budget:.0f} MiB"
