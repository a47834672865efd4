# SPDX-License-Identifier: Apache-2.0
"""A model that answers through torch: any causal model of transformers, and those that say labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edge_client.worker.answering.context import fitting_context
from edge_client.worker.answering.finished import Finished, finished
from edge_client.worker.answering.light import ingredients_of, says_no_labels, understands
from edge_client.worker.answering.mirror import artefact_of, own_folder, require, take
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.compiled.recipe import keep_recipe, kept_recipe
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.generate.generator import Generator, positions_of
from edge_client.worker.generate.recording import recipe_of, same_parts
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.describing import describe
from edge_client.worker.trace.contexts import footprint_of
from edge_client.worker.train.highwater import status_bytes
from edge_client.worker.train.replica import Replica
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import DataError
from fedcore.model.base import Base
from fedcore.worker.serving import Classified, Classify, Held, Load

__all__ = ["FullModel"]

_BATCH = 16


class FullModel:
    """A model at hand.

    Args:
        load: What is asked for.
        environment: Where the cache folder is: a model that could have answered without torch will do so next time.

    Raises:
        FedkrsoError: It cannot be held; ExactnessError where what lies on the disk is being changed.
    """

    def __init__(self, load: Load, environment: Mapping[str, str]) -> None:
        torch.set_num_threads(load.threads)
        folder, held = Path(load.model_folder), load.held
        self.load, self.tokenizer = load, read_tokenizer(folder)
        self._replica: Replica | None = None
        base: Base | None
        if held is None:
            found: Finished = finished(folder, Path(load.scratch), self.tokenizer)
            self.task, self._built, base = found.task, found.model, found.base
        else:
            self._replica = _replica(load, held)
            self.task, self._built, base = held.plan.task, self._replica.model, self._replica.base
        self.writer: Generator | None = None
        if task_of(self.task).outputs() is None:
            config: Any = self._built.module.config
            context = fitting_context(load, positions_of(config), status_bytes("VmRSS"), partial(_fitting, self._built))
            self.writer = Generator(self._built, self.tokenizer, context)
            if base is not None and understands(load):
                self._record(self.writer, base, environment)

    def take(self, load: Load, held: Held) -> bool:
        """Hold the node's newer state, where it stands on the same base; False: load anew.

        Raises:
            ExactnessError: What lies there is another state than the note says. The model has to be loaded anew.
        """
        torch.set_num_threads(load.threads)
        if self._replica is None or not take(self._replica, load, held):
            return False
        self.load = load
        if self.writer is not None:
            self.writer.refresh()
        return True

    def classify(self, command: Classify) -> Classified:
        """Say which labels texts have, or their scores.

        Raises:
            DataError: The model is one that writes; or pairs where it takes single texts, and the other way round.
        """
        task = self.task
        if self.writer is not None:
            raise says_no_labels()
        paired = task_of(task).pair
        for index, (_, second) in enumerate(command.texts):
            if paired and second is None:
                raise DataError("this model reads pairs of texts", place=f"input[{index}]")
        encoded = encode([Example(text, pair, None) for text, pair in command.texts], task, self.tokenizer)
        return Classified(tuple(self._scores(encoded)), self._truncated(command))

    def _record(self, generator: Generator, base: Base, environment: Mapping[str, str]) -> None:
        """Write down how the model answers without torch, where it can."""
        engine, checkpoint = generator.compiled, base.checkpoint
        if engine is None or kept_recipe(checkpoint, environment) is not None:
            return
        schema = base.schema if self._replica is None else describe(checkpoint, TaskSection(kind="causal-lm"))
        limits = positions_of(self._built.module.config), tuple(sorted(generator.end_tokens))
        recipe = recipe_of(checkpoint, engine.parts, self.tokenizer, schema, *limits)
        if recipe is None:
            return
        holding = None if self._replica is None else self._replica.holding
        if same_parts(ingredients_of(recipe, base, holding).parts(), engine.parts):
            keep_recipe(checkpoint, recipe, environment)

    def _scores(self, encoded: list[Encoded]) -> Iterator[tuple[float, ...]]:
        module, scale = self._built.module, task_of(self.task).scale
        module.eval()
        device = next(module.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(encoded), _BATCH):
                said = outputs(self._built, encoded[start : start + _BATCH], self._built.pad_id, device).float()
                yield from map(tuple, (said if scale else said.softmax(-1)).tolist())

    def _truncated(self, command: Classify) -> tuple[int, ...]:
        most = self.task.max_length
        lengths = (len(self.tokenizer(text, pair)["input_ids"]) for text, pair in command.texts)
        return tuple(index for index, length in enumerate(lengths) if length > most)


def _replica(load: Load, held: Held) -> Replica:
    dtype, device = getattr(torch, load.compute_dtype), torch.device(load.torch_device)
    own, folder = own_folder(load), Path(load.model_folder)
    replica = Replica(held.plan, folder, own, device, dtype, mapped=load.mapped, artefact=artefact_of(load))
    require(replica, held)
    replica.become(held.run, held.node)
    return replica


def _fitting(built: BuiltModel, held_bytes: int, room_bytes: int, most: int) -> int:
    return footprint_of(built, held_bytes, room_bytes, most).fitting(room_bytes, most)
