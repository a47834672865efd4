# SPDX-License-Identifier: Apache-2.0
"""Offsite tuning: which blocks an emulator has, what of it trains, and the full model with what was learned in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers as hf
from leader import Leader
from made_runs import fedkrso

from coordinator.offsite.emulator import ARCHITECTURES, blocks_of, write_emulator
from coordinator.offsite.plugin import export_plugged_in, plug_in
from coordinator.reports.lastmodel import last_model
from coordinator.store.folder import RunFolder, write_job
from coordinator.store.ledger import SqliteLedger
from edge_client.worker.model.describing import describe
from edge_client.worker.model.layer import Int8Weight, SubspaceLinear
from edge_client.worker.model.loading import build
from edge_client.worker.programs.align import aligned
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError, ModelError
from fedcore.model.base import Base
from fedcore.model.learned import layer_update
from fedcore.round.training.head import linear_head
from fedcore.weights.checkpoint import Checkpoint, from_float32, to_float32, write_safetensors
from fedcore.weights.offsite import OFFSITE_FILE, read_map
from fedcore.worker.exchange import AlignEmulator
from tests.edge_client.worker.answering.two_parts import two_parts
from tests.edge_client.worker.exchange.gguf_models import write_model

TASKS = {
    "bert": TaskSection(kind="text-classification", labels=("a", "b"), max_length=16),
    "llama": TaskSection(kind="causal-lm", max_length=16),
}


def full_model(kind: str, folder: Path) -> Path:
    """Six random blocks; of BERT in float32 and of Llama in bfloat16."""
    if kind == "llama":
        hf_kind = {"num_hidden_layers": 6, "dtype": "bfloat16"}
        write_model(folder / "two", "llama tied")
        config = hf.AutoConfig.from_pretrained(folder / "two", **hf_kind)
        shutil.copytree(folder / "two", folder / "full")
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 6}
        config = hf.BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)
    torch.manual_seed(3)
    model = (hf.BertModel if kind == "bert" else hf.AutoModelForCausalLM.from_config)(config)
    model.to(torch.bfloat16 if kind == "llama" else torch.float32).save_pretrained(folder / "full")
    return folder / "full"


@pytest.fixture(params=list(TASKS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def numbers(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def lead(root: Path, folder: Path, task: TaskSection, *, every: int) -> RunFolder:
    """Two rounds with random updates."""
    schema = describe(Checkpoint(folder), task)
    leader = Leader(root / "t", folder, schema, task, every=every, size=0.05)
    leader.until(3, leader.start())
    leader.kill()
    files = RunFolder(root / "t")
    write_job(files, leader.job)
    ledger = SqliteLedger(files.ledger)
    ledger.put_fact("task", task)
    ledger.put_fact("schema", schema)
    ledger.close()
    return files


def test_an_emulator_is_the_full_model_without_some_blocks(kind: str, tmp_path: Path) -> None:
    full = full_model(kind, tmp_path)
    found = write_emulator(full, tmp_path / "small", first=1, last=1)
    assert (found.kept, read_map(tmp_path / "small")) == ((0, 1, 4, 5), found)
    ours, theirs = numbers(tmp_path / "small"), numbers(full)
    for name, value in ours.items():
        assert np.array_equal(value, theirs[found.to_full(name)]), name
        assert found.from_full(found.to_full(name)) == name
    assert {found.to_full(name) for name in ours} == {name for name in theirs if found.from_full(name)}
    # What transformers makes of the folder is the full model with blocks taken out.
    auto = hf.AutoModel if kind == "bert" else hf.AutoModelForCausalLM
    small, whole = (auto.from_pretrained(place, dtype=torch.float32).eval() for place in (tmp_path / "small", full))
    ids = torch.arange(1, 9)[None]
    blocks = whole.encoder.layer if kind == "bert" else whole.model.layers
    kept = torch.nn.ModuleList([blocks[block] for block in found.kept])
    if kind == "bert":
        whole.encoder.layer = kept
    else:
        whole.model.layers, whole.config.num_hidden_layers = kept, len(kept)
    with torch.no_grad():
        assert torch.equal(small(ids)[0], whole(ids, use_cache=False)[0])


@pytest.mark.parametrize("last", [0, 1])
def test_a_front_alone_begins_with_a_new_head(kind: str, last: int, tmp_path: Path) -> None:
    """What a tuned head says is of the last block; first blocks that answer by themselves get one of their own."""
    task = TaskSection(kind="text-classification", labels=("off", "on"), max_length=16)
    config = hf.AutoConfig.from_pretrained(full_model(kind, tmp_path), num_labels=2, pad_token_id=0)
    config.id2label = {0: "off", 1: "on"}
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "tuned")
    write_emulator(tmp_path / "tuned", tmp_path / "front", first=2, last=last, middle=0)
    schema = describe(Checkpoint(tmp_path / "front"), task)
    assert {tensor.in_checkpoint for tensor in schema.tensors} == {last == 1}
    assert isinstance(linear_head(schema), str) == (last == 1)


def test_frozen_blocks_have_no_entry_and_are_held_in_eight_bits(kind: str, tmp_path: Path) -> None:
    task = TASKS[kind]
    found = write_emulator(full_model(kind, tmp_path), tmp_path / "small", first=1, last=1)
    checkpoint = Checkpoint(tmp_path / "small")
    schema = describe(checkpoint, task)
    at = {
        int(layer.name.removeprefix(found.prefix).split(".")[0])
        for layer in schema.layers
        if found.prefix in layer.name
    }
    assert at == {0, 3}
    norms = describe(checkpoint, task, ("*orm*",))
    named = [tensor.name for tensor in norms.tensors if found.prefix in tensor.name]
    assert named and all(found.trains(name) for name in named)
    base = Base(checkpoint, schema, "int8", tmp_path / "scratch")
    model = build(base, task, 0, torch.device("cpu"), torch.float32)
    held = [module for module in model.module.modules() if isinstance(module, SubspaceLinear)]
    frozen = [layer for layer in held if layer.name not in model.layers]
    assert len(frozen) * 2 == len(held) - sum("pooler" in layer.name for layer in held)
    assert {type(layer.base) for layer in frozen} == {Int8Weight}
    # A step through them reaches the first block, and nothing of theirs trains.
    ids = torch.arange(1, 9)[None]
    for layer in model.layers.values():
        layer.install(torch.ones(4, layer.in_features, dtype=torch.int8), 4)
        layer.select(0)
    model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    assert all(layer.factor.grad.abs().max() > 0 for layer in model.layers.values())
    assert all(parameter.grad is None for layer in frozen for parameter in layer.parameters())


@pytest.mark.parametrize("every", [0, 1], ids=["pool", "merged each round"])
def test_plugged_in_is_the_full_model_plus_exactly_what_was_learned(kind: str, every: int, tmp_path: Path) -> None:
    full, task = full_model(kind, tmp_path), TASKS[kind]
    found = write_emulator(full, tmp_path / "small", first=1, last=1)
    files = lead(tmp_path / "runs", tmp_path / "small", task, every=every)
    said = fedkrso("coordinator", "export", "t", tmp_path / "out", "--runs", tmp_path / "runs", "--plug-in", full)
    assert said.returncode == 0, said.stderr
    assert f"plugged into {full}" in said.stdout and found.full_sha256 in (tmp_path / "out" / "README.md").read_text()
    last, before, after = last_model(files), Checkpoint(full), Checkpoint(tmp_path / "out")
    expected = {}
    for layer in last.schema.layers:
        name = found.to_full(layer.stored)
        was = last.base.master(layer) if every else to_float32(before.read(name), before.tensors[name].dtype)
        change = layer_update(last.training, last.state, layer, last.artefact)
        expected[name] = from_float32((was + change).astype(np.float32), before.tensors[name].dtype)
    prefix, new = last.schema.export_prefix, {tensor.name for tensor in last.schema.tensors}
    for name, entry in after.tensors.items():
        own = name if name in before.tensors or name in new else name.removeprefix(prefix)
        if own in expected:
            assert np.array_equal(after.read(name), expected[own]), name
            assert not np.array_equal(after.read(name), before.read(own)), name
        elif own not in new:
            assert np.array_equal(after.read(name), before.read(own)), name
            assert entry.dtype == before.tensors[own].dtype
    assert len(after.tensors) == len(before.tensors) + sum(not tensor.in_checkpoint for tensor in last.schema.tensors)
    auto = hf.AutoModelForSequenceClassification if kind == "bert" else hf.AutoModelForCausalLM
    whole, loading = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert whole.config.num_hidden_layers == 6 and not loading["missing_keys"] and not loading["unexpected_keys"]
    assert not (tmp_path / "out" / OFFSITE_FILE).exists()


def test_a_run_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    full, task = full_model("bert", tmp_path), TASKS["bert"]
    write_emulator(full, tmp_path / "small", first=1, last=1)
    files = lead(tmp_path / "runs", tmp_path / "small", task, every=0)
    other = shutil.copytree(full, tmp_path / "other")
    tensors = numbers(other)
    tensors["embeddings.LayerNorm.bias"] = tensors["embeddings.LayerNorm.bias"] + 1
    write_safetensors(other / "model.safetensors", [(n, "F32", v.shape) for n, v in tensors.items()], tensors.get)
    with pytest.raises(ModelError, match="another model: its tensors' SHA-256 is [0-9a-f]{12}, the emulator was made"):
        export_plugged_in(files, tmp_path / "out", other)
    (tmp_path / "small" / OFFSITE_FILE).rename(tmp_path / "kept.json")
    with pytest.raises(ModelError, match="the run's model is no emulator: it has no offsite.json"):
        export_plugged_in(files, tmp_path / "out", full)
    for damaged in ('{"full_sha256": 1}', "x", (tmp_path / "kept.json").read_text().replace('"form": 1', '"form": 2')):
        (tmp_path / "small" / OFFSITE_FILE).write_text(damaged)
        with pytest.raises(ModelError, match="no map of an emulator"):
            read_map(tmp_path / "small")
    assert not (tmp_path / "out").exists()


def test_models_that_no_emulator_is_made_of_are_refused_by_name(tmp_path: Path) -> None:
    full = full_model("bert", tmp_path)
    for first, last, middle, words in [
        (3, 3, None, "3 blocks first, 3 last and 1 between them, of a model of 6"),
        (1, 1, 5, "1 blocks first, 1 last and 5 between them"),
        (0, 0, 2, "none would train"),
    ]:
        with pytest.raises(ModelError, match=words):
            write_emulator(full, tmp_path / "small", first=first, last=last, middle=middle)
    config = json.loads((full / "config.json").read_text())
    for changes, words in [
        ({"model_type": "albert"}, rf"model of type 'albert' \(types: {', '.join(ARCHITECTURES)}\)"),
        ({"num_hidden_layers": 7}, "num_hidden_layers is 7, and there are not so many blocks encoder.layer.N"),
        ({"use_sliding_window": True}, "use_sliding_window is set"),
    ]:
        (full / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError, match=words):
            write_emulator(full, tmp_path / "small", first=1, last=1)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_blocks_are_found_as_transformers_names_them(name: str, tmp_path: Path) -> None:
    key, _ = ARCHITECTURES[name]
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 20, key: 3}
    small |= {
        "num_key_value_heads": 2,
        "n_embd": 16,
        "n_head": 2,
        "dim": 16,
        "hidden_dim": 16,
        "n_heads": 2,
        "head_dim": 8,
    }
    config = hf.AutoConfig.for_model(name, **small)
    hf.AutoModel.from_config(config).save_pretrained(tmp_path / "full")
    assert blocks_of(Checkpoint(tmp_path / "full")).count == 3
    found = write_emulator(tmp_path / "full", tmp_path / "small", first=1, last=1, middle=0)
    assert found.kept == (0, 2)
    _, loading = hf.AutoModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_an_emulator_whose_ends_were_changed_is_not_plugged_in(tmp_path: Path) -> None:
    full = full_model("bert", tmp_path)
    write_emulator(full, tmp_path / "small", first=1, last=1)
    for name, refused in (("encoder.layer.3.output.dense.bias", True), ("encoder.layer.1.output.dense.bias", False)):
        changed = shutil.copytree(tmp_path / "small", tmp_path / name)
        tensors = {key: value + (key == name) for key, value in numbers(changed).items()}
        table = [(key, "F32", value.shape) for key, value in tensors.items()]
        write_safetensors(changed / "model.safetensors", table, lambda key, found=tensors: found[key].astype("<f4"))
        if refused:
            with pytest.raises(ModelError, match=f"{name} did not begin as the full model's"):
                plug_in(changed, tmp_path / "small", full, tmp_path / "out")
        else:
            # An aligned middle is another one, and nobody takes it for the full model's.
            plug_in(changed, tmp_path / "small", full, tmp_path / "out")
    ours, theirs = numbers(tmp_path / "out"), numbers(full)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_middle_that_is_aligned_says_more_of_what_the_full_one_says(tmp_path: Path) -> None:
    full = two_parts("bert", tmp_path)[1]
    write_emulator(full, tmp_path / "emulator", first=1, last=1, middle=1)
    before = numbers(tmp_path / "emulator")
    words = [f"word{index % 20} word{index % 7} left word{index % 11}" for index in range(120)]
    (tmp_path / "texts.csv").write_text("\n".join(["text", *words]))
    data = DataSection(source=str(tmp_path / "texts.csv"))
    command = AlignEmulator(
        full=str(full), folder=str(tmp_path / "emulator"), data=data, rows=1000, steps=30, learning_rate=1e-2
    )
    done = aligned(command)
    assert done.texts == 120 - 64 and done.after < 0.7 * done.before
    after, found = numbers(tmp_path / "emulator"), read_map(tmp_path / "emulator")
    assert found is not None and after.keys() == before.keys()
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed and not any(found.trains(name) for name in changed), "the middle, and nothing else"
    assert {name.split(".")[3] for name in changed} == {"1"}
    # By the model's own forward pass: what goes into the full middle, through the emulator's block.
    hf_full, hf_own = (hf.AutoModel.from_pretrained(folder).eval() for folder in (full, tmp_path / "emulator"))
    ids = torch.tensor([[2, 5, 9, 4, 3]])
    with torch.no_grad():
        states = [model(ids, output_hidden_states=True).hidden_states for model in (hf_full, hf_own)]
    assert torch.equal(states[0][1], states[1][1])
    off = (states[1][2] - states[0][3]).square().mean() / states[0][3].square().mean()
    assert float(off) < done.before
    with pytest.raises(ModelError, match="no middle that could be aligned"):
        aligned(msgspec.structs.replace(command, folder=str(full)))
    with pytest.raises(DataError, match="fewer than 80 texts"):
        aligned(msgspec.structs.replace(command, rows=70))
