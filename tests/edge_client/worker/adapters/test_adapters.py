# SPDX-License-Identifier: Apache-2.0
"""Every type of adapter computes what the package peft computes with the same numbers, on a language model and on a
classifier: the adapter is exported, and plain peft loads it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import peft
import pytest
import torch
from method_runs import CPU, WHOLE, Run
from safetensors.torch import load_file
from tiny_models import LABELS, save_tiny, tiny_config
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from coordinator.reports.adapter import write_adapter
from coordinator.reports.lastmodel import LastModel
from edge_client.worker.adapters.attaching import attach, with_adapter
from edge_client.worker.adapters.layers import own_tensors, wrapped
from edge_client.worker.data.batches import Encoded, outputs, pad
from edge_client.worker.methods import client_half
from edge_client.worker.model.describing import describe
from edge_client.worker.model.loading import build
from edge_client.worker.model.varlen import leave_padding_out
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import apply
from fedcore.config.adapters import (
    IA3,
    AnyAdapter,
    DoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
    VirtualTokens,
)
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ConfigError, ModelError
from fedcore.fields.types import Pooled
from fedcore.methods import server_half
from fedcore.methods.adapters.peft import PeftSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import initial_adapter, row_lengths
from fedcore.weights.schema import AdapterTensor, ModelSchema
from fedcore.weights.sentences import HEAD_FILE

CAUSAL = TaskSection(kind="causal-lm", max_length=24)
TYPES: list[AnyAdapter] = [
    IA3(feedforward_modules=("down_proj", "output.dense")),
    IA3(target_modules=("v_proj", "value")),
    VeRA(r=6),
    DoRA(r=3),
    PromptTuning(num_virtual_tokens=3),
    PrefixTuning(num_virtual_tokens=3),
    PTuning(num_virtual_tokens=3, encoder_hidden_size=12),
]


def name_of(adapter: AnyAdapter) -> str:
    return f"{adapter.name}-{len(getattr(adapter, 'target_modules', ()))}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Llama and a tiny BERT, in float32."""
    made = {"llama": tmp_path_factory.mktemp("llama"), "bert": tmp_path_factory.mktemp("bert")}
    save_tiny(made["llama"], CAUSAL, tiny_config("llama"))
    save_tiny(made["bert"], LABELS, tiny_config("bert"))
    return made


def examples(task: TaskSection) -> list[Encoded]:
    """Of different lengths, so that there is padding."""
    target = None if task is CAUSAL else 1
    types = None if task is CAUSAL else 0
    return [
        Encoded(
            tuple((7 * i + 3 * j) % 80 + 5 for j in range(9 + 2 * i)),
            None if types is None else (0,) * (9 + 2 * i),
            target,
        )
        for i in range(4)
    ]


def trained(folder: Path, task: TaskSection, adapter: AnyAdapter, own: Path) -> tuple[Run, Replica]:
    """A run of one node and one round, on a float base that has what the checkpoint has; and the replica after it."""
    settings = PeftSettings(steps=4, interval_steps=2, batch_size=4, learning_rate=3e-2, bits=16, peft=adapter)
    return trained_by(settings, folder, task, own)


def trained_by(settings: MethodSettings, folder: Path, task: TaskSection, own: Path) -> tuple[Run, Replica]:
    run = Run(settings, folder, own, "float32", of_task=task)
    replica = run.replica("a")
    plan, path = run.plan(1), run.own / "a.bin"
    header, _ = run.trainer("a", replica, examples(task))[0].train(plan, (WHOLE,), path)
    run.close(1, [run.weighted(path, header)])
    run.adopt(replica, 1, whole=True)
    return run, replica


def exported(run: Run, folder: Path) -> str:
    last = LastModel(
        cast("Any", None), 1, run.schema, run.task, run.base, run.published[1], run.plan(1).training, run.artefact
    )
    return write_adapter(last, folder)


def hidden_states(replica: Replica, task: TaskSection) -> Tensor:
    inputs = pad(examples(task), 0, CPU)
    with torch.no_grad():
        said: Tensor = replica.model.backbone(**inputs).last_hidden_state
    return said


@pytest.mark.parametrize("adapter", TYPES, ids=name_of)
def test_a_language_model_computes_what_peft_computes(
    adapter: AnyAdapter, folders: dict[str, Path], tmp_path: Path
) -> None:
    run, replica = trained(folders["llama"], CAUSAL, adapter, tmp_path / "run")
    said = exported(run, tmp_path / "adapter")
    assert said == f"{adapter.name} adapter"
    plain = AutoModelForCausalLM.from_pretrained(folders["llama"])
    inputs = pad(examples(CAUSAL), 0, CPU)
    with torch.no_grad():
        before = plain(**inputs).logits
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, -inputs["input_ids"].shape[1] :]
        found = replica.model.module.get_output_embeddings()(hidden_states(replica, CAUSAL))
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=2e-5)
    assert float((found - before)[real].abs().max()) > 1e-2, "something was learned"


@pytest.mark.parametrize("adapter", [TYPES[0], *TYPES[3:]], ids=name_of)
def test_a_classifier_computes_what_peft_computes(
    adapter: AnyAdapter, folders: dict[str, Path], tmp_path: Path
) -> None:
    run, replica = trained(folders["bert"], LABELS, adapter, tmp_path / "run")
    plain = AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=3)
    inputs = pad(examples(LABELS), 0, CPU)
    with torch.no_grad():
        found = outputs(replica.model, examples(LABELS), 0, CPU)
    if isinstance(adapter, VirtualTokens):
        with pytest.raises(ConfigError, match="no place for tensors trained whole"):
            exported(run, tmp_path / "adapter")
        theirs = with_tokens(plain, replica, adapter)
    else:
        exported(run, tmp_path / "adapter")
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(**inputs).logits
    assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("kind", "way"), [("bert", "mean"), ("llama", "last"), ("llama whole", "mean")])
@pytest.mark.parametrize("adapter", [None, DoRA(r=3)], ids=["fedkrso", "dora"])
def test_a_head_on_pooled_states_lies_beside_an_adapter_of_the_backbone(
    kind: str, way: Pooled, adapter: AnyAdapter | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, task = folders[kind.split()[0]], msgspec.structs.replace(LABELS, pooling=way)
    if kind == "llama whole":
        # Saved without what a class for a task puts before its names.
        folder = tmp_path / "backbone"
        AutoModel.from_pretrained(folders["llama"]).save_pretrained(folder)
    common: dict[str, Any] = {"steps": 4, "interval_steps": 2, "batch_size": 4, "learning_rate": 3e-2, "bits": 16}
    settings = (
        FedKRSOSettings(rank=2, num_seeds=2, **common) if adapter is None else PeftSettings(peft=adapter, **common)
    )
    run, replica = trained_by(settings, folder, task, tmp_path / "run")
    exported(run, tmp_path / "adapter")
    plain = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        before = [plain(torch.tensor([one.ids])).last_hidden_state[0] for one in examples(LABELS)]
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        assert isinstance(theirs, peft.PeftModelForFeatureExtraction)
        head = load_file(tmp_path / "adapter" / HEAD_FILE)
        found = outputs(replica.model, examples(LABELS), 0, CPU)
        for one, untouched, logits in zip(examples(LABELS), before, found, strict=True):
            states = theirs(input_ids=torch.tensor([one.ids])).last_hidden_state[0]
            assert (states - untouched).abs().max() > 1e-3, "something was learned"
            vector = states[-1] if way == "last" else states.mean(0)
            assert torch.allclose(logits, head["linear.weight"] @ vector + head["linear.bias"], atol=2e-5)


def with_tokens(plain: Any, replica: Replica, adapter: VirtualTokens) -> Any:
    """PEFT's own model with virtual tokens, given our numbers and our head."""
    kinds = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "p-tuning": peft.PromptEncoderConfig}
    config = kinds[adapter.name](task_type="SEQ_CLS", **adapter.settings)
    theirs = peft.get_peft_model(plain, config).eval()
    own: Any = replica.model.module
    tokens: Any = replica.model.backbone.virtual_tokens
    theirs.prompt_encoder["default"].load_state_dict(tokens.state_dict())
    head = theirs.base_model.classifier
    head = getattr(head, "modules_to_save", {"default": head})["default"]
    head.load_state_dict(own.classifier.state_dict())
    return theirs


def built(folder: Path, task: TaskSection, adapter: AnyAdapter, own: Path) -> tuple[ModelSchema, Any]:
    """A schema with the adapter, and a model on a float base with the adapter in it."""
    checkpoint = Checkpoint(folder)
    schema = with_adapter(describe(checkpoint, task), folder, task, adapter)
    model = build(Base(checkpoint, schema, "float32", own), task, 0, CPU, torch.float32)
    return schema, model


@pytest.mark.parametrize("adapter", [IA3(), VeRA(r=6), DoRA(r=3)], ids=name_of)
def test_an_adapter_of_layers_changes_nothing_at_first(
    adapter: AnyAdapter, folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = PeftSettings(steps=2, interval_steps=2, peft=adapter)
    replica = Run(settings, folders["llama"], tmp_path, "float32").replica("a")
    plain = AutoModelForCausalLM.from_pretrained(folders["llama"])
    inputs = pad(examples(CAUSAL), 0, CPU)
    with torch.no_grad():
        expected = plain.model(**inputs).last_hidden_state
    assert torch.allclose(hidden_states(replica, CAUSAL), expected, atol=1e-5)


@pytest.mark.parametrize(
    "adapter", [PromptTuning(num_virtual_tokens=3), PrefixTuning(num_virtual_tokens=3)], ids=name_of
)
def test_virtual_tokens_bear_what_memory_plans_do(
    adapter: AnyAdapter, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Blocks that are recomputed, and padding that is left out; end to end there is no place for them."""
    run = Run(PeftSettings(steps=2, interval_steps=2, peft=adapter), folders["llama"], tmp_path, "float32")
    replica = run.replica("a")
    plain = hidden_states(replica, CAUSAL)
    assert not leave_padding_out(replica.model, CPU)
    gradients = []
    for memory in (WHOLE, MemoryPlan(micro_batch_size=4, checkpointing=True)):
        apply(replica.model, memory)
        replica.model.padding.room_tokens = 1000 if memory.checkpointing else 0
        inputs = pad(examples(CAUSAL), 0, CPU)
        replica.model.padding.see(inputs["attention_mask"])
        said = replica.model.backbone(**inputs).last_hidden_state
        real = inputs["attention_mask"].bool()
        assert torch.allclose(said[real], plain[real], atol=1e-5)
        (vectors,) = replica.model.backbone.virtual_tokens.parameters()
        gradients.append(torch.autograd.grad(said[real].square().sum(), vectors)[0])
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="no place in an answer's cache"):
        replica.model.backbone(torch.tensor([[5, 6]]), past_key_values=object())
    with pytest.raises(ValueError, match="side by side"):
        replica.model.backbone(torch.tensor([[5, 6]]), position_ids=torch.tensor([[0, 1]]))


def test_first_values_are_the_seeds_and_no_generators(folders: dict[str, Path], tmp_path: Path) -> None:
    before, adapter = torch.get_rng_state(), VeRA(r=6)
    schema, model = built(folders["bert"], LABELS, adapter, tmp_path)
    attach(model, adapter)
    assert torch.equal(before, torch.get_rng_state()), "nobody else's draws are other ones"
    drawn = {spec.name: spec for spec in schema.adapter}
    assert not drawn["/vera_A"].trained and drawn["/vera_A"].spread > 0
    assert {spec.start for name, spec in drawn.items() if name.endswith("vera_lambda_b")} == {0.0}
    assert np.float32(0.1) in {np.float32(spec.start) for name, spec in drawn.items() if name.endswith("vera_lambda_d")}
    # Pinned: 16-bit integers of SHAKE-128, times one float32.
    pinned = initial_adapter(AdapterTensor("/vera_A", (2, 3), spread=0.5), 7)
    assert (pinned * 65536).tolist() == [[3264.0, 32439.0, 4290.0], [-19620.0, 1979.0, -7473.0]]
    assert abs(float(initial_adapter(drawn["/vera_A"], 1).std()) / float(own_std(adapter, "vera_A")) - 1) < 0.2


def own_std(adapter: VeRA, name: str) -> Tensor:
    """How far PEFT's own draws lie apart."""
    (layer,) = wrapped({"layer": (64, 64)}, adapter).values()
    return own_tensors(layer)[name].std()


def test_lengths_of_rows_are_the_same_wherever_they_are_added_up() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 700)).astype(np.float32)
    exact = [float(np.float32(sum(float(x) ** 2 for x in row) ** 0.5)) for row in rows]
    assert row_lengths(rows).tolist() == exact
    assert row_lengths(np.asfortranarray(rows)).tolist() == exact


@pytest.mark.parametrize(
    ("adapter", "kind", "said"),
    [
        (IA3(target_modules=("qurey",)), "bert", "no layer's name ends with qurey"),
        (PrefixTuning(), "mamba", "no place for virtual tokens"),
    ],
)
def test_what_has_no_place_is_refused_by_name(
    adapter: AnyAdapter, kind: str, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders.get(kind, tmp_path)
    if kind == "mamba":
        tiny_config("mamba").save_pretrained(folder)
    with pytest.raises((ConfigError, ModelError), match=said):
        with_adapter(ModelSchema((), ()), folder, CAUSAL, adapter)


def test_another_adapter_than_the_runs_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    _, model = built(folders["bert"], LABELS, VeRA(r=6), tmp_path)
    training = server_half(PeftSettings(peft=VeRA(r=4))).training(1, 0)
    with pytest.raises(ModelError, match=r"/vera_A of vera is \(4, 64\) here, \(6, 64\) in the run"):
        client_half(model, training)


def test_a_node_without_the_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="trains an adapter of PEFT") as raised:
        wrapped({"layer": (4, 4)}, IA3())
    assert raised.value.remedy == "pip install 'fedkrso[peft]'"
