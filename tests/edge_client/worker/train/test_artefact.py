# SPDX-License-Identifier: Apache-2.0
"""A replica trains with the run's artefact or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from method_runs import CPU, Run, settings_of

from edge_client.worker.train.replica import Replica
from fedcore.errors import ArtefactDamaged, ExactnessError
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.round.plan import ArtefactObject
from fedcore.wire.files import manifest_of


@pytest.fixture
def run(make_llama: Callable[..., Path], tmp_path: Path) -> Run:
    return Run(
        settings_of((FedKRSOSettings, {"projection": "informed", "rank": 2, "num_seeds": 2})), make_llama(), tmp_path
    )


def test_it_asks_for_an_artefact_that_is_not_here_or_damaged(run: Run, tmp_path: Path) -> None:
    assert run.replica("whole").state.rows_from.endswith(run.plan(1).training.artefact)
    for path in (None, tmp_path / "nothing"):
        with pytest.raises(ArtefactDamaged, match=r"artefact \(informed rows\) is not here"):
            Replica(run.plan(1), run.folder, tmp_path / "none", CPU, torch.float32, artefact=path)
    run.files.artefact.write_bytes(run.files.artefact.read_bytes()[:-1])
    with pytest.raises(ArtefactDamaged, match="not the run's"):
        run.replica("damaged")


def test_it_refuses_one_that_is_the_plans_and_cannot_be_read(run: Run, tmp_path: Path) -> None:
    plan, path = run.plan(1), tmp_path / "artefact.bin"
    path.write_bytes(b"no rows")
    made = ArtefactObject(manifest_of(path, 64))
    training = msgspec.structs.replace(plan.training, artefact=made.manifest.sha256)
    forged = msgspec.structs.replace(plan, training=training, artefact=made)
    with pytest.raises(ExactnessError, match=r"^artefact\.bin: the run's artefact cannot be read") as caught:
        Replica(forged, run.folder, tmp_path / "forged", CPU, torch.float32, artefact=path)
    assert not isinstance(caught.value, ArtefactDamaged)
