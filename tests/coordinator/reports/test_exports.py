# SPDX-License-Identifier: Apache-2.0
"""A causal run's model in other people's formats: the folder, the adapter in PEFT, the GGUF file in llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from leader import Leader
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf", reason="the package gguf is not installed")

from coordinator.reports.result import Result
from coordinator.reports.summary import summary_of
from coordinator.store.folder import RunFolder, stored_job, write_job
from coordinator.store.ledger import SqliteLedger
from coordinator.store.rows import PrivacySpent
from coordinator.store.view import RunView
from edge_client.worker.exchange.exporting import export_gguf
from edge_client.worker.model.describing import describe
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, ModelError
from fedcore.model.learned import layer_update
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.imported import model_folder
from tests.edge_client.worker.exchange.gguf_models import TEMPLATE, rewritten, write_model

TASK = TaskSection(kind="causal-lm", max_length=32)
IDS = torch.arange(40)[None]
PROMPTS = ("turn off the lamp", "a timer of  25 minutes", "what is on<|end|>my list", "it is 19°")
SPENT = PrivacySpent(level="node", epsilon=3.21, delta=1e-3, clip=0.5, noise_multiplier=2.0, releases=1)


@dataclass
class Led:
    """A run of one round.

    Attributes:
        result: What it came to.
        model: The folder that its base is made of.
    """

    result: Result
    model: Path

    def expected(self) -> Any:
        """The checkpoint with what was learned added in float32."""
        from coordinator.reports.lastmodel import last_model

        last = last_model(self.result.folder)
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for layer in last.schema.layers:
                weights[f"{layer.name}.weight"] += torch.from_numpy(layer_update(last.training, last.state, layer))
        return model


def lead(runs: Path, model: Path, named: Path | None = None) -> Led:
    """One round, whose only update is random and large enough to show; `named` is what the job names, if not a
    folder."""
    schema = describe(Checkpoint(model), TASK)
    leader = Leader(runs / "t", model, schema, TASK, every=0, size=0.05)
    leader.advance(leader.start())
    leader.kill()
    job, files = leader.job, RunFolder(runs / "t")
    if named is not None:
        job = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, folder=str(named)))
    write_job(files, job)
    ledger = SqliteLedger(files.ledger)
    ledger.put_fact("task", TASK)
    ledger.put_fact("schema", schema)
    ledger.put_round(msgspec.structs.replace(ledger.rounds()[0], privacy=SPENT))
    rows = ledger.rounds()
    ledger.close()
    view = RunView("t", job.method.name, job.round.rounds, phase="finished", rows=rows)
    return Led(Result(files, summary_of(view), tuple(rows), finished=True), model)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "Q4_1"])
def led(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Led:
    """Of a folder in float32 or bfloat16, or of a job that names a GGUF file."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "Q4_1":
        write_model(folder / "hf", "llama tied", dtype=getattr(torch, request.param))
        return lead(folder / "runs", folder / "hf")
    write_model(folder / "hf", "llama tied")
    export_gguf(folder / "hf", folder / "whole.gguf", "f32")
    named = rewritten(folder / "whole.gguf", folder / "model.gguf", kind="Q4_1")
    cache = RunFolder(folder / "runs" / "t").models
    return lead(folder / "runs", model_folder(str(named), cache, place="test"), named)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_peft_loads_the_adapter_on_the_original_checkpoint(led: Led, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = led.result.export_adapter(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(led.model, dtype=torch.float32).eval()
    before = logits(plain)
    tuned = PeftModel.from_pretrained(plain, adapter).eval()
    expected = logits(led.expected())
    torch.testing.assert_close(logits(tuned), expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 0.05, "something was learned"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", str(led.model))
    card = (adapter / "README.md").read_text()
    assert "library_name: peft" in card and 'PeftModel.from_pretrained(model, "FOLDER")' in card


def test_the_folder_is_that_model_rounded_once_with_a_card_of_facts(led: Led, tmp_path: Path) -> None:
    folder = led.result.export(tmp_path / "tuned")
    expected = led.expected()
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for (name, there), here in zip(stored.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(there, here.to(there.dtype)), name
    assert not (folder / "imported.json").exists()
    card = (folder / "README.md").read_text()
    ledger = SqliteLedger(led.result.folder.ledger)
    (digest,) = {one.digest for one in ledger.published_states() if one.version == 1}
    ledger.close()
    for fact in (
        "# t, round 1",
        "| data | 9 examples on 1 node in round 1 (9), as they said |",
        f"`{digest}`",
        stored_job(led.result.folder.root).method.described(),
        f"| privacy | {SPENT.words()} |",
    ):
        assert fact in card, fact
    if (led.model / "imported.json").exists():
        assert "model.gguf, Q4_1," in card
    else:
        assert "| base model | hf |" in card and str(led.model.parent) not in card


def test_a_gguf_file_says_the_same_and_comes_in_again(led: Led, tmp_path: Path) -> None:
    from edge_client.worker.exchange.importing import import_gguf

    path = led.result.export_gguf(tmp_path / "tuned.gguf", "f32")
    import_gguf(path, tmp_path / "again")
    folder = led.result.export(tmp_path / "tuned")
    again, tuned = (
        AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (tmp_path / "again", folder)
    )
    assert torch.equal(logits(again), logits(tuned))
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == TEMPLATE
    with pytest.raises(ConfigError, match="something is there already"):
        led.result.export_gguf(path)


def llama(path: Path) -> Any:
    """llama.cpp with a model; its keys and values in float32, as transformers has them."""
    bindings = pytest.importorskip(
        "llama_cpp",
        reason="llama-cpp-python is not installed (it is compiled: pip install llama-cpp-python)",
        exc_type=ImportError,
    )
    return bindings.Llama(
        str(path), n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False, logits_all=True, type_k=0, type_v=0
    )


def greedy(model: Any, ids: Sequence[int], count: int = 12) -> list[int]:
    found: list[int] = []
    for token in model.generate(list(ids), temp=0.0, top_k=1, repeat_penalty=1.0):
        found.append(token)
        if len(found) == count:
            break
    model.reset()
    return found


@pytest.mark.parametrize("kind", ["llama", "llama biased", "llama 3.1", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_computes_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", kind)
    export_gguf(tmp_path / "hf", tmp_path / "model.gguf", "f32")
    there, here = llama(tmp_path / "model.gguf"), AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert there.tokenize(prompt.encode(), add_bos=False, special=True) == ids
        there.eval(ids)
        with torch.no_grad():
            expected = here(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(there.scores[: len(ids)], expected, rtol=1e-3, atol=1e-3)
        there.reset()


@pytest.mark.slow
def test_llama_cpp_answers_with_a_real_run_s_model(smollm_folder: Path, tmp_path: Path) -> None:
    led = lead(tmp_path / "runs", smollm_folder)
    folder = led.result.export(tmp_path / "tuned")
    there = llama(led.result.export_gguf(tmp_path / "tuned.gguf", "f32"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    here = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in ("The capital of France is", "<|im_start|>user\nName 3 colours.<|im_end|>\n<|im_start|>assistant\n"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = here.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        assert greedy(there, ids[0].tolist(), len(expected)) == expected


def test_a_model_that_no_gguf_file_is_written_for_is_refused_by_name(tmp_path: Path) -> None:
    import transformers as hf

    hf.FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"no GGUF file is written for a model of type 'falcon' \(types: llama, mistral"
    ):
        export_gguf(tmp_path, tmp_path / "model.gguf")
    hf.MistralConfig(hidden_size=32, sliding_window=16).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="sliding_window is 16, which a GGUF file of llama cannot say"):
        export_gguf(tmp_path, tmp_path / "model.gguf")
