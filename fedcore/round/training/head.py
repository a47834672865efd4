# SPDX-License-Identifier: Apache-2.0
"""The head start's way of training: nothing is trained; nodes send sums that a task head follows from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, ForwardRef, Literal, NamedTuple

import msgspec

from fedcore.config.adapters import AnyAdapter
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, MalformedMessage, UpdateRefused
from fedcore.numbers.coding import Coding, packed_shape
from fedcore.round.header import UpdateHeader
from fedcore.round.training.artefact import ArtefactKind
from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    AnyTraining = Training
else:
    # As in the package's own module, which imports this one.
    AnyTraining = Annotated[ForwardRef("training_union()", module="fedcore.round.training"), "of every method"]

__all__ = [
    "FEATURE_UNIT",
    "MOMENTS",
    "HeadTraining",
    "LinearHead",
    "hidden_units",
    "linear_head",
    "require_linear_head",
    "target_scale",
]

MOMENTS: Final = "/moments"
"""The entry of an update: second moments, packed (`fedcore.numbers.symmetric`)."""
FEATURE_UNIT: Final = 8.0
"""Features travel in units of this, so that exact sums, which end at 2**7, hold second moments of up to 2**13."""


_HIDDEN: Final = (1.5, 0.5, 1.0)
"""What a row's features, its one and its targets count in the norm that is clipped where noise hides rows or nodes:
the one is known of every row, and most of what is learned is in the features."""


def hidden_units(features: int, outputs: int) -> NDArray[np.float64]:
    """By what the numbers of a row are multiplied before they are cut and hidden, (features + 1 + outputs,)."""
    import numpy as np

    return np.repeat(_HIDDEN, (features, 1, outputs))


class LinearHead(NamedTuple):
    """A new task head that is one linear layer: W (labels, features) and its bias, if it has one."""

    weight: TensorSpec
    bias: TensorSpec | None


def linear_head(schema: ModelSchema) -> LinearHead | str:
    """The new head of a model; or what is in its way, in words.

    Example:
        >>> new = (TensorSpec("classifier.weight", (2, 384), False), TensorSpec("classifier.bias", (2,), False))
        >>> linear_head(ModelSchema((), new)).weight.shape
        (2, 384)
        >>> linear_head(ModelSchema((), (TensorSpec("classifier.weight", (2, 384), True),)))
        'this model gets no new head: its own is kept'
    """
    new = {tensor.name: tensor for tensor in schema.tensors if not tensor.in_checkpoint}
    if not new:
        return "this model gets no new head: its own is kept"
    matrices = [name for name, tensor in new.items() if len(tensor.shape) == 2]
    name = matrices[-1].removesuffix(".weight") if matrices else ""
    weight, bias = new.pop(f"{name}.weight", None), new.pop(f"{name}.bias", None)
    if weight is None or new:
        return f"this model's new head is more than one linear layer: {', '.join(sorted(new))} beside {name}"
    return LinearHead(weight, bias)


def require_linear_head(schema: ModelSchema) -> LinearHead:
    """The same, at the coordinator.

    Raises:
        ConfigError: There is none.
    """
    head = linear_head(schema)
    if isinstance(head, str):
        raise ConfigError(head, place="head.start", remedy='write "random", or leave it out')
    return head


def target_scale(task: TaskSection) -> tuple[float, float]:
    """How targets travel: less the middle of their scale, in units of a power of two that is no smaller than it.

    Example:
        >>> target_scale(TaskSection(kind="regression", middle=2.5))
        (2.5, 4.0)
    """
    return task.middle, 2.0 ** max(0, math.ceil(math.log2(max(1.0, abs(task.middle)))))


class HeadTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fed3r"):
    """One pass over each node's rows, of which it sends second moments: those of the vector (x / 8, 1, y), where x is
    what goes into the head, and y the target, a class as zeros and a one. From their mean over all rows follow a ridge
    regression's solution and all that is needed to choose its strength (Fanì et al., arXiv 2402.00353).

    The state is that of the rounds that follow, if any do: then nothing but the plan's training changes between them.
    """

    learned: ClassVar[str] = "fedcore.model.learned:HeadLearned"

    then: AnyTraining | None = None
    """What the rounds after this one train; None in a run of such rounds alone."""
    codec: Literal["float32", "integers"] = "float32"
    """How moments travel; `bits` are of integers."""

    @property
    def learns(self) -> Training:
        """The rounds' that follow."""
        return self if self.then is None else self.then

    @property
    def phase(self) -> str:
        """`head`, before other rounds."""
        return "" if self.then is None else "head"

    @property
    def one_pass(self) -> bool:
        """It is."""
        return True

    @property
    def seeds(self) -> tuple[int, ...]:
        """As in the rounds that follow; so is all else about the state."""
        return () if self.then is None else self.then.seeds

    @property
    def rank(self) -> int:
        """Of the state."""
        return 0 if self.then is None else self.then.rank

    @property
    def min_rank(self) -> int:
        """Of the rounds that follow: memory is planned for them too."""
        return 0 if self.then is None else self.then.min_rank

    @property
    def rows_from(self) -> str:
        """Of the state."""
        return "signs" if self.then is None else self.then.rows_from

    @property
    def adapter(self) -> AnyAdapter | None:
        """Of the rounds that follow."""
        return None if self.then is None else self.then.adapter

    @property
    def virtual_tokens(self) -> int:
        """In the rounds that follow."""
        return 0 if self.then is None else self.then.virtual_tokens

    @property
    def artefact_kind(self) -> ArtefactKind | None:
        """Of the run."""
        return None if self.then is None else self.then.artefact_kind

    @property
    def artefact(self) -> str:
        """Of the run."""
        return "" if self.then is None else self.then.artefact

    def read_artefact(self, path: Path, schema: ModelSchema) -> Any:
        """Of the run."""
        return path if self.then is None else self.then.read_artefact(path, schema)

    @property
    def shares_model(self) -> bool:
        """As in the rounds that follow."""
        return self.then is None or self.then.shares_model

    def shared_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """As in the rounds that follow."""
        return schema.tensors if self.then is None else self.then.shared_tensors(schema)

    def at(self, generation: int) -> Training:
        """The same training in another generation, and so what follows."""
        then = None if self.then is None else self.then.at(generation)
        return msgspec.structs.replace(self, generation=generation, then=then)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of the state."""
        return {} if self.then is None else self.then.layer_shapes(schema)

    def moments(self, schema: ModelSchema) -> int:
        """Numbers of the vector that moments are of: features, one, and outputs.

        Raises:
            MalformedMessage: The model has no head that they lead to.
        """
        head = linear_head(schema)
        if isinstance(head, str):
            raise MalformedMessage(f"a plan for moments of features: {head}")
        outputs, features = head.weight.shape
        return features + 1 + outputs

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The moments."""
        return {MOMENTS: packed_shape(self.moments(schema))}

    def sent_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """None: the coordinator makes the head."""
        return ()

    def coding(self, name: str) -> Coding:
        """As the codec says."""
        return Coding("floats", 32) if self.codec == "float32" else Coding("integers", self.bits)

    def check_header(self, header: UpdateHeader) -> None:
        """No rank and no subspaces: nothing of the state is trained."""
        if (header.rank, header.subspaces) != (0, ()):
            raise UpdateRefused(f"rank {header.rank} where the plan only has sums", place=header.node)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """Sums in double precision."""
        rows, columns = packed_shape(self.moments(schema))
        return 2 * rows * columns
