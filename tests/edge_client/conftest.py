# SPDX-License-Identifier: Apache-2.0
"""What tests under a real systemd share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster import Cluster

    from tests.edge_client.install.booted import BootedDevice


@pytest.fixture
def device(tmp_path: Path) -> Iterator[BootedDevice]:
    """A device that has booted, without fedkrso."""
    # Here and not at the top: most tests of this folder need neither, also where not all of it is installed.
    from cluster import needs_mosquitto

    from tests.edge_client.install.booted import BootedDevice

    needs_mosquitto()
    made = BootedDevice(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A broker, and what a coordinator and homes need."""
    from cluster import Cluster

    (tmp_path / "run").mkdir()
    made = Cluster(tmp_path / "run", "mosquitto")
    yield made
    made.close()
