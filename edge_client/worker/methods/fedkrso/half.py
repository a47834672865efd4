# SPDX-License-Identifier: Apache-2.0
"""FedKRSO's client half (arXiv 2602.03019, algorithm 2): local training in the round's subspaces, interval by interval.

Each interval trains only the factor B (m, r) of one subspace, from zero, with an Adam of its own; what of Adam goes on
to the next interval is in `moments` beside this file. Weight decay is zero: decay of W cannot be expressed in
accumulators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.methods.fedkrso.moments import Moments
from edge_client.worker.methods.fedkrso.roots import moments_of
from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.perexample import ExampleGradients
from edge_client.worker.model.built import BuiltModel
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import SubspaceTraining, Training
from fedcore.subspaces.informed import InformedRows
from fedcore.subspaces.projection import projection_of
from fedcore.subspaces.schedule import interval_order

__all__ = ["FedKRSO"]


class FedKRSO:
    """The target layers as they are built; one factor of each trains at a time.

    Args:
        model: Built.
        training: Of the plan; seeds and rank are learned when a round is opened.
        artefact: The run's informed rows, where it has some.
    """

    supersedes: ClassVar[bool] = False
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, training: Training, artefact: InformedRows | None = None) -> None:
        del training
        self._informed, self._layers, self._model = artefact, model.layers, model
        self.examples: ExampleGradients | None = None
        self._order: tuple[int, ...] = ()
        self._rank = self._largest = 0
        self._learning_rate = 0.0
        self._state: PublishedState | None = None
        self._moments: Moments | None = None
        self._adam: torch.optim.Adam | None = None

    @property
    def rank(self) -> int:
        """The largest that an interval of this round had."""
        return self._largest

    @property
    def subspaces(self) -> tuple[int, ...]:
        """Those of the round's intervals."""
        return tuple(sorted(set(self._order)))

    def outline(self, training: Training) -> Kept:
        """One subspace selected; what of Adam goes on lies beside the accumulators."""
        assert isinstance(training, SubspaceTraining)
        pool, rank, layers = len(training.seeds), training.rank, self._layers.values()
        for layer in layers:
            m, n, width = layer.out_features, layer.in_features, pool * rank
            state = torch.empty(m, width, dtype=torch.int16)
            layer.install(torch.empty(width, n, dtype=torch.int8), rank, state=state, state_scale=torch.empty(m))
            layer.select(0)
        self._take_examples(training)
        rows, columns = sum(layer.out_features for layer in layers), sum(layer.in_features for layer in layers)
        averaged = training.moments == "averaged"
        # Of a number of an accumulator: float32, and what goes on of its moments.
        used = 4 + {"reset": 0, "carried": 8, "averaged": 4, "rows": 0}[training.moments]
        # Of a row: what was published, as integers and as floats, the sum of the round, and the last interval's.
        by_row = (2 + 4 + 4 + 4) * (training.moments == "rows")
        return Kept(
            # Signs int8; the state int16 twice, in the layers and as published, published second moments once.
            state_bytes=pool * rank * (columns + (4 + 2 * averaged) * rows)
            + min(pool, training.intervals) * rank * rows * used
            + by_row * rows,
            rank_bytes=4 * 4 * rows,
            signs_bytes=max(pool * rank * layer.in_features * layer.compute_dtype.itemsize for layer in layers),
            block_bytes=max(layer.compute_dtype.itemsize for layer in layers),
            side_bytes=4 * pool * rank,
            # In 16-bit types nothing is merged.
            dequantised_bytes=sum(
                4 * layer.out_features * layer.in_features for layer in layers if layer.compute_dtype == torch.float32
            ),
        )

    def install(self, state: PublishedState) -> None:
        """P of every seed, and the state's side factor."""
        self._state, self._moments, self._adam = state, None, None
        self._take_examples(None)
        for name, layer in self._layers.items():
            part = state.entries[name]
            projection = projection_of(
                state.rows_from, state.seeds, state.rank, name, layer.in_features, self._informed
            )
            row_scale = (
                None if projection.exponent is None else np.ldexp(np.float32(1), projection.exponent.astype(np.int32))
            )
            learned = bool(part.q.any())
            layer.install(
                torch.from_numpy(projection.rows),
                state.rank,
                state=torch.from_numpy(np.array(part.q)) if learned else None,
                state_scale=torch.from_numpy(part.scale()) if learned else None,
                scale=projection.scale,
                row_scale=None if row_scale is None else torch.from_numpy(row_scale),
            )

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """Which subspace each interval trains."""
        training = plan.training
        assert isinstance(training, SubspaceTraining)
        self._order = interval_order(
            training.order, training.run_seed, plan.round, len(training.seeds), training.intervals, node
        )
        self._rank = self._largest = rank
        self._learning_rate = training.learning_rate
        assert self._state is not None
        self._moments = moments_of(training, self._layers, self._state)
        self._take_examples(training)

    def begin(self, interval: int) -> torch.optim.Adam:
        """Zero factors in the interval's subspace."""
        for layer in self._layers.values():
            layer.select(self._order[interval], self._rank)
        self._adam = self._goes_on.begin(self._order[interval], self._learning_rate)
        return self._adam

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """One pass forward and backward."""
        return run()

    def finish(self, interval: int) -> None:
        """Factors into accumulators; they, and of their moments what does not go on, go before the next ones come."""
        assert self._adam is not None
        self._goes_on.finish(self._order[interval], self._adam)
        self._adam = None
        for layer in self._layers.values():
            layer.absorb()
            layer.select(None)

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """The accumulator of its subspace as it stands afterwards, and what of Adam goes on."""
        for name, layer in self._layers.items():
            yield f"{name}.accumulator", layer.accumulators()[self._order[interval]]
        yield from self._goes_on.kept(self._order[interval])

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """The accumulator of an interval's subspace, and what of Adam goes on."""
        self._largest = max(self._largest, rank)
        for name, layer in self._layers.items():
            layer.restore_accumulator(self._order[interval], read(f"{name}.accumulator"))
        self._goes_on.restore(self._order[interval], read)

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The accumulators of the seeds used, side by side, in the columns of the largest rank."""
        for name, layer in self._layers.items():
            parts = layer.accumulators()
            yield name, torch.cat([parts[k][:, : self._largest] for k in self.subspaces], dim=1).cpu().numpy()
        yield from self._goes_on.changes(self.subspaces, self._largest)

    def _take_examples(self, training: Training | None) -> None:
        """Have gradients by example where the training hides examples, and else not."""
        if self.examples is not None:
            self.examples.end()
        hides = training is not None and training.privacy is not None and training.privacy.level == "example"
        self.examples = ExampleGradients(self._model) if hides else None

    @property
    def _goes_on(self) -> Moments:
        assert self._moments is not None, "open comes first"
        return self._moments
