# SPDX-License-Identifier: Apache-2.0
"""A view's JSON, put together from pieces: of a thousand rounds a row is encoded once, and whoever follows a run gets
the rows and nodes that changed, not all of them each second."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import msgspec

from coordinator.store.rows import RoundRow
from coordinator.store.view import RunView

__all__ = ["Followed", "Pieces", "assembled"]


def assembled(view: RunView, rows: Iterable[bytes], nodes: Mapping[str, bytes], written_at: float) -> bytes:
    """A view as JSON, as `RunView.encoded` has it, with these rows and nodes in place of its own.

    Args:
        view: All else.
        rows: JSON of each.
        nodes: JSON of each, by name.
        written_at: Unix seconds.

    Example:
        >>> view = RunView("r", "m", 1, rows=[RoundRow(1, (), 0, 0, 1.0, 0.5)])
        >>> assembled(view, [msgspec.json.encode(view.rows[0])], {}, 0.0) == view.encoded()
        True
    """
    fields = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)}
    fields["written_at"] = written_at
    fields["rows"] = msgspec.Raw(b"[%b]" % b",".join(rows))
    fields["nodes"] = msgspec.Raw(
        b"{%b}" % b",".join(b"%b:%b" % (msgspec.json.encode(name), data) for name, data in nodes.items())
    )
    return msgspec.json.encode(fields)


class Pieces:
    """One reader's pieces of a view that changes, from time to time."""

    def __init__(self) -> None:
        self._rows: list[RoundRow] = []
        self._rows_json: list[bytes] = []
        self._nodes: dict[str, bytes] = {}
        self._head = b""

    def whole(self, view: RunView, written_at: float) -> bytes:
        """The view as JSON.

        Args:
            view: As it is now.
            written_at: Unix seconds.
        """
        self._take_rows(view)
        nodes = {name: msgspec.json.encode(node) for name, node in view.nodes.items()}
        return assembled(view, self._rows_json, nodes, written_at)

    def news(self, view: RunView, written_at: float) -> bytes | None:
        """What changed since the last call: a view that has only those rows and nodes; None where nothing did.

        Args:
            view: As it is now.
            written_at: Unix seconds; no change by itself.
        """
        rows = self._take_rows(view)
        nodes = {}
        for name, node in view.nodes.items():
            data = msgspec.json.encode(node)
            if self._nodes.get(name) != data:
                self._nodes[name] = nodes[name] = data
        before, self._head = self._head, assembled(view, (), {}, 0.0)
        if not rows and not nodes and self._head == before:
            return None
        return assembled(view, [self._rows_json[place] for place in rows], nodes, written_at)

    def _take_rows(self, view: RunView) -> list[int]:
        """Encode rows that are other objects than before; their places."""
        known = len(self._rows)
        new = [place for place, row in enumerate(view.rows) if place >= known or self._rows[place] is not row]
        self._rows, rows = list(view.rows), self._rows_json[: len(view.rows)]
        rows += [b""] * (len(view.rows) - len(rows))
        for place in new:
            rows[place] = msgspec.json.encode(view.rows[place])
        self._rows_json = rows
        return new


class Followed:
    """A view put together again from a whole one and from what `Pieces.news` says of it.

    Attributes:
        view: As it is by now; another object each time.

    Example:
        >>> view, pieces, followed = RunView("r", "m", 2), Pieces(), Followed()
        >>> for number in (1, 2):
        ...     view.round, view.rows = number, [*view.rows, RoundRow(number, (), 0, 0, 1.0, 0.5)]
        ...     news = followed.take(pieces.news(view, 7.0))
        >>> [row.round for row in news.rows], followed.view == dataclasses.replace(view, written_at=7.0)
        ([2], True)
    """

    def __init__(self) -> None:
        self.view = RunView("", "", 0)
        self._rows: dict[int, tuple[RoundRow, bytes]] = {}
        self._nodes: dict[str, bytes] = {}

    def take(self, data: bytes) -> RunView:
        """Take a view, or what is new in it; what came, decoded.

        Args:
            data: JSON.

        Raises:
            msgspec.DecodeError: It is something else.
        """
        news, raw = RunView.decoded(data), msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        rows = msgspec.json.decode(raw["rows"], type=list[msgspec.Raw])
        nodes = msgspec.json.decode(raw["nodes"], type=dict[str, msgspec.Raw])
        # Copies: a piece that points into what came would keep all of it.
        self._rows |= {row.round: (row, bytes(piece)) for row, piece in zip(news.rows, rows, strict=True)}
        self._nodes |= {name: bytes(piece) for name, piece in nodes.items()}
        self.view = dataclasses.replace(
            news, rows=[row for row, _ in self._rows.values()], nodes={**self.view.nodes, **news.nodes}
        )
        return news

    def encoded(self) -> bytes:
        """All of it, as JSON."""
        rows = (data for _, data in self._rows.values())
        return assembled(self.view, rows, self._nodes, self.view.written_at)
