# SPDX-License-Identifier: Apache-2.0
"""Folders as people have them: old names, tied or not, tuned before, quantised, with code of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import subspaces
from safetensors.torch import load_file, save_file
from tiny_models import CAUSAL, LABELS, save_tiny, step, tiny_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from coordinator.reports.export import export_model
from edge_client.worker.model.describing import describe, said_of_head
from edge_client.worker.model.head import OutputHead, Shaping
from edge_client.worker.model.loading import build
from edge_client.worker.model.loss import chunked_cross_entropy
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.model.base import Base
from fedcore.model.state import ExactState, PublishedState
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")


def rewrite(folder: Path, *, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Change a folder's configuration, and its tensors by functions of their table."""
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **(config or {})}))
    if changes:
        tensors = changes["tensors"](load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def some_state(base: Base) -> PublishedState:
    training = subspaces((5, 6), 4)
    total, chance = RunningSum(training.shapes(base.schema)), np.random.default_rng(0)
    total.add_examples(1)
    for name, shape in training.shapes(base.schema).items():
        total.add(name, quantise_rows((chance.normal(size=shape) * 0.01).astype(np.float32), 8), 1)
    return ExactState.zero(training, base.schema).after(total).publish()


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "granitemoe", "gpt_oss"])
def test_transposed_layers_and_experts_are_exported_as_they_lay(model_type: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny(source, CAUSAL, tiny_config(model_type))
    schema = describe(Checkpoint(source), CAUSAL)
    base = Base(Checkpoint(source), schema, "float32", tmp_path / "base")
    state = some_state(base)
    export_model(base, state, schema, CAUSAL, subspaces((5, 6), 4), tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: one.shape for name, one in before.items()} == {name: one.shape for name, one in after.items()}
    base.merge(state, 1)
    model = build(base, CAUSAL, 0, CPU, torch.float32)
    ids = torch.tensor([[5, 9, 20, 33, 7]])
    with torch.no_grad():
        assert model.output_weight is not None
        ours = model.output_weight.logits(model.backbone(input_ids=ids).last_hidden_state)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        unchanged = AutoModelForCausalLM.from_pretrained(source)(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(theirs, unchanged, atol=1e-2)


def test_layer_norms_under_their_old_names_load_as_in_transformers(tmp_path: Path) -> None:
    save_tiny(tmp_path, LABELS, tiny_config("bert"))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            next((name.replace(new, was) for new, was in old.items() if name.endswith(new)), name): one
            for name, one in tensors.items()
        }

    assert step(rewrite(tmp_path, tensors=renamed), LABELS).gradients < 1e-3


def test_two_embeddings_that_are_tied_in_words_only_stay_two(tmp_path: Path) -> None:
    save_tiny(tmp_path, CAUSAL, tiny_config("llama", tie_word_embeddings=False))
    assert step(rewrite(tmp_path, config={"tie_word_embeddings": True}), CAUSAL).gradients < 1e-3


def test_an_untied_model_without_an_output_embedding_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, CAUSAL, tiny_config("llama", tie_word_embeddings=True))
    rewrite(tmp_path, config={"tie_word_embeddings": False})
    with pytest.raises(ModelError, match="no weights for 'lm_head.weight'"):
        describe(Checkpoint(tmp_path), CAUSAL)


def test_a_list_of_ends_and_no_padding_gives_a_token_that_no_text_has(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny(source, LABELS, tiny_config("llama", pad_token_id=None, eos_token_id=[3, 4]))
    words = {f"w{i}": i for i in range(96)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w3", unk_token="w0").save_pretrained(source)  # noqa: S106
    schema = describe(Checkpoint(source), LABELS)
    assert schema.pad_token_id == 3
    base = Base(Checkpoint(source), schema, "float32", tmp_path / "base")
    assert build(base, LABELS, 0, CPU, torch.float32).pad_id == 3
    export_model(base, some_state(base), schema, LABELS, subspaces((5, 6), 4), tmp_path / "out")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.pad_token_id == 3


def test_a_head_that_was_tuned_before_is_trained_on_replaced_or_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    save_tiny(source, LABELS, tiny_config("bert"))
    schema = describe(Checkpoint(source), LABELS)
    base = Base(Checkpoint(source), schema, "float32", tmp_path / "base")
    export_model(base, some_state(base), schema, LABELS, subspaces((5, 6), 4), out)
    again = describe(Checkpoint(out), LABELS)
    assert {spec.name for spec in again.tensors if spec.in_checkpoint} == {"classifier.weight", "classifier.bias"}
    assert "trained on" in said_of_head(Checkpoint(out), LABELS, again)
    assert step(out, LABELS).gradients < 1e-3
    other = TaskSection(kind="text-classification", labels=("b", "a", "c"), max_length=32)
    with pytest.raises(ModelError, match="same labels in another order"):
        describe(Checkpoint(out), other)
    five = TaskSection(kind="text-classification", labels=tuple("vwxyz"), max_length=32)
    new = describe(Checkpoint(out), five)
    assert [(spec.shape[0], spec.in_checkpoint) for spec in new.tensors] == [(5, False), (5, False)]
    assert "replaced" in said_of_head(Checkpoint(out), five, new)
    replaced = Base(Checkpoint(out), new, "float32", tmp_path / "base2")
    export_model(replaced, some_state(replaced), new, five, subspaces((5, 6), 4), tmp_path / "out2")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out2").config.num_labels == 5


def test_a_norm_in_a_new_head_starts_at_one(tmp_path: Path) -> None:
    save_tiny(tmp_path, LABELS, tiny_config("modernbert"))
    starts = {spec.name: spec.start for spec in describe(Checkpoint(tmp_path), LABELS).tensors}
    assert starts["head.norm.weight"] == 1.0 and starts["classifier.bias"] == 0.0


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "already quantised by gptq"),
        ({"quant_method": "awq"}, "already quantised by awq"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}, "in 4 bit .nf4"),
    ],
)
def test_what_is_quantised_already_is_named(about: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, CAUSAL, tiny_config("llama"))
    with pytest.raises(ModelError, match=words):
        describe(Checkpoint(rewrite(tmp_path, config={"quantization_config": about})), CAUSAL)


def test_a_folder_s_code_is_never_run(tmp_path: Path) -> None:
    save_tiny(tmp_path, CAUSAL, tiny_config("llama"))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    rewrite(tmp_path, config={"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})
    with pytest.raises(ModelError, match="never run"):
        describe(Checkpoint(tmp_path), CAUSAL)
    assert not (tmp_path / "ran").exists()


def test_an_output_embedding_in_8_bits_is_made_float(tmp_path: Path) -> None:
    save_tiny(tmp_path, CAUSAL, tiny_config("llama", tie_word_embeddings=False))
    head = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    scale = head.abs().amax(dim=1)

    def quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        q = (head / scale[:, None] * 127).round().to(torch.int8)
        return {**tensors, "lm_head.weight": q, "lm_head.SCB": scale}

    about = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    checkpoint = Checkpoint(rewrite(tmp_path, config={"quantization_config": about}, tensors=quantised))
    base = Base(checkpoint, describe(checkpoint, CAUSAL), "float32", tmp_path / "base")
    model = build(base, CAUSAL, 0, CPU, torch.float32)
    assert model.output_weight is not None
    assert (model.output_weight.weight - head).abs().max() <= scale.max() / 127


@pytest.mark.parametrize("shaping", [Shaping(), Shaping(0.0625), Shaping(cap=5.0), Shaping(0.5, 3.0)])
def test_a_head_s_loss_and_gradient_are_those_of_its_logits(shaping: Shaping) -> None:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=chance).requires_grad_()
    head = OutputHead(torch.randn(50, 16, generator=chance), torch.randn(50, generator=chance), shaping)
    labels = torch.randint(50, (9,), generator=chance)
    plain = torch.nn.functional.cross_entropy(head.logits(hidden), labels)
    ours = chunked_cross_entropy(hidden, head, labels, chunk_tokens=4, block_rows=7)
    assert torch.allclose(ours, plain)
    expected, found = (torch.autograd.grad(loss, hidden)[0] for loss in (plain, ours))
    assert torch.allclose(found, expected, atol=1e-6)
