# SPDX-License-Identifier: Apache-2.0
"""What answers without torch answers as what has torch: the same weights and factors to the bit, the same tokens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from leader import Leader
from transformers import AutoModelForCausalLM, MistralConfig

from edge_client.worker.answering.full import FullModel
from edge_client.worker.answering.light import LightModel, light_model
from edge_client.worker.compiled.native import Parts
from edge_client.worker.data.chat import prompt_ids
from edge_client.worker.model.loading import describe
from edge_client.worker.train.replica import Replica
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from fedcore.errors import BudgetError, ExactnessError
from fedcore.round.plan import Plan, objects_needed
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.serving import Held, Load
from tests.causal_models import SHAPES, byte_tokenizer, random_model
from tests.edge_client.serving.tiny_chat import TEMPLATE

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here")

PROMPTS = [[(7 * row + 3 * column + row * column) % 256 for column in range(3 + 4 * row)] for row in range(6)]
GREEDY = GenerationOptions(max_new_tokens=16)
DRAWN = GenerationOptions(max_new_tokens=16, temperature=1.2, top_p=0.9, top_k=40, seed=11)
TASK = TaskSection(kind="instruction", max_length=64)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache folder of its own."""
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PATH": os.environ["PATH"]}


def written(folder: Path, model: Any) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mistral() -> Any:
    config = MistralConfig(**{**SHAPES["llama"]().to_dict(), "model_type": "mistral", "sliding_window": None})
    return AutoModelForCausalLM.from_config(config).eval()


def alone(folder: Path, tmp_path: Path, **words: Any) -> Load:
    return Load(model_folder=str(folder), scratch=str(tmp_path / "scratch"), threads=1, **words)


def answers(model: FullModel | LightModel, options: GenerationOptions) -> list[list[int]]:
    assert model.writer is not None
    return [[token.id for token in model.writer.stream(prompt, options)] for prompt in PROMPTS]


def both(load: Load, environment: Mapping[str, str]) -> tuple[FullModel, LightModel]:
    full = FullModel(load, environment)
    light = light_model(load, environment)
    assert light is not None
    return full, light


def arrays(parts: Parts) -> list[np.ndarray[Any, Any]]:
    """All numbers of a model's layers."""
    found = [parts.norm.weight, parts.frequencies]
    for linear in parts.linears():
        for rows in (linear.weight, *(linear.side or ())):
            found += [rows.weight] if rows.scale is None else [rows.weight, rows.scale]
        found += [] if linear.bias is None else [linear.bias]
    return found


def same_numbers(full: FullModel, light: LightModel) -> None:
    assert full.writer is not None and full.writer.compiled is not None
    mine, yours = arrays(full.writer.compiled.parts), arrays(light.parts())
    assert len(mine) == len(yours)
    for one, other in zip(mine, yours, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("shape", ["llama", "llama tied", "qwen2", "qwen3", "mistral"])
def test_answers_are_those_with_torch(shape: str, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = written(tmp_path / "model", mistral() if shape == "mistral" else random_model(shape))
    load = alone(folder, tmp_path)
    assert light_model(load, environment) is None
    full, light = both(load, environment)
    same_numbers(full, light)
    greedy = answers(light, GREEDY)
    assert greedy == answers(full, GREEDY) and len(set(map(tuple, greedy))) > 3
    assert answers(light, DRAWN) == answers(full, DRAWN) != greedy


@pytest.mark.parametrize("shape", ["mistral window", "gemma", "granite", "gpt2"])
def test_other_models_leave_no_recipe(shape: str, tmp_path: Path, environment: dict[str, str]) -> None:
    load = alone(written(tmp_path / "model", random_model(shape)), tmp_path)
    FullModel(load, environment)
    assert light_model(load, environment) is None


def test_a_folder_that_changed_needs_another_recipe(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = written(tmp_path / "model", random_model("llama", seed=3))
    load = alone(folder, tmp_path)
    FullModel(load, environment)
    assert light_model(load, environment) is not None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert light_model(load, environment) is None
    full, light = both(load, environment)
    assert answers(light, GREEDY) == answers(full, GREEDY)
    # Without a place to keep it, or a compiler, torch answers.
    assert light_model(load, {"PATH": os.environ["PATH"]}) is None


def test_the_room_bounds_the_context(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = written(tmp_path / "model", random_model("llama"))
    _, light = both(alone(folder, tmp_path), environment)
    assert light.writer is not None and light.writer.context_tokens == 128
    with pytest.raises(BudgetError, match="room for a context of 0 tokens"):
        light_model(alone(folder, tmp_path, room_bytes=2**20), environment)
    shorter = light_model(alone(folder, tmp_path, max_context=50), environment)
    assert shorter is not None and shorter.writer is not None and shorter.writer.context_tokens == 50


class Node:
    """A node of a run that merges every second round, with all norms trained whole, and what it says that it holds."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, written(root / "model", random_model("qwen3"))
        schema = describe(Checkpoint(self.model), TASK, ("*norm.weight",))
        self.leader = Leader(root / "run", self.model, schema, TASK, every=2, size=0.03)
        self.plan = self.leader.start()

    def held(self, plan: Plan) -> Held:
        """Take what is published, as a session does."""
        import torch

        replica = Replica(plan, self.model, self.root / "node", torch.device("cpu"), torch.float32)
        while needed := objects_needed(plan, replica.state.version, replica.base.generation):
            obj = needed[0]
            replica.adopt(self.leader.path(obj), obj.generation, obj.kind, obj.digest)
        return Held(
            run="t",
            node="n",
            version=replica.state.version,
            generation=replica.base.generation,
            digest=replica.digest(),
            plan=plan,
        )

    def load(self, held: Held, scratch: str) -> Load:
        return Load(
            model_folder=str(self.model),
            held=held,
            folder=str(self.root / "node"),
            scratch=str(self.root / scratch),
            threads=1,
        )


def test_what_a_node_holds_is_answered_from(tmp_path: Path, environment: dict[str, str]) -> None:
    node = Node(tmp_path)
    before: list[list[list[int]]] = []
    light: LightModel | None = None
    for _ in range(4):
        held = node.held(node.plan)
        full = FullModel(node.load(held, "full"), environment)
        load = node.load(held, "light")
        # A newer state on the same base is taken; after a merge the base is another.
        if light is not None and light.load.held is not None:
            merged = held.generation != light.load.held.generation
            assert light.take(load, held) is not merged
            light = None if merged else light
        light = light or light_model(load, environment)
        assert light is not None and light.task == TASK
        same_numbers(full, light)
        said = answers(light, GREEDY)
        assert said == answers(full, GREEDY) and said not in before
        before.append(said)
        node.plan = node.leader.advance(node.plan)
    node.leader.kill()
    silent = msgspec.structs.replace(held.plan, objects=(), start_digest="")
    wrong = msgspec.structs.replace(held, digest="0" * 64, plan=silent)
    with pytest.raises(ExactnessError, match="what lies on the disk is not version 3"):
        light_model(node.load(wrong, "wrong"), environment)


PROGRAM = """
import io, json, sys
from edge_client.worker.programs.answer import AnsweringWorker
from fedcore.worker.serving import ChatMessage, Generate, Load
folder, scratch = sys.argv[1:3]
worker, said = AnsweringWorker(io.BytesIO()), []
worker.answer(Load(model_folder=folder, scratch=scratch, room_bytes=2**30))
for schema in ("", '{"enum": ["yes"]}'):
    asked = Generate(answer=1, messages=(ChatMessage("user", "hello"),), max_tokens=9, temperature=0.0, json_schema=schema)
    said.append(worker.answer(asked).completion_tokens)
heavy = sorted({"torch", "transformers"} & sys.modules.keys())
print(json.dumps([heavy, said]))
"""


def test_the_process_imports_neither_torch_nor_transformers(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = written(tmp_path / "model", random_model("llama"))
    FullModel(alone(folder, tmp_path), environment)
    command = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "scratch")]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], [9, 6]]


@pytest.mark.slow
def test_a_real_model_s_answers(smollm_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    full, light = both(alone(smollm_folder, tmp_path, max_context=512), environment)
    same_numbers(full, light)
    assert full.writer is not None
    for question in ("What is the capital of France?", "Zähle drei Farben auf. 🙂", "Write a line of Python."):
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        prompt = prompt_ids(turns, light.tokenizer)
        assert prompt == prompt_ids(turns, full.tokenizer)
        for options in (GREEDY, DRAWN):
            mine, yours = (list(model.writer.stream(prompt, options)) for model in (light, full) if model.writer)
            assert mine == yours
