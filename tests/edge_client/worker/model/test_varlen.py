# SPDX-License-Identifier: Apache-2.0
"""Examples end to end in one row: the same loss and gradients as side by side with padding, or padding stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BloomConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from edge_client.process.measuring import subspace_round
from edge_client.worker.data.tasks import Encoded, summed_loss
from edge_client.worker.methods.fedkrso.half import FedKRSO
from edge_client.worker.methods.perexample import ExampleGradients
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import build, describe
from edge_client.worker.model.varlen import ATTENTION, leave_padding_out
from edge_client.worker.trace.outline import Outline, write_random_checkpoint
from edge_client.worker.train.trainer import set_checkpointing
from fedcore.config.sections import TaskSection
from fedcore.fields.types import Pooling
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
TASK = TaskSection(kind="causal-lm", max_length=32)
BATCH = [
    Encoded(tuple((7 * number + 5 * place) % 90 + 3 for place in range(tokens)), None, None, learned=((2, tokens),))
    for number, tokens in enumerate((11, 4, 7))
]
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


def built(folder: Path, scratch: Path, task: TaskSection = TASK) -> BuiltModel:
    checkpoint = Checkpoint(folder)
    schema = describe(checkpoint, task)
    model = build(Base(checkpoint, schema, "int8", scratch), task, 0, CPU, torch.float32)
    training = subspace_round(pool=2, rank=4, batch_size=4, steps=1)
    FedKRSO(model, training).install(PublishedState.zero(training, schema))
    for layer in model.layers.values():
        layer.select(1)
    return model


def random_model(config: PreTrainedConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    write_random_checkpoint(Outline(folder, TASK), folder / "model.safetensors", 0)
    return folder


def random_encoder(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def learned(
    model: BuiltModel, batch: list[Encoded] = BATCH, task: TaskSection = TASK, pad_id: int = 0
) -> tuple[float, torch.Tensor]:
    """Loss, and the gradients of all factors."""
    model.module.zero_grad(set_to_none=True)
    loss = summed_loss(model, batch, task, pad_id, CPU)
    loss.backward()  # type: ignore[no-untyped-call]
    factors = [layer.factor for layer in model.layers.values()]
    return float(loss.detach()), torch.cat([f.grad.flatten() for f in factors if f is not None and f.grad is not None])


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "grouped queries": lambda: LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, architectures=["LlamaForCausalLM"]),
    "a window": lambda: MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=4, sliding_window=12, architectures=["MistralForCausalLM"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["grouped queries", "a window"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_with_padding(kind: str, checkpointing: bool, tmp_path: Path) -> None:
    model = built(random_model(KINDS[kind](), tmp_path / "m"), tmp_path / "base")
    set_checkpointing(model.module, checkpointing)
    loss, gradients = learned(model)
    assert leave_padding_out(model, CPU) and model.module.config._attn_implementation == ATTENTION
    rows = []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found_loss, found = learned(model)
    hook.remove()
    assert rows == [(1, 22)], "no token but real ones"
    assert found_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5 * float(gradients.abs().max()))


def test_what_is_longer_than_a_window_keeps_its_mask(tmp_path: Path) -> None:
    config = KINDS["a window"]()
    config.sliding_window = 8
    model = built(random_model(config, tmp_path / "m"), tmp_path / "base")
    loss, gradients = learned(model)
    assert leave_padding_out(model, CPU)
    assert learned(model)[0] == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(learned(model)[1], gradients, rtol=1e-4, atol=1e-6)


def test_a_model_that_takes_no_positions_goes_on_with_padding(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=96, hidden_size=32, n_head=4, n_layer=2, architectures=["BloomForCausalLM"])
    model = built(random_model(config, tmp_path / "m"), tmp_path / "base")
    loss, _ = learned(model)
    assert not leave_padding_out(model, CPU)
    assert learned(model)[0] == loss and model.module.config._attn_implementation != ATTENTION


def test_a_model_that_says_something_else_goes_on_with_padding(tmp_path: Path) -> None:
    model = built(random_model(KINDS["grouped queries"](), tmp_path / "m"), tmp_path / "base")
    # It looks at the token before, in whatever example that is.
    model.backbone.embed_tokens.register_forward_hook(lambda _, __, states: states + states.roll(1, dims=1))  # type: ignore[operator, union-attr]
    assert not leave_padding_out(model, CPU)
    assert not model.padding.end_to_end and model.module.config._attn_implementation == "sdpa"


def classifier(way: Pooling) -> TaskSection:
    return TaskSection(kind="text-classification", labels=("left", "right", "neither"), pooling=way, max_length=32)


# The middle text is a pair: its second half has another type.
TEXTS = [
    Encoded(one.ids, tuple(int(number == 1 and place > 1) for place in range(len(one.ids))), number)
    for number, one in enumerate(BATCH)
]
ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**SMALL, intermediate_size=48, architectures=["BertModel"]),
    "roberta": lambda: RobertaConfig(**SMALL, intermediate_size=48, pad_token_id=1, type_vocab_size=2, architectures=["RobertaModel"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "way", "checkpointing"),
    [("bert", "mean", False), ("bert", "mean", True), ("bert", "first", False), ("bert", "last", False), ("bert", "max", False), ("roberta", "mean", False)],
)  # fmt: skip
def test_a_classifier_that_pools_says_the_same_of_texts_end_to_end(
    kind: str, way: Pooling, checkpointing: bool, tmp_path: Path
) -> None:
    task = classifier(way)
    model = built(random_encoder(ENCODERS[kind](), tmp_path / "m"), tmp_path / "base", task)
    set_checkpointing(model.module, checkpointing)
    loss, gradients = learned(model, TEXTS, task, model.pad_id)
    assert leave_padding_out(model, CPU)
    rows = []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found_loss, found = learned(model, TEXTS, task, model.pad_id)
    hook.remove()
    assert rows == [(1, 22)], "no token but real ones"
    assert found_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5 * float(gradients.abs().max()))


def test_gradients_by_example_are_those_of_each_text_alone(tmp_path: Path) -> None:
    task = classifier("mean")
    model = built(random_encoder(ENCODERS["bert"](), tmp_path / "m"), tmp_path / "base", task)
    assert leave_padding_out(model, CPU)
    alone = [learned(model, [one], task)[1] for one in TEXTS]
    taking = ExampleGradients(model)
    learned_loss = summed_loss(model, TEXTS, task, 0, CPU)
    learned_loss.backward()  # type: ignore[no-untyped-call]
    found = taking.found()
    taking.end()
    for number, wanted in enumerate(alone):
        got = torch.cat([found[name][number].flatten() for name in model.layers])
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_text_beyond_a_local_window_keeps_its_mask(tmp_path: Path) -> None:
    """Of a window of sixteen tokens eight lie on each side."""
    task = classifier("mean")
    config = ModernBertConfig(
        **SMALL,
        intermediate_size=48,
        local_attention=16,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["ModernBertModel"],
    )
    model = built(random_encoder(config, tmp_path / "m"), tmp_path / "base", task)
    texts = [Encoded(one.ids, None, one.target) for one in TEXTS]
    loss, gradients = learned(model, texts, task)
    assert leave_padding_out(model, CPU) and model.padding.most_tokens == 8
    assert learned(model, texts, task)[0] == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(learned(model, texts, task)[1], gradients, rtol=1e-4, atol=1e-6)


def test_transformers_own_classifier_goes_on_with_padding(tmp_path: Path) -> None:
    """It looks at the first token of a row."""
    task = classifier("model")
    config = BertConfig(**SMALL, intermediate_size=48, architectures=["BertForSequenceClassification"])
    model = built(random_encoder(config, tmp_path / "m"), tmp_path / "base", task)
    assert not leave_padding_out(model, CPU)
