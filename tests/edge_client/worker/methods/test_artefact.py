# SPDX-License-Identifier: Apache-2.0
"""The file that a method asks for is made by what the method names, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plans import TRAINING

from edge_client.worker.methods.artefact import ArtefactSources, make_artefact
from edge_client.worker.model.loading import describe
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, ModelError
from fedcore.model.base import Base
from fedcore.round.training import Training
from fedcore.round.training.artefact import ArtefactKind
from fedcore.weights.checkpoint import Checkpoint

TASK = TaskSection(kind="causal-lm", max_length=24)


class Singular(Training, frozen=True, kw_only=True, tag_field="method", tag="singular"):
    """A method of somebody else's that asks for each layer's largest singular value."""

    maker: str = f"{__name__}:write_values"

    @property
    def artefact_kind(self) -> ArtefactKind | None:
        return ArtefactKind("singular values", self.maker, from_text=False)


def largest(base: Base) -> list[float]:
    return [float(np.linalg.norm(base.master(layer), 2)) for layer in base.schema.layers]


def write_values(path: Path, sources: ArtefactSources) -> None:
    assert not sources.texts and sources.torch_device.type == "cpu"
    np.savetxt(path, largest(sources.base))


def write_half(path: Path, sources: ArtefactSources) -> None:
    path.write_text("1.")
    raise ModelError("nothing can be measured", place="model")


@pytest.fixture
def sources(make_llama: Callable[..., Path], tmp_path: Path) -> Callable[..., ArtefactSources]:
    checkpoint = Checkpoint(make_llama(dtype="float32"))
    base = Base(checkpoint, describe(checkpoint, TASK), "float32", tmp_path / "own")
    common = {key: getattr(TRAINING, key) for key in Training.__struct_fields__}
    return lambda **changes: ArtefactSources(
        training=Singular(**common, **changes), base=base, task=TASK, texts=[], torch_device=torch.device("cpu")
    )


def test_what_the_method_names_makes_the_file(sources: Callable[..., ArtefactSources], tmp_path: Path) -> None:
    path, of = tmp_path / "artefact.bin", sources()
    make_artefact(path, of)
    assert np.allclose(np.loadtxt(path), largest(of.base)) and len(of.base.schema.layers) > 1
    assert list(tmp_path.glob("artefact.bin?*")) == []


def test_a_maker_that_fails_half_way_leaves_no_file(sources: Callable[..., ArtefactSources], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model: nothing can be measured"):
        make_artefact(tmp_path / "artefact.bin", sources(maker=f"{__name__}:write_half"))
    assert not (tmp_path / "artefact.bin").exists()


@pytest.mark.parametrize("maker", ["no_such_package:write", f"{__name__}:no_such_function", "no name: at all"])
def test_a_maker_that_is_not_there_is_refused_in_one_line(
    sources: Callable[..., ArtefactSources], tmp_path: Path, maker: str
) -> None:
    with pytest.raises(ConfigError, match=r"^method\.name: no .* makes singular values") as caught:
        make_artefact(tmp_path / "artefact.bin", sources(maker=maker))
    assert "\n" not in str(caught.value)
