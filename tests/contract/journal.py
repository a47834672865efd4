# SPDX-License-Identifier: Apache-2.0
"""A ledger of one's own: a file to which every change is appended, read back whole at the start.

It derives from nothing: what `coordinator.store.ledger.Ledger` says is all that it has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from coordinator.store.ledger import RoundRow, UpdateRow
from fedcore.fields.prepared import prepared
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan, StateObject

__all__ = ["JournalLedger"]

T = TypeVar("T")


class JournalLedger:
    """A ledger in one file of lines; a line that a crash cut short never happened."""

    def __init__(self, path: Path) -> None:
        self._facts: dict[str, bytes] = {}
        self._plans: dict[int, Plan] = {}
        self._updates: dict[tuple[int, str], UpdateRow] = {}
        self._objects: dict[tuple[int, str], StateObject] = {}
        self._measurements: dict[tuple[int, str], Measurement] = {}
        self._rounds: dict[int, RoundRow] = {}
        self._events: list[tuple[float, str, str, str]] = []
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
            self._apply(msgspec.json.decode(line))
        self._file = path.open("ab")

    def _write(self, *changes: tuple[str, Any]) -> None:
        """All of the changes, or none: one line, flushed."""
        line = msgspec.json.encode([(kind, msgspec.msgpack.encode(value)) for kind, value in changes])
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(msgspec.json.decode(line))

    def _apply(self, changes: list[tuple[str, str]]) -> None:
        for kind, text in changes:
            raw = msgspec.json.decode(msgspec.json.encode(text), type=bytes)
            match kind:
                case "fact":
                    name, value = msgspec.msgpack.decode(raw, type=tuple[str, bytes])
                    self._facts[name] = value
                case "plan":
                    plan = msgspec.msgpack.decode(raw, type=prepared(Plan))
                    self._plans[plan.round] = plan
                case "update":
                    update = msgspec.msgpack.decode(raw, type=UpdateRow)
                    self._updates[update.header.round, update.header.node] = update
                case "object":
                    obj = msgspec.msgpack.decode(raw, type=StateObject)
                    self._objects[obj.version, obj.kind] = obj
                case "drop":
                    self._objects.pop(msgspec.msgpack.decode(raw, type=tuple[int, str]), None)
                case "measurement":
                    node, measurement = msgspec.msgpack.decode(raw, type=tuple[str, Measurement])
                    self._measurements[measurement.version, node] = measurement
                case "round":
                    row = msgspec.msgpack.decode(raw, type=RoundRow)
                    self._rounds[row.round] = row
                case "event":
                    self._events.append(msgspec.msgpack.decode(raw, type=tuple[float, str, str, str]))

    def close(self) -> None:
        self._file.close()

    def put_fact(self, name: str, value: object) -> None:
        self._write(("fact", (name, msgspec.msgpack.encode(value))))

    def fact(self, name: str, kind: type[T]) -> T | None:
        raw = self._facts.get(name)
        return None if raw is None else msgspec.msgpack.decode(raw, type=kind)

    def put_plan(self, plan: Plan) -> None:
        self._write(("plan", plan))

    def plan(self, server_round: int) -> Plan | None:
        return self._plans.get(server_round)

    def put_update(self, row: UpdateRow) -> bool:
        if (row.header.round, row.header.node) in self._updates:
            return False
        self._write(("update", row))
        return True

    def update(self, server_round: int, node: str) -> UpdateRow | None:
        return self._updates.get((server_round, node))

    def updates(self, server_round: int) -> list[UpdateRow]:
        return [self._updates[key] for key in sorted(self._updates) if key[0] == server_round]

    def put_measurement(self, node: str, measurement: Measurement) -> None:
        if node not in self.measurements(measurement.version):
            self._write(("measurement", (node, measurement)))

    def measurements(self, version: int) -> dict[str, Measurement]:
        return {n: self._measurements[v, n] for v, n in sorted(self._measurements) if v == version}

    def put_published(self, objects: list[StateObject], row: RoundRow) -> None:
        self._write(*(("object", obj) for obj in objects), ("round", row))

    def put_objects(self, objects: list[StateObject]) -> None:
        self._write(*(("object", obj) for obj in objects))

    def drop_objects(self, objects: list[StateObject]) -> None:
        self._write(*(("drop", (obj.version, obj.kind)) for obj in objects))

    def published_states(self) -> list[StateObject]:
        order = ("difference", "whole", "snapshot")
        return [self._objects[key] for key in sorted(self._objects, key=lambda key: (key[0], order.index(key[1])))]

    def put_round(self, row: RoundRow) -> None:
        self._write(("round", row))

    def rounds(self) -> list[RoundRow]:
        return [self._rounds[number] for number in sorted(self._rounds)]

    def note(self, at: float, kind: str, node: str, text: str, server_round: int = 0) -> None:
        self._write(("event", (at, kind, node, text)))

    def put_command(self, facts: Mapping[str, object], at: float, node: str, text: str, server_round: int) -> None:
        changed = [("fact", (name, msgspec.msgpack.encode(value))) for name, value in facts.items()]
        self._write(*changed, ("event", (at, "command", node, text)))

    def events(self) -> list[tuple[float, str, str, str]]:
        return list(self._events)

    def counts(self, kind: str) -> dict[str, int]:
        nodes = [node for _, what, node, _ in self._events if what == kind]
        return {node: nodes.count(node) for node in sorted(set(nodes))}
