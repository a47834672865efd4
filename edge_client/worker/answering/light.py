# SPDX-License-Identifier: Apache-2.0
"""A model that answers without torch and transformers: a folder's, or a node's replica read beside its training; where
there is a recipe for it (`edge_client.worker.compiled.recipe`), and this machine has the compiled pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from edge_client.worker.answering.context import fitting_context
from edge_client.worker.answering.mirror import artefact_of, own_folder, require, take
from edge_client.worker.compiled.engine import CompiledEngine
from edge_client.worker.compiled.footprint import answer_bytes, fitting_tokens, mapped_bytes
from edge_client.worker.compiled.kernel import Kernel, kernel_for
from edge_client.worker.compiled.making import Ingredients
from edge_client.worker.compiled.native import Parts
from edge_client.worker.compiled.recipe import Recipe, kept_recipe
from edge_client.worker.compiled.tokenizer import LightTokenizer
from edge_client.worker.compiled.writing import Writer
from edge_client.worker.train.highwater import give_back_freed_memory, status_bytes
from edge_client.worker.train.holding import Holding
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import DataError
from fedcore.model.base import Base
from fedcore.round.training import SubspaceTraining
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.serving import Classified, Classify, Held, Load

__all__ = ["LightModel", "ingredients_of", "light_model", "says_no_labels", "understands"]


class LightModel:
    """A model at hand.

    Args:
        load: What is asked for.
        recipe: Of its folder.
        kernel: What has been compiled.
        holding: Of a node; None for a folder by itself.
    """

    def __init__(self, load: Load, recipe: Recipe, kernel: Kernel, holding: Holding | None) -> None:
        self.load, self._recipe, self._kernel, self._holding = load, recipe, kernel, holding
        self.task = TaskSection(kind="causal-lm") if load.held is None else load.held.plan.task
        self.tokenizer = LightTokenizer(recipe.tokenizer)
        base = _folder_base(load, recipe) if holding is None else holding.base
        self._base = base
        parts = self.parts()
        # Of what the tokenizer was made from: a tenth of all there is.
        give_back_freed_memory()
        self._context_tokens = fitting_context(
            load,
            recipe.positions,
            # Its weights' pages are in memory once they were read.
            (status_bytes("VmRSS") or 0) + mapped_bytes(parts),
            partial(_fitting, parts),
        )
        self.writer: Writer = self._made(parts)

    def take(self, load: Load, held: Held) -> bool:
        """Hold the node's newer state, where it stands on the same base; False: load anew.

        Raises:
            ExactnessError: What lies there is another state than the note says. The model has to be loaded anew.
        """
        if self._holding is None or not understands(load) or not take(self._holding, load, held):
            return False
        self.load = load
        self.writer = self._made(self.parts())
        return True

    def classify(self, command: Classify) -> Classified:
        """Refused: it writes."""
        raise says_no_labels()

    def parts(self) -> Parts:
        """What the compiled pass takes, as it stands on the disk now."""
        return ingredients_of(self._recipe, self._base, self._holding).parts()

    def _made(self, parts: Parts) -> Writer:
        engine = CompiledEngine(parts, self._kernel, self._context_tokens, self.load.threads)
        return Writer(engine, self.tokenizer, self._context_tokens, frozenset(self._recipe.end_tokens))


def light_model(load: Load, environment: Mapping[str, str]) -> LightModel | None:
    """A model that needs no torch; None where it has to be another.

    Args:
        load: What is asked for.
        environment: Where the cache folder is, and a compiler.

    Raises:
        FedkrsoError: It cannot be held; ExactnessError where what lies on the disk is being changed.
    """
    if not understands(load):
        return None
    recipe = kept_recipe(Checkpoint(Path(load.model_folder)), environment)
    kernel = None if recipe is None else kernel_for(environment)
    if recipe is None or kernel is None:
        return None
    if load.held is None:
        return LightModel(load, recipe, kernel, None)
    holding = Holding(load.held.plan, Path(load.model_folder), own_folder(load), artefact_of(load))
    require(holding, load.held)
    return LightModel(load, recipe, kernel, holding)


def ingredients_of(recipe: Recipe, base: Base, holding: Holding | None) -> Ingredients:
    """What a model is made of: of a base alone, or with what a node holds."""
    if holding is None:
        return Ingredients(recipe, base)
    # A merge leaves the base without its file of 8-bit weights.
    base.store()
    return Ingredients(recipe, base, holding.state, holding.artefact, holding.start_values())


def says_no_labels() -> DataError:
    """The refusal of a model that writes."""
    return DataError("this model writes sentences, it has no labels", place="model", remedy="ask /v1/chat/completions")


def understands(load: Load) -> bool:
    """Whether a model can be answered from without torch, as far as what is asked for tells: all that is learned is in
    subspaces, or in whole tensors that all nodes share."""
    if (load.torch_device, load.compute_dtype) != ("cpu", "float32"):
        return False
    if load.held is None:
        return True
    plan = load.held.plan
    schema, training = plan.model_schema, plan.training
    return (
        type(training) is SubspaceTraining
        and training.shared_tensors(schema) == schema.tensors
        and not schema.adapter
        and task_of(plan.task).outputs() is None
        and all(layer.expert is None and not layer.transposed for layer in schema.layers)
    )


def _folder_base(load: Load, recipe: Recipe) -> Base:
    base = Base(Checkpoint(Path(load.model_folder)), recipe.schema, "int8", Path(load.scratch))
    base.store()
    return base


def _fitting(parts: Parts, held_bytes: int, room_bytes: int, most: int) -> int:
    return fitting_tokens(lambda tokens: held_bytes + answer_bytes(parts, tokens), room_bytes, most)
