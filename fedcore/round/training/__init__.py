# SPDX-License-Identifier: Apache-2.0
"""A method's part of a plan, one struct for each way of training: how a participant trains, and what the entries of
state and update are.

The state of every method is a set of named matrices, its entries; an update carries what training changed of them, and
the published state is the exact weighted mean of the updates added to the state (`fedcore.model.state`). So a method
says here which entries there are, of what shape, and which of them one participant's update must have.

| struct | methods | entries |
|---|---|---|
| `SubspaceTraining` | FedKRSO | a layer's accumulators (m, K r); with averaged moments `<layer>/second` (m, K r) |
| `DenseTraining` | federated averaging | a layer's change (m, n) |
| `BlockTraining` | FedCyBGD | those of `DenseTraining`; an update has those of one block |
| `EvolutionTraining` | FedBPT | `/mean` (1, d), `/sigma` and `/root`; an update has `/mean`, `/fitness` and `/sigmas` |
| `FactorTraining` | the LoRA family | `<layer>/A` (r, n) and `<layer>/B` (m, r) |
| `StackedTraining` | FLoRA | `<layer>/up` (m, c) and `<layer>/down` (c, n) |
| `ResidualTraining` | FedEx-LoRA | those of `FactorTraining`, and those of `StackedTraining` |
| `ScalarTraining` | FedKSeed | `/coefficients` (1, K), of all layers |
| `SketchTraining` | Ferret | `<layer>/coefficients` (1, K) |
| `AdapterTraining` | adapters of PEFT | its tensors, as the schema has them (`ModelSchema.adapter`) |
| `TensorTrainTraining` | FedTT, FedTT+ | cores `/down/<j>` and `/up/<j>`, a row for each layer |
| `PromptTraining` | FedPepTAO | `/prompts`, a row for each shared layer, and `/scores` (1, layers) |
| `SparseTraining` | SLoRA | `<layer>/sparse` (m, k), and those of `FactorTraining` |
| `ThresholdTraining` | SpaFL | `<layer>/threshold` (1, m) |
| `SplitTraining` | split learning | those of `DenseTraining`, of the back; an update has `/activations/<i>`, `/texts` |
| `HeadTraining` | Fed3R, and before any other method | those of what follows; an update has `/moments` alone |

Every method has one entry more for each tensor that is trained whole and shared.

The type of a plan's training may change from one round to the next: what an update has, and how it comes about, is
then another thing. The entries of a run's state are the same in all of its rounds (`Training.learns`), so that a node
that was away across the change needs nothing but the newest state.

Some entries are merged into the base before the next generation begins, and are zero then: a layer's accumulators
(`<layer>`), and the two factors of a product, which have as many columns or rows as a published state brings (0 in
`shapes`; a generation begins with none)."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef

from fedcore.registry import METHODS
from fedcore.round.training.adapter import AdapterTraining
from fedcore.round.training.base import (
    AMPLITUDES,
    COEFFICIENTS,
    DOWN,
    MAX_DIRECTIONS,
    SECOND,
    SECOND_BITS,
    TENSOR_BITS,
    UP,
    USES,
    USUAL_RANK,
    PrivateTraining,
    Training,
    merged_entries,
)
from fedcore.round.training.channel import ChannelTraining
from fedcore.round.training.dense import BlockTraining, DenseCodec, DenseTraining
from fedcore.round.training.directions import DirectionTraining, ScalarTraining, SketchTraining
from fedcore.round.training.evolution import EvolutionTraining
from fedcore.round.training.factors import Factor, FactorTraining, ResidualTraining, StackedTraining
from fedcore.round.training.head import HeadTraining
from fedcore.round.training.prompts import PromptTraining
from fedcore.round.training.sparse import SparseTraining
from fedcore.round.training.split import SplitTraining
from fedcore.round.training.subspace import SubspaceTraining
from fedcore.round.training.tensortrain import TensorTrainTraining
from fedcore.round.training.threshold import ThresholdTraining

__all__ = [
    "AMPLITUDES",
    "COEFFICIENTS",
    "DOWN",
    "MAX_DIRECTIONS",
    "SECOND",
    "SECOND_BITS",
    "TENSOR_BITS",
    "UP",
    "USES",
    "USUAL_RANK",
    "AdapterTraining",
    "AnyTraining",
    "BlockTraining",
    "ChannelTraining",
    "DenseCodec",
    "DenseTraining",
    "DirectionTraining",
    "EvolutionTraining",
    "Factor",
    "FactorTraining",
    "HeadTraining",
    "PrivateTraining",
    "PromptTraining",
    "ResidualTraining",
    "ScalarTraining",
    "SketchTraining",
    "SparseTraining",
    "SplitTraining",
    "StackedTraining",
    "SubspaceTraining",
    "TensorTrainTraining",
    "ThresholdTraining",
    "Training",
    "merged_entries",
    "training_union",
]


@functools.cache
def training_union() -> Any:
    """The union of every registered method's struct, which msgspec decodes a plan's `training` with."""
    structs = dict.fromkeys(method.training for _, method in METHODS.close("a plan was read"))
    return functools.reduce(operator.or_, structs)


if TYPE_CHECKING:
    AnyTraining = Training
else:
    # msgspec looks into a struct's types once, when it first decodes one: only then are entry points loaded and the
    # union is built. So a program may register methods of its own first, and a module that registers one may import
    # this package.
    AnyTraining = Annotated[ForwardRef("training_union()", module=__name__), "of every registered method"]
