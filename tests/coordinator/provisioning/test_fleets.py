# SPDX-License-Identifier: Apache-2.0
"""A fleet's rules at the broker, and a certificate for each of its runs at once."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.provisioning.fleets import make_fleet
from coordinator.provisioning.provision import Yard, provision
from fedcore.errors import ConfigError


def test_a_fleets_nodes_may_use_the_topics_of_all_of_its_runs_under_their_own_names(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    provision(tmp_path, "homes", ["a", "b"], hosts=["localhost"], now=now)
    done = make_fleet(tmp_path, "homes", 2, now=now)
    assert set(done.added) == {"coordinator/1", "coordinator/2"}
    yard = Yard(tmp_path)
    certificates = yard.client("coordinator") / "certificates"
    assert sorted(path.name for path in certificates.iterdir()) == ["1.key", "1.pem", "2.key", "2.pem", "authority.pem"]
    names = [
        x509.load_pem_x509_certificate((certificates / name).read_bytes()).subject.rfc4514_string()
        for name in ("1.pem", "2.pem")
    ]
    assert names == ["CN=coordinator/1", "CN=coordinator/2"]
    users = (yard.broker / "access.acl").read_text().split("\nuser ")[1:]
    rights = {user.splitlines()[0]: user.splitlines()[1:] for user in users}
    assert rights.keys() == {"a", "b", "coordinator", "coordinator/1", "coordinator/2"}
    assert "topic write fedkrso/2/homes/runs/+/node/a/status" in rights["a"]
    assert "topic read fedkrso/2/homes/runs/+/plan" in rights["a"]
    assert not [right for right in rights["a"] if "/node/b/" in right or "write fedkrso/2/homes/runs/+/plan" in right]
    assert "topic readwrite fedkrso/2/homes/runs/+/plan" in rights["coordinator/1"] == rights["coordinator"]
    # Another call keeps it so, and a run beside it has nothing of it.
    provision(tmp_path, "alone", [], now=now)
    text = (yard.broker / "access.acl").read_text()
    assert "fedkrso/2/homes/runs/+/plan" in text and "fedkrso/2/alone/runs" not in text
    with pytest.raises(ConfigError, match="never provisioned"):
        make_fleet(tmp_path, "barns", 1, now=now)
