# SPDX-License-Identifier: Apache-2.0
"""What answering takes by context length, foreseen from shapes, against real answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import LlamaConfig

from edge_client.process.measuring import AnswerRequest, measured_answer, subspace_round
from edge_client.worker.compiled.engine import CHUNK_TOKENS
from edge_client.worker.generate.cache import cache_bytes
from edge_client.worker.generate.generator import Generator
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import describe
from edge_client.worker.trace.contexts import answer_footprint, footprint_of, working_bytes
from edge_client.worker.trace.outline import Outline, write_random_checkpoint
from edge_client.worker.trace.shapes import Shapes
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from tests.causal_models import SHAPES, byte_tokenizer, random_model

CAUSAL = TaskSection(kind="causal-lm")
CONTEXT = 1024


@pytest.fixture
def long_memory(tmp_path: Path) -> Path:
    """A small model with a large cache: 2 x 8 layers x 16 heads x 64 features x 4 bytes a token, 67 MB when it is full."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=64,
        max_position_embeddings=CONTEXT,
    )
    folder = tmp_path / "long"
    config.save_pretrained(folder)
    write_random_checkpoint(Outline(folder, CAUSAL), folder / "model.safetensors", 0)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_answer_takes_what_its_config_alone_foresaw(long_memory: Path, tmp_path: Path) -> None:
    found = measured_answer(AnswerRequest(model_folder=str(long_memory), context_tokens=CONTEXT), tmp_path / "scratch")
    assert found.predicted.cache_bytes == 2 * 8 * 16 * 64 * 4 * CONTEXT
    assert abs(found.error) < 0.05, msgspec.to_builtins(found)
    assert abs(found.planned.total_bytes / found.peak_bytes - 1) < 0.05, msgspec.to_builtins(found)
    # What comes beyond the loaded model is foreseen too, not only what is there anyway.
    came = found.planned.cache_bytes + found.planned.working_bytes
    assert came <= found.peak_bytes - found.held_bytes + 4_000_000 and came > 70_000_000


def test_what_was_learned_is_there_while_it_is_answered(long_memory: Path) -> None:
    schema = describe(Outline(long_memory, CAUSAL), CAUSAL)
    training = subspace_round(pool=3, rank=4, batch_size=8, steps=1, intervals=3)
    base, tuned = (
        answer_footprint(long_memory, schema, CAUSAL, (64,), training=given).components(64)
        for given in (None, training)
    )
    rows, columns = (sum(getattr(layer, name) for layer in schema.layers) for name in ("rows", "columns"))
    # Signs once; the state as int16 twice, in the layers and as published.
    assert (base.subspaces_bytes, tuned.subspaces_bytes) == (0, 3 * 4 * (columns + 2 * 2 * rows))
    assert (base.weights_bytes, base.cache_bytes) == (tuned.weights_bytes, tuned.cache_bytes)


@pytest.mark.parametrize("shape", SHAPES)
def test_looking_at_a_model_does_not_touch_it(shape: str) -> None:
    generator = Generator(model := BuiltModel(random_model(shape)), byte_tokenizer(), 60)
    greedy = GenerationOptions(max_new_tokens=8)
    before = [token.id for token in generator.stream([3, 5, 7], greedy)]
    footprint = footprint_of(model, 10**8, 10**9, 60)
    assert footprint.components(60).total_bytes > 10**8 + cache_bytes(model.module.config, 60)
    generator.refresh()
    assert [token.id for token in generator.stream([3, 5, 7], greedy)] == before


def test_a_model_that_looks_at_numbers_has_room_left_for_its_pass() -> None:
    model = random_model("llama")
    model.register_forward_pre_hook(lambda _, __, given: int(given["input_ids"].max()) and None, with_kwargs=True)
    footprint = footprint_of(BuiltModel(model), 10**8, 10**9, 60)
    assert footprint.components(60).working_bytes == 48 * 2**20


def test_a_context_shorter_than_the_traced_ones_takes_no_more_than_is_said(tmp_path: Path) -> None:
    config = SHAPES["llama"]()
    config.max_position_embeddings = most = 6 * CHUNK_TOKENS
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BuiltModel(type(random_model("llama"))(config).eval())
    foreseen = answer_footprint(tmp_path, describe(Outline(tmp_path, CAUSAL), CAUSAL), CAUSAL, (most,))
    served = footprint_of(model, 10**7, 2 * 10**8, most)
    for tokens in (CHUNK_TOKENS, 2 * CHUNK_TOKENS + 17, 4 * CHUNK_TOKENS, most):
        taken = working_bytes(model, Shapes(), tokens)
        assert taken <= served.components(tokens).working_bytes
        # Built as for training, and as transformers has it: a block of a layer is the one difference.
        assert abs(taken - foreseen.components(tokens).working_bytes) < 300_000
    for footprint in (foreseen, served):
        sizes = [footprint.components(tokens).total_bytes for tokens in range(1, most, 97)]
        assert sizes == sorted(sizes)
        room = footprint.components(1000).total_bytes
        assert footprint.fitting(room, most) == 1000 and footprint.fitting(10**6, most) == 0
