# SPDX-License-Identifier: Apache-2.0
"""Whether the model that is trained is the model that the folder holds.

What is trained is built here: layers of ours in the place of transformers', a loss that never makes logits whole,
padding left out. So before a run the same tokens go through it, on the checkpoint's own unquantised numbers, and
through plain transformers, one text at a time. Logits and loss must be equal up to float rounding, else the folder is
refused with the numbers; no architecture is trained because its name is known."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.memory.probes import available_bytes
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.architecture.configuration import auto_class, read_config
from edge_client.worker.architecture.pooled import Said, resolved_pooling
from edge_client.worker.data.batches import Encoded, states_and_labels
from edge_client.worker.data.tasks import worker_task
from edge_client.worker.model.built import CANNOT_RUN, BuiltModel
from edge_client.worker.model.describing import describe, said_of_head
from edge_client.worker.model.loading import build
from fedcore.config.adapters import AnyAdapter
from fedcore.config.fitting import require_fitting
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.fields.types import Pooled
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import initial_tensor
from fedcore.weights.schema import ModelSchema
from fedcore.worker.messages import Described

__all__ = ["Agreement", "compare", "described", "needed_bytes", "plain_model", "sample_batch"]

_CPU = torch.device("cpu")
# Of the largest logit. Float32 over some dozen blocks leaves 1e-6 to 1e-5.
_TOLERANCE = 2e-4
_GRADIENT_TOLERANCE = 1e-3
_LENGTHS = (12, 7)


@dataclass(frozen=True)
class Agreement:
    """How far the built model and transformers' are apart.

    Attributes:
        logits: Largest difference of two logits.
        loss: Mean loss of the built model.
        expected_loss: Of transformers'.
        gradients: Largest difference of the loss' gradient at the embeddings, over the largest gradient.
    """

    logits: float
    loss: float
    expected_loss: float
    gradients: float

    def __str__(self) -> str:
        return (
            f"equal to transformers on the same weights: logits within {self.logits:.1e}, gradients within"
            f" {self.gradients:.1e}, loss {self.loss:.6f} for {self.expected_loss:.6f}"
        )


@dataclass(frozen=True)
class _Pass:
    """What a model says of each example: logits, the gradient of the summed loss at the embeddings, and that loss."""

    logits: list[Tensor]
    gradients: list[Tensor]
    loss: float


def compare(
    checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, batch: Sequence[Encoded] | None = None
) -> Agreement:
    """Run a batch through both, forward and backward to the embeddings.

    One model is in memory at a time, in float32 (`needed_bytes`).

    Args:
        checkpoint: The model folder.
        schema: What is trained of it.
        task: Its kind and labels.
        batch: Examples of different lengths; None: tokens by chance.

    Raises:
        ModelError: They differ, or one of them cannot run; or a language model sees the words that it is to foresee.
    """
    batch = sample_batch(checkpoint.folder, task) if batch is None else batch
    place = str(checkpoint.folder)
    try:
        expected = _plain_pass(checkpoint, schema, task, batch)
    except CANNOT_RUN as error:
        raise ModelError(f"transformers itself cannot run this model: {_first_line(error)}", place=place) from None
    gc.collect()
    with tempfile.TemporaryDirectory() as scratch:
        model = build(Base(checkpoint, schema, "float32", Path(scratch)), task, 0, _CPU, torch.float32)
        name = type(model.module).__name__
        try:
            # Padding is computed, and is left out, as it is where a memory plan has room.
            passes = [_built_pass(model, task, batch, room) for room in (0, 4 * sum(len(one.ids) for one in batch))]
        except CANNOT_RUN as error:
            raise ModelError(
                f"{name} does more with a layer's weight than multiply with it: {_first_line(error)}", place=place
            ) from None
    found = [_measured(one, expected, sum(one.weight for one in batch)) for one in passes]
    for _, numbers in found:
        if numbers:
            raise ModelError(
                f"{name} would be trained as another model than transformers': {numbers}",
                place=place,
                remedy="use another model; docs/details/architectures.md names those that train",
            )
    return found[0][0]


def _measured(found: _Pass, expected: _Pass, weight: int) -> tuple[Agreement, str]:
    """How far two passes are apart, and what is wrong about it, in words."""
    logits, most = _apart(found.logits, expected.logits)
    gradients, steepest = _apart(found.gradients, expected.gradients)
    got = Agreement(logits, found.loss / weight, expected.loss / weight, gradients / (steepest or 1.0))
    if not logits <= _TOLERANCE * most:
        return got, f"logits differ by {logits:.3g} where the largest is {most:.3g}"
    if not abs(got.loss - got.expected_loss) <= _TOLERANCE * max(1.0, got.expected_loss):
        return got, f"a loss of {got.loss:.6g} for {got.expected_loss:.6g}"
    if not gradients <= _GRADIENT_TOLERANCE * steepest:
        return got, f"gradients differ by {gradients:.3g} where the largest is {steepest:.3g}"
    return got, ""


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference, and the largest of theirs."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return math.inf, 0.0
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    return apart, max(float(other.abs().max()) for other in theirs)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def described(
    checkpoint: Checkpoint, task: TaskSection, trained_tensors: tuple[str, ...] = (), adapter: AnyAdapter | None = None
) -> Described:
    """What of a folder is trained, after it was compared with transformers where there is memory for that.

    Args:
        checkpoint: The model folder.
        task: With its labels as a list.
        trained_tensors: Patterns of tensors trained whole beside the head.
        adapter: Of the method.

    Returns:
        The schema, the task with what `pooling = "auto"` means for this folder, and what a person should know.

    Raises:
        ModelError: The folder cannot serve, or what would be trained is not the model.
    """
    require_fitting(checkpoint.folder, max_length=task.max_length, virtual_tokens=adapter.tokens if adapter else 0)
    task, pooled = resolved_pooling(checkpoint.folder, task)
    schema = with_adapter(describe(checkpoint, task, trained_tensors), checkpoint.folder, task, adapter)
    head, needed, available = said_of_head(checkpoint, task, schema), needed_bytes(checkpoint), available_bytes()
    if any(entry.dtype == "I8" for entry in checkpoint.tensors.values()):
        said = "not compared with transformers: its weights are 8-bit numbers already"
    elif available is not None and available < needed:
        said = f"not compared with transformers: that takes {needed / 2**30:.1f} GiB, {available / 2**30:.1f} are free"
    else:
        said = str(compare(checkpoint, schema, task))
    return Described(schema, task, tuple(filter(None, (pooled, head, said))))


def needed_bytes(checkpoint: Checkpoint) -> int:
    """About what `compare` takes: the model in float32, and a tenth beside it."""
    numbers = sum(entry.size_bytes // _width(entry.dtype) for entry in checkpoint.tensors.values())
    return int(4.4 * numbers)


def _width(dtype: str) -> int:
    return {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}.get(dtype, 1)


def sample_batch(folder: Path, task: TaskSection) -> list[Encoded]:
    """Two examples of tokens by chance, of which the second, where nothing else is to be learned, begins the first."""
    config = read_config(folder, task)
    said = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "unk")]
    special = {one for ids in said for one in (ids if isinstance(ids, list | tuple) else (ids,))}
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise ModelError(f"{config.model_type} has no vocabulary of tokens", place=str(folder / "config.json"))
    words = [word for word in range(3, min(config.vocab_size, 20_000)) if word not in special]
    chance = torch.Generator().manual_seed(1)
    ids = [words[int(i)] for i in torch.randint(len(words), (max(_LENGTHS),), generator=chance)]
    target = worker_task(task).sample_target
    most = [min(length, task.max_length) for length in _LENGTHS]
    types = [(0,) * length if (getattr(config, "type_vocab_size", 0) or 0) > 0 else None for length in most]
    return [Encoded(tuple(ids[:length]), kind, target) for length, kind in zip(most, types, strict=True)]


def plain_model(checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, run_seed: int = 0) -> Any:
    """The folder as transformers loads it, in float32 and evaluation mode, with the first values of a new head.

    Where transformers has no class that pools as the task says, its backbone, and a vector of one text's states."""
    outputs, pooling = task_of(task).outputs(), task.pooled
    more = {} if outputs is None or pooling else {"num_labels": outputs, "ignore_mismatched_sizes": True}
    model = auto_class(task).from_pretrained(checkpoint.folder, dtype=torch.float32, trust_remote_code=False, **more)
    if outputs is not None and pooling is not None:
        model = _OneText(model, pooling, outputs)
    with torch.no_grad():
        for spec in schema.tensors:
            if not spec.in_checkpoint:
                value = initial_tensor(spec.name, spec.shape, run_seed, bias=spec.start)
                model.get_parameter(spec.name).copy_(torch.from_numpy(value))
    return model.eval()


class _OneText(nn.Module):
    """A head on the states of one text alone, without padding and so without a mask."""

    def __init__(self, backbone: Any, pooling: Pooled, outputs: int) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.classifier = nn.Linear(backbone.config.get_text_config().hidden_size, outputs)

    def forward(self, input_ids: Tensor, **more: Any) -> Said:
        (states,) = self.backbone(input_ids=input_ids, **more).last_hidden_state
        vectors = {
            "first": lambda: states[0],
            "last": lambda: states[-1],
            "mean": lambda: states.mean(0),
            "max": lambda: states.max(0).values,
        }
        return Said(self.classifier(vectors[self.pooling]()[None]))

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.backbone.get_input_embeddings()
        return found


def _plain_pass(checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, batch: Sequence[Encoded]) -> _Pass:
    """transformers', one example after the other."""
    model = plain_model(checkpoint, schema, task).requires_grad_(False)
    causal = task_of(task).outputs() is None
    logits, gradients, losses = [], [], []
    for one in batch:
        types = {} if one.types is None else {"token_type_ids": torch.tensor([one.types])}
        with _embedded(model) as embeddings:
            said = model(input_ids=torch.tensor([one.ids]), use_cache=False, **types).logits[0].float()
            loss = _loss_of(said, one, task, causal=causal)
            loss.backward()  # type: ignore[no-untyped-call]
        logits.append(said.detach()[:-1] if causal else said.detach())
        gradients.append(embeddings.gradient()[0][: len(one.ids)])
        losses.append(float(loss.detach()))
    if causal:
        _require_foresight(model, logits, batch, str(checkpoint.folder))
    return _Pass(logits, gradients, sum(losses))


def _loss_of(said: Tensor, one: Encoded, task: TaskSection, *, causal: bool) -> Tensor:
    if causal:
        return F.cross_entropy(said[:-1], torch.tensor(one.ids[1:]), reduction="sum")
    at_work: Any = worker_task(task)
    loss: Tensor = at_work.loss(said[None], [one], "sum")
    return loss


def _require_foresight(model: Any, logits: Sequence[Tensor], batch: Sequence[Encoded], place: str) -> None:
    """Where one text begins another, a decoder says the same of both as far as they are the same."""
    first, second = batch[0].ids, batch[1].ids
    shared = len(second) - 1
    if first[: len(second)] == second and not torch.allclose(logits[0][:shared], logits[1], rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"{type(model).__name__} sees the words that it is to foresee (an encoder)",
            place=place,
            remedy="use a decoder, or another task.kind",
        )


def _built_pass(model: BuiltModel, task: TaskSection, batch: Sequence[Encoded], room_tokens: int) -> _Pass:
    """The built model's, as a micro-batch; of real tokens only."""
    at_work = worker_task(task)
    model.padding.room_tokens = room_tokens
    model.module.requires_grad_(False)
    with torch.no_grad():
        if model.output_weight is None:
            logits = list(at_work.forward(model, batch, model.pad_id, _CPU).float())
        else:
            hidden, _ = states_and_labels(model, batch, model.pad_id, _CPU)
            logits = list(torch.split(model.output_weight.logits(hidden), [len(one.ids) - 1 for one in batch]))
    with _embedded(model.module) as embeddings:
        loss = at_work.summed_loss(model, batch, model.pad_id, _CPU)
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [rows[: len(one.ids)] for rows, one in zip(embeddings.gradient(), batch, strict=True)]
    return _Pass(logits, gradients, float(loss.detach()))


class _Embedded:
    """What a model's input embedding gave last."""

    output: Tensor | None = None

    def gradient(self) -> Tensor:
        """Of a loss that went backward."""
        assert self.output is not None and self.output.grad is not None, "nothing depends on the embeddings"
        return self.output.grad


@contextmanager
def _embedded(model: Any) -> Iterator[_Embedded]:
    """Have the output of a model's input embedding take a gradient, though nothing before it trains."""
    found = _Embedded()

    def take(_: object, __: object, output: Tensor) -> Tensor:
        found.output = output.detach().requires_grad_()
        # Not itself: CTRL multiplies it in place.
        return found.output.clone()

    hook = model.get_input_embeddings().register_forward_hook(take)
    try:
        yield found
    finally:
        hook.remove()
