# SPDX-License-Identifier: Apache-2.0
"""What a head looks at of a text: the same as transformers' backbone and a few lines say, one text at a time; as a
sentence model's folder says; and in an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CPU, LABELS, save_tiny, step, tiny_config
from transformers import AutoModel

from coordinator.reports.export import export_model
from edge_client.worker.architecture.pooled import PooledClassifier, load_finished, resolved_pooling
from edge_client.worker.data.tasks import outputs
from edge_client.worker.model.describing import describe, said_of_head
from edge_client.worker.model.loading import build
from edge_client.worker.train.agreement import described, plain_model, sample_batch
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, ModelError
from fedcore.fields.types import POOLED
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.base import Base
from fedcore.model.state import ExactState
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema
from fedcore.weights.sentences import FILES, HEAD_FILE, read_sentence_model

FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def pooling(way: str) -> TaskSection:
    return msgspec.structs.replace(LABELS, pooling=way)


def sentence_folder(folder: Path, flag: str = "mean_tokens", more: tuple[str, ...] = (), **settings: Any) -> Path:
    """A tiny BERT as sentence-transformers writes it."""
    save_tiny(folder, LABELS, tiny_config("bert"))
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        **{f"{place}_{kind}": kind for place, kind in enumerate(more, 2)},
    }
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    said = {"word_embedding_dimension": 32, **{f"pooling_mode_{one}": one == flag for one in FLAGS}}
    for path in kinds:
        (folder / path).mkdir(exist_ok=True)
        if path:
            (folder / path / "config.json").write_text(json.dumps(settings or said))
    return folder


@pytest.mark.parametrize("way", POOLED)
@pytest.mark.parametrize("kind", ["bert", pytest.param("distilbert", marks=pytest.mark.slow), "llama"])
def test_logits_loss_and_gradients_are_those_of_a_backbone_and_a_vector(tmp_path: Path, kind: str, way: str) -> None:
    save_tiny(tmp_path, LABELS, tiny_config(kind))
    task = pooling(way)
    found = step(tmp_path, task)
    assert found.layers and found.gradients < 1e-3
    # Each way is another model than the others and than the class's own.
    checkpoint = Checkpoint(tmp_path)
    batch = sample_batch(tmp_path, task)
    said = {}
    for other in ("model", way):
        one = pooling(other)
        plain = plain_model(checkpoint, describe(checkpoint, one), one)
        said[other] = plain(input_ids=torch.tensor([batch[0].ids])).logits
    if (kind, way) != ("llama", "last"):
        assert not torch.allclose(said["model"], said[way], atol=1e-3)


def test_padding_has_no_part_in_it(tmp_path: Path) -> None:
    save_tiny(tmp_path, LABELS, tiny_config("bert"))
    for way in POOLED:
        task, checkpoint = pooling(way), Checkpoint(tmp_path)
        base = Base(checkpoint, describe(checkpoint, task), "float32", tmp_path / "base")
        model = build(base, task, 0, CPU, torch.float32)
        batch = sample_batch(tmp_path, task)
        assert len({len(one.ids) for one in batch}) > 1
        with torch.no_grad():
            together = outputs(model, batch, model.pad_id, CPU)
            alone = torch.cat([outputs(model, [one], model.pad_id, CPU) for one in batch])
        assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("flag", "way"), [("cls_token", "first"), ("mean_tokens", "mean"), ("max_tokens", "max"), ("lasttoken", "last")]
)
def test_a_sentence_model_is_pooled_as_it_was_trained(tmp_path: Path, flag: str, way: str) -> None:
    found = described(Checkpoint(sentence_folder(tmp_path, flag, ("Normalize",))), LABELS)
    assert found.task.pooling == way and found.task.labels == LABELS.labels
    assert any("as this sentence model was trained; their length is kept" in note for note in found.notes)
    assert found.model_schema.architecture == "BertModel" and found.model_schema.export_prefix == ""
    assert not any("pooler" in layer.name for layer in found.model_schema.layers), "it is looked at by nobody"
    # The newer way of writing the same.
    mode = {"first": "cls", "last": "lasttoken"}.get(way, way)
    assert read_sentence_model(sentence_folder(tmp_path, pooling_mode=mode, embedding_dimension=32)).pooling == way  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("flag", "more", "settings", "words"),
    [
        ("weightedmean_tokens", (), {}, "it pools by weightedmean"),
        ("mean_sqrt_len_tokens", (), {}, "it pools by mean_sqrt_len_tokens"),
        ("", (), {"pooling_mode": ["cls", "mean"]}, "it pools by cls and mean"),
        ("mean_tokens", ("Dense", "Normalize"), {}, "Transformer, Pooling, Dense, Normalize is not"),
        ("mean_tokens", ("Dense",), {"activation_function": "torch.nn.modules.activation.Tanh"}, "a Dense layer after"),
        ("mean_tokens", ("CNN",), {}, "Transformer, Pooling, CNN is not"),
    ],
)
def test_what_is_not_understood_is_named(
    tmp_path: Path, flag: str, more: tuple[str, ...], settings: dict[str, Any], words: str
) -> None:
    folder = sentence_folder(tmp_path, flag, more, **settings)
    with pytest.raises(ModelError, match=words) as found:
        described(Checkpoint(folder), LABELS)
    assert "\n" not in found.value.one_line() and "set task.pooling to" in found.value.one_line()
    # What the job says itself is not looked up.
    assert described(Checkpoint(folder), pooling("mean")).task.pooling == "mean"
    assert described(Checkpoint(folder), pooling("model")).model_schema.architecture == "BertForSequenceClassification"


def test_a_folder_that_is_not_whole_or_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "one")
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelError, match="there is no 1_Pooling/config.json"):
        read_sentence_model(folder)
    modules = json.loads((folder / "modules.json").read_text())
    for path in ("../one/1_Pooling", "/1_Pooling"):
        modules[1]["path"] = path
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ModelError, match="it names"):
            read_sentence_model(folder)
    for text in ("{", "3", "[1]"):
        (folder / "modules.json").write_text(text)
        with pytest.raises(ModelError):
            read_sentence_model(folder)


def test_other_folders_are_as_they_were(tmp_path: Path) -> None:
    """A model of another kind, a language model, and a classifier that somebody tuned beside a sentence model's
    files."""
    save_tiny(tmp_path / "bert", LABELS, tiny_config("bert"))
    assert resolved_pooling(tmp_path / "bert", LABELS)[0].pooling == "model"
    causal = TaskSection(kind="causal-lm")
    assert resolved_pooling(sentence_folder(tmp_path / "s"), causal) == (causal, "")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "s" / "config.json").write_text(json.dumps(config))
    assert resolved_pooling(tmp_path / "s", LABELS)[0].pooling == "model"
    with pytest.raises(ConfigError, match=r"task.pooling: causal-lm has no head"):
        TaskSection(kind="causal-lm", pooling="mean")
    with pytest.raises(ModelError, match=r"that the head looks through.*leave it out, or set task.pooling to"):
        describe(Checkpoint(tmp_path / "s"), pooling("mean"), ("pooler.dense.*",))


def test_the_last_token_of_a_decoder_is_what_its_own_class_looks_at(tmp_path: Path) -> None:
    """Then an export is a classifier of transformers' own."""
    save_tiny(tmp_path, LABELS, tiny_config("llama"))
    assert resolved_pooling(tmp_path, pooling("last"))[0].pooling == "model"
    assert resolved_pooling(tmp_path, pooling("mean"))[0].pooling == "mean"


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way == "mean" else pytest.mark.slow) for way in POOLED])
def test_an_export_says_the_same_with_plain_transformers(tmp_path: Path, way: str) -> None:
    checkpoint, task = Checkpoint(sentence_folder(tmp_path / "base", more=("Normalize",))), pooling(way)
    schema = described(checkpoint, task).model_schema
    base = Base(checkpoint, schema, "float32", tmp_path / "scratch")
    training = server_half(FedKRSOSettings()).training(1, 0)
    export_model(base, _learned(schema).publish(), schema, task, training, tmp_path / "out")
    model = build(base, task, 0, CPU, torch.float32)
    with torch.no_grad():
        for name, parameter in model.tensors.items():
            parameter.add_(torch.from_numpy(_learned(schema).publish().entries[name].values()).reshape(parameter.shape))
        batch = sample_batch(checkpoint.folder, task)
        ours = outputs(model, batch, model.pad_id, CPU)
        plain, head = AutoModel.from_pretrained(tmp_path / "out"), load_file(tmp_path / "out" / HEAD_FILE)
        finished = load_finished(tmp_path / "out", 3)
        assert isinstance(finished, PooledClassifier)
        for one, logits in zip(batch, ours, strict=True):
            (states,) = plain(torch.tensor([one.ids])).last_hidden_state
            vector = {"first": states[0], "last": states[-1], "mean": states.mean(0), "max": states.amax(0)}[way]
            wanted = head["linear.weight"] @ vector + head["linear.bias"]
            assert torch.allclose(logits, wanted, atol=1e-5)
            assert torch.allclose(finished(torch.tensor([one.ids])).logits[0], wanted, atol=1e-5)
    assert "classifier.weight" not in Checkpoint(tmp_path / "out").tensors, "transformers' class would pool otherwise"
    again = described(Checkpoint(tmp_path / "out"), LABELS)
    assert again.task.pooling == way and any("head of 3 is replaced" in note for note in again.notes)
    with pytest.raises(ModelError, match="a head of 3 where 4"):
        load_finished(tmp_path / "out", 4)
    # A classifier of transformers' own has nothing left of the sentence model.
    own = pooling("model")
    schema = described(checkpoint, own).model_schema
    export_model(
        Base(checkpoint, schema, "float32", tmp_path / "b2"),
        _learned(schema).publish(),
        schema,
        own,
        training,
        tmp_path / "own",
    )
    assert not any((tmp_path / "own" / name).exists() for name in FILES)
    assert said_of_head(Checkpoint(tmp_path / "own"), own, described(Checkpoint(tmp_path / "own"), own).model_schema)


def _learned(schema: ModelSchema) -> ExactState:
    """A state with something in the head."""
    training = server_half(FedKRSOSettings()).training(1, 0)
    state = ExactState.zero(training, schema)
    for number, spec in enumerate(schema.tensors):
        state.sums[spec.name][:] = (number + 1) << 30
    return state
