# SPDX-License-Identifier: Apache-2.0
"""What a published state means for a target layer's weight, as one matrix or as two factors: for export, and for the
tests that a method is exact.

A method's part of a plan names its class here (`Training.learned`); a method of one's own names one of these, or one
of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ConfigError
from fedcore.model.merge import layer_change, merge_update
from fedcore.model.state import PublishedState
from fedcore.registry import resolve
from fedcore.round.training import DirectionTraining, FactorTraining, SparseTraining, SubspaceTraining, Training
from fedcore.round.training.sparse import SPARSE
from fedcore.subspaces.directions import change_of
from fedcore.subspaces.projection import Projection, projection_of
from fedcore.subspaces.sparse import positions, scattered
from fedcore.weights.initial import initial_factor
from fedcore.weights.schema import LayerSpec

__all__ = [
    "BesideLearned",
    "DenseLearned",
    "DirectionLearned",
    "FactorLearned",
    "HeadLearned",
    "Learned",
    "PartLearned",
    "ResidualLearned",
    "SparseLearned",
    "StackedLearned",
    "SubspaceLearned",
    "layer_factors",
    "layer_update",
    "require_shared_model",
]

T = TypeVar("T", bound=Training)


class Learned(ABC, Generic[T]):
    """What was learned since the last merge.

    Args:
        training: Of the run.
        state: A published one.
        artefact: What the run's artefact holds (`fedcore.round.artefact.read_artefact`), where it has one.
    """

    def __init__(self, training: T, state: PublishedState, artefact: Any = None) -> None:
        self.training, self.state, self.artefact = training, state, artefact

    @abstractmethod
    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """What is added to a layer's weight, float32 (m, n).

        Raises:
            ConfigError: The state does not have it: a part stays with each node.
        """

    def factors(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same as a pair of factors, float32 (m, k) and (k, n), whose product it is.

        Raises:
            ConfigError: It is no such pair.
        """
        raise ConfigError(
            f"what {self.training.method!r} learns of a layer is no pair of factors",
            place="method.name",
            remedy="export the whole model instead",
        )


class SubspaceLearned(Learned[SubspaceTraining]):
    """FedKRSO's: S P."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """Exact, as a merge adds it."""
        return merge_update(self.state.entries[layer.name], self._projection(layer), layer.name)

    def factors(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """S and P."""
        return self.state.entries[layer.name].values(), self._projection(layer).values().astype(np.float32)

    def _projection(self, layer: LayerSpec) -> Projection:
        state = self.state
        return projection_of(state.rows_from, state.seeds, state.rank, layer.name, layer.columns, self.artefact)


class DenseLearned(Learned[Training]):
    """An entry of the layer's name that is its change."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """The entry."""
        return self.state.entries[layer.name].values()


class PartLearned(Learned[Training]):
    """An entry of the layer's name that is its change, of some layers; the others stay as they are."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """The entry, or zero."""
        if (entry := self.state.entries.get(layer.name)) is None:
            return np.zeros((layer.rows, layer.columns), np.float32)
        return entry.values()


class BesideLearned(Learned[Training]):
    """What stands beside the layers: it is no change of a weight."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """Refused."""
        require_shared_model(self.training)
        raise AssertionError("what stands beside the layers is refused")

    def factors(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refused."""
        require_shared_model(self.training)
        raise AssertionError("what stands beside the layers is refused")


class HeadLearned(Learned[Training]):
    """The head alone: nothing of a layer."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """Zero."""
        return np.zeros((layer.rows, layer.columns), np.float32)


class DirectionLearned(Learned[DirectionTraining]):
    """Coefficients of seeded directions."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """The directions' sum."""
        part = self.state.entries[self.training.coefficients(layer)]
        return change_of(part, self.state.seeds[0], layer, self.training.unit_exponent)(slice(0, layer.rows))


class FactorLearned(Learned[FactorTraining]):
    """The LoRA family's: alpha / r B A."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """The product."""
        b, a = self._both(layer)
        return np.asarray(b @ a * self._scale, np.float32)

    def factors(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """B with the scale in it, and A."""
        b, a = self._both(layer)
        return b * self._scale, a

    @property
    def _scale(self) -> np.float32:
        scale: np.float32 = np.float32(self.training.alpha / self.training.rank)
        return scale

    def _both(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        require_shared_model(self.training)
        name, entries = f"{layer.name}/A", self.state.entries
        a = self.training.first_factor(name, layer.columns, self.training.first_seed(self.state.seeds))
        if name in entries:
            a = a + entries[name].values()
        return entries[f"{layer.name}/B"].values(), a


class SparseLearned(Learned[SparseTraining]):
    """SLoRA's: sparse numbers, or factors; both, where the first stage's last round failed."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """Their sum."""
        up, down = self._both(layer)
        return np.asarray(self._sparse(layer) + up @ down, np.float32)

    def factors(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """B with the scale in it, and A; after the first stage."""
        if self.state.entries[layer.name + SPARSE].q.any():
            raise ConfigError(
                f"what {self.training.method!r} learns of a layer is no pair of factors before its second stage",
                place="method.name",
                remedy="export the whole model instead, or a later round",
            )
        return self._both(layer)

    def _both(self, layer: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        training, entries, name = self.training, self.state.entries, f"{layer.name}/A"
        first = initial_factor(name, training.rank, layer.columns, training.run_seed)
        scale = np.float32(training.alpha / training.rank)
        return entries[f"{layer.name}/B"].values() * scale, first + entries[name].values()

    def _sparse(self, layer: LayerSpec) -> NDArray[np.float32]:
        values = self.state.entries[layer.name + SPARSE].values()
        places = positions(self.training.run_seed, layer.name, layer.rows, layer.columns, values.shape[1])
        return scattered(values.astype(np.float64), places, layer.columns).astype(np.float32)


class StackedLearned(Learned[FactorTraining]):
    """FLoRA's: the participants' factors side by side, as a merge adds them."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """Exact."""
        return layer_change(self.state, layer)(slice(0, layer.rows))


class ResidualLearned(Learned[FactorTraining]):
    """FedEx-LoRA's: the mean factors' product, and what it lacks to the mean of the products."""

    def change(self, layer: LayerSpec) -> NDArray[np.float32]:
        """Both together."""
        product = FactorLearned(self.training, self.state).change(layer)
        return product + layer_change(self.state, layer)(slice(0, layer.rows))


def require_shared_model(training: Training) -> None:
    """Check that there is one model, which can be written out as one.

    Raises:
        ConfigError: A part of it stays with each node, or what is learned is no change of a weight.
    """
    if not training.shares_model:
        raise ConfigError(
            "every node has a model of its own", place="method.name", remedy="what is shared is in the published states"
        )
    learns = training.learns
    if learns.stands_beside:
        remedy = "what was learned is in the published states"
        remedy = remedy if learns.adapter is None else "export it as an adapter: --adapter"
        raise ConfigError(f"what {learns.method!r} learns stands beside the layers", place="method.name", remedy=remedy)


def layer_update(
    training: Training, state: PublishedState, layer: LayerSpec, artefact: Any = None
) -> NDArray[np.float32]:
    """What was learned of a layer since the last merge, float32 (m, n): its weight is the base plus this.

    Args:
        training: Of the run.
        state: A published one.
        layer: Which.
        artefact: What the run's artefact holds, where it has one.

    Raises:
        ConfigError: The state does not have it: a part stays with each node; or the method does not say how.
    """
    return _learned(training, state, artefact).change(layer)


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
    return _learned(training, state, artefact).factors(layer)


def _learned(training: Training, state: PublishedState, artefact: Any) -> Learned[Any]:
    training = training.learns
    if not training.learned:
        raise ConfigError(
            f"no way to write out what {training.method!r} learned",
            place="method.name",
            remedy="name a class in its Training.learned",
        )
    made: Learned[Any] = resolve(training.learned, place=f"method {training.method}")(training, state, artefact)
    return made
