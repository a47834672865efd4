# SPDX-License-Identifier: Apache-2.0
"""Weights on disk and embeddings in their own dtype: the same losses and gradients, bit for bit, and nothing twice in
memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_client.worker.data.tasks import Encoded, outputs, summed_loss
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.embedding import FrozenEmbedding
from edge_client.worker.model.loading import build, describe, float_weight, install_weight
from edge_client.worker.model.weights import FloatWeight, Scratch, tensor_of
from edge_client.worker.trace.outline import Outline, write_random_checkpoint
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.subspaces.projection import signs
from fedcore.weights.checkpoint import Checkpoint, to_float32, write_safetensors
from tests.edge_client.worker.model.test_layer import inputs, make_layer

CPU = torch.device("cpu")
THREE = TaskSection(kind="text-classification", labels=("a", "b", "c"), max_length=32)
CAUSAL = TaskSection(kind="causal-lm", max_length=32)


def built(folder: Path, task: TaskSection, own: Path, kind: str = "int8", *, mapped: bool = False) -> BuiltModel:
    torch.set_num_threads(1)
    checkpoint = Checkpoint(folder)
    base = Base(checkpoint, describe(checkpoint, task), kind, own)  # type: ignore[arg-type]
    base.store()
    model = build(base, task, 0, CPU, torch.float32, mapped=mapped)
    for name, layer in model.layers.items():
        layer.install(torch.from_numpy(np.concatenate([signs(seed, name, 4, layer.in_features) for seed in (5, 6)])), 4)
        layer.select(1)
    return model


def step(model: BuiltModel, task: TaskSection) -> dict[str, Tensor]:
    """Loss, logits of a classifier, and the gradients of all that trains, twice: the second time pages have been given
    back."""
    batch = [Encoded(tuple(range(5, 12 + 3 * i)), None, None if task is CAUSAL else i) for i in range(3)]
    found = {}
    for _ in range(2):
        model.module.zero_grad()
        loss = summed_loss(model, batch, task, 0, CPU)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {"loss": loss.detach()}
    if task is not CAUSAL:
        found["logits"] = outputs(model, batch, 0, CPU).detach()
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            found[name] = parameter.grad
    assert all(bool(value.any()) for value in found.values() if value is not found["loss"])
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def widened(folder: Path, to: Path) -> Path:
    """The same checkpoint in float32."""
    shutil.copytree(folder, to)
    old = Checkpoint(folder)
    table = [(name, "F32", entry.shape) for name, entry in old.tensors.items()]
    write_safetensors(to / "model.safetensors", table, lambda name: to_float32(old.read(name), old.tensors[name].dtype))
    return to


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_minilm_is_the_same_from_disk(minilm_folder: Path, tmp_path: Path, kind: str) -> None:
    resident = built(minilm_folder, THREE, tmp_path / "a", kind)
    mapped = built(minilm_folder, THREE, tmp_path / "b", kind, mapped=True)
    embedding = mapped.module.get_input_embeddings()
    assert isinstance(embedding, FrozenEmbedding) and embedding.mapping is not None
    assert all(layer.base.mapped for layer in mapped.layers.values())
    # Small tables stay as they were.
    assert type(mapped.backbone.embeddings.position_embeddings) is nn.Embedding
    assert same(step(resident, THREE), step(mapped, THREE))


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_stories_is_the_same_from_disk(shared_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = shared_folder / "models" / "stories260K"
    resident, mapped = (
        built(folder, CAUSAL, tmp_path / str(on_disk), kind, mapped=on_disk) for on_disk in (False, True)
    )
    assert [layer.base.mapped for layer in resident.layers.values()].count(True) == 0
    assert same(step(resident, CAUSAL), step(mapped, CAUSAL))


@pytest.mark.parametrize("tied", [False, True])
def test_a_bfloat16_llama_is_the_same_from_disk(make_llama: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    folder = make_llama(tied=tied)
    resident, mapped = (built(folder, CAUSAL, tmp_path / str(on_disk), mapped=on_disk) for on_disk in (False, True))
    for model in (resident, mapped):
        head, embedding = model.module.get_output_embeddings().weight, model.module.get_input_embeddings().weight
        assert head.dtype == embedding.dtype == torch.bfloat16 and (head is embedding) == tied
        assert model.output_weight.weight.data_ptr() == head.data_ptr() and model.output_weight.mapped == (
            model is mapped
        )
    assert same(step(resident, CAUSAL), step(mapped, CAUSAL))


def test_a_bfloat16_embedding_kept_or_widened_gives_the_same_numbers(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_llama()
    wide = widened(folder, tmp_path / "wide")
    found = [
        step(built(source, THREE, tmp_path / f"{source.name}{mapped}", mapped=mapped), THREE)
        for source in (folder, wide)
        for mapped in (False, True)
    ]
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("architecture", ["BertConfig", "RobertaConfig"])
def test_encoders_with_masks_do_not_mind_an_embedding_in_bfloat16(tmp_path: Path, architecture: str) -> None:
    import transformers

    folder = tmp_path / "model"
    config = getattr(transformers, architecture)(
        vocab_size=32_000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        dtype="bfloat16",
        **{f"{word}_token_id": 0 for word in ("pad", "bos", "eos", "cls", "sep")},
    )
    config.save_pretrained(folder)
    write_random_checkpoint(Outline(folder, THREE), folder / "model.safetensors", 0)
    own, wide = (
        built(folder, THREE, tmp_path / "a", mapped=True),
        built(widened(folder, tmp_path / "wide"), THREE, tmp_path / "b"),
    )
    assert own.module.get_input_embeddings().weight.dtype == torch.bfloat16
    assert same(step(own, THREE), step(wide, THREE))


def test_an_embedding_that_computes_more_is_left_alone(tmp_path: Path) -> None:
    from transformers import Gemma2Config

    folder = tmp_path / "gemma"
    config = Gemma2Config(
        vocab_size=32_000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    config.save_pretrained(folder)
    write_random_checkpoint(Outline(folder, CAUSAL), folder / "model.safetensors", 0)
    model = built(folder, CAUSAL, tmp_path / "own", mapped=True)
    assert not any(isinstance(module, FrozenEmbedding) for module in model.module.modules())
    assert model.module.get_output_embeddings().weight is model.module.get_input_embeddings().weight


def test_an_embedding_looks_up_what_torch_s_own_does(make_llama: Callable[..., Path]) -> None:
    numbers, mapping = tensor_of(Checkpoint(make_llama()).read("model.embed_tokens.weight", mapped=True))
    embedding = FrozenEmbedding(nn.Parameter(numbers, requires_grad=False), mapping)
    ids = torch.tensor([[0, 31_999, 7], [7, 7, 1]])
    expected = nn.Embedding.from_pretrained(numbers.float(), padding_idx=1)(ids)
    for _ in range(2):
        rows = embedding(ids)
        assert rows.dtype == torch.float32 and torch.equal(rows, expected) and not rows.requires_grad


def test_nothing_is_mapped_on_another_device(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_llama())
    for kind in ("int8", "bfloat16"):
        base = Base(checkpoint, describe(checkpoint, CAUSAL), kind, tmp_path / kind)  # type: ignore[arg-type]
        base.store()
        weight = base.layer(base.schema.layers[0], mapped=True)
        assert float_weight(weight, CPU).mapped and not float_weight(weight, torch.device("meta")).mapped


def test_a_merge_puts_the_next_generation_s_pages_in_place(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = built(make_llama(), CAUSAL, tmp_path / "own", mapped=True)
    layer = next(iter(model.layers.values()))
    other = np.ones(layer.base.shape, np.int8), np.ones(layer.out_features, np.float32)
    install_weight(layer, other)
    assert not layer.base.mapped and bool((layer.base.q == 1).all())


def test_release_keeps_the_numbers_and_does_nothing_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 48), np.float32)
    values.tofile(tmp_path / "w")
    for numbers in (values, np.memmap(tmp_path / "w", np.float32, "r", 0, (64, 48))):
        tensor, mapping = tensor_of(numbers)
        weight = FloatWeight(tensor, mapping)
        assert weight.mapped == (numbers is not values)
        for _ in range(2):
            weight.release()
            assert torch.equal(weight.copy_rows(slice(8, 24), torch.empty(16, 48)), torch.from_numpy(values[8:24]))


@pytest.mark.parametrize("dequantised", [True, False])
def test_a_layer_that_was_measured_first_trains_as_before(dequantised: bool) -> None:
    layer, fresh = (make_layer(scratch=Scratch())[0] for _ in range(2))
    x = inputs((6, layer.in_features), torch.float32, "cpu")
    layer.dequantised.switch(dequantised)
    with torch.inference_mode():
        # Buffers are made here, and written again below.
        layer(x)
    for one in (layer, fresh):
        one.select(1)
        one(x).sum().backward()
        one.absorb()
    torch.testing.assert_close(layer(x), fresh(x))
