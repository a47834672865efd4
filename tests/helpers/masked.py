# SPDX-License-Identifier: Apache-2.0
"""A tiny real run with signatures and secure aggregation."""

from __future__ import annotations

import datetime as dt
import re

from tiny import CHUNK_BYTES, Tiny

from coordinator.provisioning.provision import provision

__all__ = ["Masked"]


class Masked(Tiny):
    """A signed run of three homes or more, in which one may be lost once updates are in."""

    secure = True
    # Masked updates are several times as large: as many packets for the proxy's faults as without masks.
    chunk_bytes = 8 * CHUNK_BYTES

    def _job_text(self) -> str:
        self._provision()
        text = re.sub(r"quorum = \d+", "quorum = 3", super()._job_text())
        secure = "[secure_aggregation]\nthreshold = 0.5\nwait_seconds = 30\n\n" if self.secure else ""
        trust = self._trust("coordinator")
        return text.replace("[round]", f"{secure}[safety]\nnorm_ratio = 0\nmax_share_ratio = 0\n\n{trust}\n[round]")

    def _node_text(self, index: int) -> str:
        return f"{super()._node_text(index).rstrip(' ')}\n{self._trust(f'home-{index}')}"

    def _provision(self) -> None:
        """Keys and enrolment as `fedkrso provision` makes them; the broker stays the tests' own."""
        self.yard = self.folder / "yard"
        provision(self.yard, self.run, self.names, hosts=("127.0.0.1",), now=dt.datetime.now(dt.timezone.utc))

    def _trust(self, user: str) -> str:
        own = self.yard / ("coordinator" if user == "coordinator" else f"nodes/{user}")
        section = (own / "connection.toml").read_text().partition("[trust]")[2]
        return "[trust]" + re.sub(r'"(signing\.key|enrolled\.json)"', rf'"{own}/\1"', section)
