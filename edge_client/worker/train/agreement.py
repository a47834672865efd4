# SPDX-License-Identifier: Apache-2.0
"""Whether the model that is trained is the model that the folder holds.

What is trained is built here: layers of ours in the place of transformers', a loss that never makes logits whole,
padding left out. So before a run the same tokens go through it, on the checkpoint's own unquantised numbers, and
through plain transformers, one text at a time. Logits and loss must be equal up to float rounding, else the folder is
refused with the numbers; no architecture is trained because its name is known."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edge_client.memory.probes import available_bytes
from edge_client.worker.architecture.configuration import auto_class, read_config
from edge_client.worker.data.batches import Encoded, states_and_labels
from edge_client.worker.data.tasks import worker_task
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.describing import describe, said_of_head
from edge_client.worker.model.loading import build
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import initial_tensor
from fedcore.weights.schema import ModelSchema

__all__ = ["Agreement", "compare", "described", "needed_bytes", "plain_model", "sample_batch"]

_CPU = torch.device("cpu")
# Of the largest logit. Float32 over some dozen blocks leaves 1e-6 to 1e-5.
_TOLERANCE = 2e-4
_LENGTHS = (12, 7)


@dataclass(frozen=True)
class Agreement:
    """How far the built model and transformers' are apart.

    Attributes:
        logits: Largest difference of two logits.
        loss: Mean loss of the built model.
        expected_loss: Of transformers'.
    """

    logits: float
    loss: float
    expected_loss: float

    def __str__(self) -> str:
        return (
            f"equal to transformers on the same weights: logits within {self.logits:.1e}, loss {self.loss:.6f} for"
            f" {self.expected_loss:.6f}"
        )


def compare(
    checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, batch: Sequence[Encoded] | None = None
) -> Agreement:
    """Run a batch through both.

    One model is in memory at a time, in float32 (`needed_bytes`).

    Args:
        checkpoint: The model folder.
        schema: What is trained of it.
        task: Its kind and labels.
        batch: Examples of different lengths; None: tokens by chance.

    Raises:
        ModelError: They differ; or a language model sees the words that it is to foresee.
    """
    batch = sample_batch(checkpoint.folder, task) if batch is None else batch
    causal = task_of(task).outputs() is None
    expected, expected_loss = _expected(checkpoint, schema, task, batch, causal=causal)
    gc.collect()
    with tempfile.TemporaryDirectory() as scratch:
        model = build(Base(checkpoint, schema, "float32", Path(scratch)), task, 0, _CPU, torch.float32)
        # Padding is left out, as it is where a memory plan has room.
        model.padding.room_tokens = 4 * sum(len(one.ids) for one in batch)
        with torch.no_grad():
            found = _logits(model, task, batch, causal=causal)
            loss = float(worker_task(task).summed_loss(model, batch, model.pad_id, _CPU))
    weight = sum(one.weight for one in batch)
    apart = max(float((ours - theirs).abs().max()) for ours, theirs in zip(found, expected, strict=True))
    most = max(float(theirs.abs().max()) for theirs in expected)
    got = Agreement(apart, loss / weight, expected_loss / weight)
    if not apart <= _TOLERANCE * most + 1e-6:
        raise _differs(checkpoint, model, f"logits differ by {apart:.3g} where the largest is {most:.3g}")
    if not abs(got.loss - got.expected_loss) <= _TOLERANCE * max(1.0, got.expected_loss):
        raise _differs(checkpoint, model, f"a loss of {got.loss:.6g} for {got.expected_loss:.6g}")
    return got


def described(
    checkpoint: Checkpoint, task: TaskSection, trained_tensors: tuple[str, ...] = ()
) -> tuple[ModelSchema, tuple[str, ...]]:
    """What of a folder is trained, after it was compared with transformers where there is memory for that.

    Args:
        checkpoint: The model folder.
        task: With its labels as a list.
        trained_tensors: Patterns of tensors trained whole beside the head.

    Returns:
        The schema, and what a person should know, in words.

    Raises:
        ModelError: The folder cannot serve, or what would be trained is not the model.
    """
    schema = describe(checkpoint, task, trained_tensors)
    head, needed, available = said_of_head(checkpoint, task, schema), needed_bytes(checkpoint), available_bytes()
    if any(entry.dtype == "I8" for entry in checkpoint.tensors.values()):
        said = "not compared with transformers: its weights are 8-bit numbers already"
    elif available is not None and available < needed:
        said = f"not compared with transformers: that takes {needed / 2**30:.1f} GiB, {available / 2**30:.1f} are free"
    else:
        said = str(compare(checkpoint, schema, task))
    return schema, tuple(filter(None, (head, said)))


def needed_bytes(checkpoint: Checkpoint) -> int:
    """About what `compare` takes: the model in float32, and a tenth beside it."""
    numbers = sum(entry.size_bytes // _width(entry.dtype) for entry in checkpoint.tensors.values())
    return int(4.4 * numbers)


def _width(dtype: str) -> int:
    return {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}.get(dtype, 1)


def sample_batch(folder: Path, task: TaskSection) -> list[Encoded]:
    """Two examples of tokens by chance, of which the second, where nothing else is to be learned, begins the first."""
    config = read_config(folder, task)
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "unk")}
    words = [word for word in range(3, min(int(config.vocab_size), 20_000)) if word not in special]
    chance = torch.Generator().manual_seed(1)
    ids = [words[int(i)] for i in torch.randint(len(words), (max(_LENGTHS),), generator=chance)]
    target = worker_task(task).sample_target
    most = [min(length, task.max_length) for length in _LENGTHS]
    types = [(0,) * length if (getattr(config, "type_vocab_size", 0) or 0) > 0 else None for length in most]
    return [Encoded(tuple(ids[:length]), kind, target) for length, kind in zip(most, types, strict=True)]


def plain_model(checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, run_seed: int = 0) -> Any:
    """The folder as transformers loads it, in float32 and evaluation mode, with the first values of a new head."""
    outputs = task_of(task).outputs()
    more = {} if outputs is None else {"num_labels": outputs, "ignore_mismatched_sizes": True}
    model = auto_class(task).from_pretrained(checkpoint.folder, dtype=torch.float32, trust_remote_code=False, **more)
    with torch.no_grad():
        for spec in schema.tensors:
            if not spec.in_checkpoint:
                value = initial_tensor(spec.name, spec.shape, run_seed, bias=spec.start)
                model.get_parameter(spec.name).copy_(torch.from_numpy(value))
    return model.eval()


def _expected(
    checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, batch: Sequence[Encoded], *, causal: bool
) -> tuple[list[Tensor], float]:
    """transformers' logits of each example, and its summed loss."""
    model = plain_model(checkpoint, schema, task)
    said = []
    with torch.no_grad():
        for one in batch:
            types = {} if one.types is None else {"token_type_ids": torch.tensor([one.types])}
            said.append(model(input_ids=torch.tensor([one.ids]), use_cache=False, **types).logits[0].float())
    if not causal:
        at_work: Any = worker_task(task)
        return said, float(at_work.loss(torch.stack(said), batch, "sum"))
    first, second = batch[0].ids, batch[1].ids
    if first[: len(second)] == second and not torch.allclose(said[0][: len(second)], said[1], rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"{type(model).__name__} sees the words that it is to foresee (an encoder)",
            place=str(checkpoint.folder),
            remedy="use a decoder, or another task.kind",
        )
    losses = [
        F.cross_entropy(o[:-1], torch.tensor(e.ids[1:]), reduction="sum") for o, e in zip(said, batch, strict=True)
    ]
    return [rows[:-1] for rows in said], float(sum(losses))


def _logits(model: BuiltModel, task: TaskSection, batch: Sequence[Encoded], *, causal: bool) -> list[Tensor]:
    """The built model's, of each example; without padding."""
    if not causal:
        return list(worker_task(task).forward(model, batch, model.pad_id, _CPU).float())
    assert model.output_weight is not None
    hidden, _ = states_and_labels(model, batch, model.pad_id, _CPU)
    logits = model.output_weight.logits(hidden)
    return [rows[: len(one.ids) - 1] for rows, one in zip(logits, batch, strict=True)]


def _differs(checkpoint: Checkpoint, model: BuiltModel, numbers: str) -> ModelError:
    return ModelError(
        f"{type(model.module).__name__} would be trained as another model than transformers': {numbers}",
        place=str(checkpoint.folder),
        remedy="use another model; an architecture in docs/details/architectures.md trains",
    )
