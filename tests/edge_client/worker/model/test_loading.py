# SPDX-License-Identifier: Apache-2.0
"""Real checkpoints become replicas: same function as transformers' own, exact export, merges, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from plans import subspaces
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaModel,
)

from coordinator.reports.export import export_model
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, batches, encode, outputs, summed_loss
from edge_client.worker.model.loading import build, describe
from fedcore.config.sections import TaskSection
from fedcore.errors import ExactnessError, ModelError
from fedcore.model.base import Base
from fedcore.model.state import ExactState, PublishedState
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
THREE = TaskSection(kind="text-classification", labels=("a", "b", "c"), max_length=32)
CAUSAL = TaskSection(kind="causal-lm", max_length=32)


@pytest.fixture
def stories(shared_folder: Path) -> Path:
    return shared_folder / "models" / "stories260K"


def some_state(schema: object, base: Base) -> PublishedState:
    state = ExactState.zero(subspaces((5, 6), 4), base.schema)
    total, generator = RunningSum(subspaces((5, 6), 4).shapes(base.schema)), np.random.default_rng(0)
    total.add_examples(1)
    for name, shape in subspaces((5, 6), 4).shapes(base.schema).items():
        total.add(name, quantise_rows((generator.normal(size=shape) * 0.01).astype(np.float32), 8), 1)
    return state.after(total).publish()


def test_minilm_on_a_float_base_is_transformers_own_function(minilm_folder: Path, tmp_path: Path) -> None:
    schema = describe(Checkpoint(minilm_folder), THREE)
    assert len(schema.layers) == 37 and {t.name for t in schema.tensors} == {"classifier.weight", "classifier.bias"}
    model = build(Base(Checkpoint(minilm_folder), schema, "float32", tmp_path), THREE, 0, CPU, torch.float32)
    ids = torch.tensor([[101, 2735, 2006, 1996, 2422, 102]])
    with torch.inference_mode():
        reference = AutoModel.from_pretrained(minilm_folder)(ids).last_hidden_state
        assert torch.equal(model.backbone(ids).last_hidden_state, reference)


@pytest.mark.parametrize("task", [THREE, CAUSAL], ids=["labels", "causal"])
def test_nothing_of_ours_is_hung_on_the_module(task: TaskSection, stories: Path, tmp_path: Path) -> None:
    schema = describe(Checkpoint(stories), task)
    model = build(Base(Checkpoint(stories), schema, "int8", tmp_path), task, 0, CPU, torch.float32)
    auto = AutoModelForCausalLM if task is CAUSAL else AutoModelForSequenceClassification
    ordinary = auto.from_pretrained(stories, num_labels=3)
    for kind in ("_modules", "_parameters", "_buffers"):
        assert vars(model.module)[kind].keys() == vars(ordinary)[kind].keys()
    # What a folder's `from_pretrained` notes down of itself is not in one that was built without weights.
    assert vars(model.module).keys() <= vars(ordinary).keys()
    assert (model.output_weight is not None) == (task is CAUSAL)
    assert model.layers.keys() == {layer.name for layer in schema.layers}
    assert model.tensors.keys() == {tensor.name for tensor in schema.tensors}


def test_stories_causal_loss_is_real(stories: Path, tmp_path: Path) -> None:
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    encoded = encode([Example(text, None, None)], CAUSAL, AutoTokenizer.from_pretrained(stories))
    reference = AutoModelForCausalLM.from_pretrained(stories)
    expected = sum(
        float(reference(torch.tensor([e.ids]), labels=torch.tensor([e.ids])).loss.detach()) * e.weight for e in encoded
    )
    for kind, tolerance in (("float32", 1e-4), ("int8", 0.1)):
        schema = describe(Checkpoint(stories), CAUSAL)
        model = build(Base(Checkpoint(stories), schema, kind, tmp_path / kind), CAUSAL, 0, CPU, torch.float32)  # type: ignore[arg-type]
        found = float(summed_loss(model, encoded, CAUSAL, 0, CPU).detach())
        assert found == pytest.approx(expected, rel=tolerance)
        assert found / sum(e.weight for e in encoded) < 2.0


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_export_loads_and_computes_what_the_replica_computes(minilm_folder: Path, tmp_path: Path, kind: str) -> None:
    schema = describe(Checkpoint(minilm_folder), THREE)
    base = Base(Checkpoint(minilm_folder), schema, kind, tmp_path / "base")  # type: ignore[arg-type]
    state = some_state(schema, base)
    export_model(base, state, schema, THREE, subspaces((5, 6), 4), tmp_path / "out")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert exported.config.id2label == {0: "a", 1: "b", 2: "c"}
    # A base that merged the same state computes the same function.
    merged = Base(Checkpoint(minilm_folder), schema, "float32", tmp_path / "merged")
    merged.merge(state, 1)
    for layer in schema.layers:
        stored = exported.state_dict()[f"bert.{layer.name}.weight"].numpy()
        assert np.array_equal(stored, merged.master(layer))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("turn on the light")["input_ids"][0] == 101


def test_a_regression_starts_at_the_middle_of_its_scale(minilm_folder: Path, tmp_path: Path) -> None:
    task = TaskSection(kind="regression", max_length=32, middle=2.5)
    schema = describe(Checkpoint(minilm_folder), task)
    assert {t.name: t.start for t in schema.tensors} == {"classifier.weight": 0.0, "classifier.bias": 2.5}
    base = Base(Checkpoint(minilm_folder), schema, "int8", tmp_path / "base")
    model = build(base, task, 0, CPU, torch.float32)
    batch = [Encoded((101, 2735 + i, 102), None, 0.0) for i in range(4)]
    with torch.inference_mode():
        said = outputs(model, batch, 0, CPU)
    assert (said - 2.5).abs().max() < 0.5
    # What is exported starts there too: a bias is what a new head began with and what was learned.
    state = some_state(schema, base)
    export_model(base, state, schema, task, subspaces((5, 6), 4), tmp_path / "out")
    learned = state.entries["classifier.bias"].values().reshape(-1)
    assert np.array_equal(
        load_file(tmp_path / "out" / "model.safetensors")["classifier.bias"].numpy(), np.float32(2.5) + learned
    )


def test_only_the_output_s_bias_starts_at_the_middle(stories: Path, tmp_path: Path) -> None:
    task = TaskSection(kind="regression", middle=2.5)
    # Llama's head has no bias, RoBERTa's has a layer of its own before the output.
    assert [tensor.start for tensor in describe(Checkpoint(stories), task).tensors] == [0.0]
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    starts = {tensor.name: tensor.start for tensor in describe(Checkpoint(tmp_path), task).tensors}
    assert starts == {
        "classifier.dense.weight": 0.0,
        "classifier.dense.bias": 0.0,
        "classifier.out_proj.weight": 0.0,
        "classifier.out_proj.bias": 2.5,
    }


def test_merge_is_the_same_after_a_restart_and_changes_the_digest(minilm_folder: Path, tmp_path: Path) -> None:
    schema = describe(Checkpoint(minilm_folder), THREE)
    base = Base(Checkpoint(minilm_folder), schema, "int8", tmp_path / "one")
    state, before = some_state(schema, base), base.digest()
    base.merge(state, 1)
    base.merge(state, 1)
    assert base.digest() != before
    assert Base(Checkpoint(minilm_folder), schema, "int8", tmp_path / "one").digest() == base.digest()
    with pytest.raises(ExactnessError, match="generation 3 on a base of generation 1"):
        base.merge(state, 3)


def test_bitsandbytes_8bit_checkpoint_keeps_its_integers(stories: Path, tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    folder = tmp_path / "bnb"
    shutil.copytree(stories, folder)
    tensors, schema = load_file(stories / "model.safetensors"), describe(Checkpoint(stories), CAUSAL)
    for layer in schema.layers:
        integers, scale, _ = bnb.int8_vectorwise_quant(tensors[f"{layer.name}.weight"].half())
        tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.SCB"] = integers, scale.float()
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    assert describe(Checkpoint(folder), CAUSAL).layers == schema.layers
    base = Base(Checkpoint(folder), schema, "int8", tmp_path / "base")
    q, scale = base.layer(schema.layers[0])
    name = schema.layers[0].name
    assert np.array_equal(q, tensors[f"{name}.weight"].numpy()) and scale is not None
    assert np.allclose(scale * 127, tensors[f"{name}.SCB"].numpy())


def test_batches_do_not_depend_on_anything_global_and_cover_all() -> None:
    encoded = [Encoded((i, i), None, 0) for i in range(10)]
    one, two = batches(encoded, 4, 1, "a"), batches(encoded, 4, 1, "a")
    first = [next(one) for _ in range(5)]
    torch.manual_seed(123)
    assert first == [next(two) for _ in range(5)]
    assert sorted(e.ids[0] for batch in first for e in batch) == sorted(list(range(10)) * 2)
    assert next(batches(encoded, 4, 1, "b")) != first[0]


def test_micro_batches_give_the_whole_batch_s_gradient(stories: Path, tmp_path: Path) -> None:
    schema = describe(Checkpoint(stories), THREE)
    model = build(Base(Checkpoint(stories), schema, "float32", tmp_path), THREE, 0, CPU, torch.float32)
    batch = [Encoded(tuple(range(5, 9 + i)), None, i % 3) for i in range(6)]
    pad_id, head = model.pad_id, model.tensors["score.weight"]
    gradients: list[torch.Tensor] = []
    for size in (6, 2, 1):
        head.grad = None
        for start in range(0, 6, size):
            summed_loss(model, batch[start : start + size], THREE, pad_id, CPU).backward()  # type: ignore[no-untyped-call]
        assert head.grad is not None
        gradients.append(head.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5) and torch.allclose(
        gradients[0], gradients[2], atol=1e-5
    )


def test_model_folders_that_cannot_serve_are_named(tmp_path: Path, minilm_folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="no weights"):
        Checkpoint(empty)
    (empty / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="only pickled weights"):
        Checkpoint(empty)
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(minilm_folder / "config.json", cut)
    (cut / "model.safetensors").write_bytes((minilm_folder / "model.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match="cut short"):
        Checkpoint(cut)
