# SPDX-License-Identifier: Apache-2.0
"""The provisioned node that the tests of this folder install."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge_client.install.provisioned import ProvisionedNode, make_provisioned_node


@pytest.fixture
def provisioned(tmp_path: Path) -> ProvisionedNode:
    return make_provisioned_node(tmp_path)
