# SPDX-License-Identifier: Apache-2.0
"""What a published state means for a target layer's weight, as one matrix: for export, and for the tests that a method
is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ConfigError
from fedcore.model.merge import layer_change, merge_update
from fedcore.model.state import PublishedState
from fedcore.round.training import (
    DenseTraining,
    DirectionTraining,
    FactorTraining,
    ResidualTraining,
    StackedTraining,
    SubspaceTraining,
    Training,
)
from fedcore.subspaces.directions import change_of
from fedcore.subspaces.projection import projection_of
from fedcore.weights.initial import initial_factor
from fedcore.weights.schema import LayerSpec

__all__ = ["layer_factors", "layer_update", "require_shared_model"]


def require_shared_model(training: Training) -> None:
    """Check that there is one model, which can be written out and evaluated.

    Raises:
        ConfigError: A part of it stays with each node.
    """
    if not training.shares_model:
        raise ConfigError(
            "every node has a model of its own", place="method.name", remedy="what is shared is in the published states"
        )


def layer_update(
    training: Training, state: PublishedState, layer: LayerSpec, artefact: Any = None
) -> NDArray[np.float32]:
    """What was learned of a layer since the last merge, float32 (m, n): its weight is the base plus this.

    Args:
        training: Of the run.
        state: A published one.
        layer: Which.
        artefact: What the run's artefact holds (`fedcore.round.artefact.read_artefact`), where it has one.

    Raises:
        ConfigError: The state does not have it: a part stays with each node.
    """
    match training:
        case SubspaceTraining():
            projection = projection_of(state.rows_from, state.seeds, state.rank, layer.name, layer.columns, artefact)
            return merge_update(state.entries[layer.name], projection, layer.name)
        case DenseTraining():
            return state.entries[layer.name].values()
        case DirectionTraining():
            part = state.entries[training.coefficients(layer)]
            return change_of(part, state.seeds[0], layer, training.unit_exponent)(slice(0, layer.rows))
        case StackedTraining():
            return layer_change(state, layer)(slice(0, layer.rows))
        case ResidualTraining():
            return _product(training, state, layer) + layer_change(state, layer)(slice(0, layer.rows))
        case FactorTraining():
            return _product(training, state, layer)
    raise ConfigError(f"no way to write out what {training.method!r} learned", place="method.name")


def layer_factors(
    training: Training, state: PublishedState, layer: LayerSpec, artefact: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same as a pair of factors, float32 (m, k) and (k, n), whose product it is.

    Args:
        training: Of the run.
        state: A published one.
        layer: Which.
        artefact: What the run's artefact holds, where it has one.

    Raises:
        ConfigError: What the method learns of a layer is no such pair, or a part of it is in the base already.
    """
    if training.generation:
        raise ConfigError(
            f"what {training.method!r} learned until round {state.version} is merged into the base already",
            place="method.name",
            remedy="export the whole model instead",
        )
    match training:
        case SubspaceTraining():
            projection = projection_of(state.rows_from, state.seeds, state.rank, layer.name, layer.columns, artefact)
            return state.entries[layer.name].values(), projection.values().astype(np.float32)
        case StackedTraining() | ResidualTraining():
            pass
        case FactorTraining():
            up, down = _factors(training, state, layer)
            return up * np.float32(training.alpha / training.rank), down
    raise ConfigError(
        f"what {training.method!r} learns of a layer is no pair of factors",
        place="method.name",
        remedy="export the whole model instead",
    )


def _factors(
    training: FactorTraining, state: PublishedState, layer: LayerSpec
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    require_shared_model(training)
    name = f"{layer.name}/A"
    a = initial_factor(name, training.rank, layer.columns, training.first_seed(state.seeds))
    if name in state.entries:
        a = a + state.entries[name].values()
    return state.entries[f"{layer.name}/B"].values(), a


def _product(training: FactorTraining, state: PublishedState, layer: LayerSpec) -> NDArray[np.float32]:
    b, a = _factors(training, state, layer)
    return np.asarray(b @ a * np.float32(training.alpha / training.rank), np.float32)
