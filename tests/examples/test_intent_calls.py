# SPDX-License-Identifier: Apache-2.0
"""The language model's main job: canonical calls, two held-out sets, the same data in every process; and its parts at
work on a tiny model."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.calls import central_lora, recipes
from coordinator.job import Job
from edge_client.node import Node
from examples.intent_calls import data, scoring
from examples.intent_calls.calls import COMBINATIONS
from examples.intent_calls.demo import METHOD, job_text, node_text
from examples.intent_calls.prompt import END, TEMPLATE, prompt
from fedcore.config.reading import load_config
from tests.hashseeds import said_with_hash_seeds

HOMES = 4


@pytest.fixture(scope="module")
def homes() -> list[list[data.Row]]:
    return [data.home(index) for index in range(HOMES)]


@pytest.fixture(scope="module")
def held_out() -> dict[str, list[data.Row]]:
    return {"names": data.new_names(), "sentences": data.new_sentences()}


def test_no_template_is_on_both_sides_and_what_is_held_out_has_slots_that_homes_speak() -> None:
    spoken, held = data.spoken_templates(), data.spoken_templates(held_out=True)
    assert spoken.keys() == held.keys() == set(COMBINATIONS) and len(held) >= 10
    assert sum(map(len, spoken.values())) == 333 and sum(map(len, held.values())) == 58
    # What has one template for each combination of its slots is held out by nobody.
    assert [intent for intent, own in held.items() if not own] == ["HassMediaSearchAndPlay"]
    for intent in held:
        assert not {t.text for t in held[intent]} & {t.text for t in spoken[intent]}
        assert {data._slots(t) for t in held[intent]} <= {data._slots(t) for t in spoken[intent]}


def test_homes_never_say_a_held_out_sentence_and_differ_in_their_mix(
    homes: list[list[data.Row]], held_out: dict[str, list[data.Row]]
) -> None:
    held = {row["prompt"] for rows in held_out.values() for row in rows}
    assert [len(rows) for rows in homes] == [1500] * HOMES and [len(rows) for rows in held_out.values()] == [300, 300]
    assert len(held) > 590 and not held & {row["prompt"] for rows in homes for row in rows}
    shares = [_share(rows, "HassStartTimer") for rows in homes]
    assert max(shares) > 2 * min(shares)


def test_the_names_of_the_new_household_are_new(
    homes: list[list[data.Row]], held_out: dict[str, list[data.Row]]
) -> None:
    for slot in ("area", "floor", "name"):
        known = {_data(row).get(slot) for rows in homes for row in rows} - {None}
        new = {_data(row).get(slot) for row in held_out["names"]} - {None}
        assert new and known and not new & known


def test_a_sentence_has_one_call_in_canonical_form_and_says_its_values(
    homes: list[list[data.Row]], held_out: dict[str, list[data.Row]]
) -> None:
    calls: defaultdict[str, set[str]] = defaultdict(set)
    for row in (row for rows in [*homes, *held_out.values()] for row in rows):
        calls[row["prompt"]].add(row["completion"])
        call = json.loads(row["completion"])
        assert list(call) == ["name", "data"] and call["name"] in COMBINATIONS
        assert row["completion"] == json.dumps(call, separators=(",", ":"))
        spoken = {slot: value for slot, value in call["data"].items() if slot != "domain"}
        places = [re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w)", row["prompt"]) for value in spoken.values()]
        assert all(places), row
    assert all(len(found) == 1 for found in calls.values())


def test_slots_come_in_spoken_order(homes: list[list[data.Row]]) -> None:
    row = next(r for r in homes[0] if re.match(r"play .* on .* in ", r["prompt"]))
    assert list(_data(row)) == ["search_query", "name", "area"]


def test_data_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from examples.intent_calls.data import *; print(home(1), held_out(), calibration())"
    outputs = said_with_hash_seeds(code)
    assert len(outputs) == 1 and "Hass" in outputs.pop()


def test_a_home_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="home 4 of 4"):
        data.home(4)


def test_the_prompt_is_what_the_template_makes_of_a_command() -> None:
    template = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(TEMPLATE)
    made = template.render(messages=[{"role": "user", "content": "stop the timer"}], add_generation_prompt=True)
    assert made == prompt("stop the timer")


def test_job_and_node_files_can_be_read(tmp_path: Path) -> None:
    broker = '[broker]\nurl = "mqtt://127.0.0.1:1"\ninsecure = true\n'
    (tmp_path / "job.toml").write_text(job_text("r", broker, rounds=3, learning_rate=0.5))
    (tmp_path / "node.toml").write_text(node_text("r", broker, tmp_path, index=2))
    job, node = load_config(tmp_path / "job.toml", Job), load_config(tmp_path / "node.toml", Node)
    assert job.task.kind == "instruction" and job.task.template_text == TEMPLATE and job.round.rounds == 3
    assert msgspec.to_builtins(job.method)["learning_rate"] == 0.5 and job.method.batch_size == METHOD["batch_size"]
    assert node.node == "home-2" and node.memory_budget == "900 MiB" and node.data.arguments["index"] == 2


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level vocabulary of the homes' words and SmolLM2's special tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    texts = [text for row in data.home(0, examples=300) for text in row.values()]
    specials = ["<|endoftext|>", "<|im_start|>", END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=800, special_tokens=specials, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=specials[1], eos_token=END, pad_token=END, unk_token=specials[0]
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_recipe_learns_on_the_rounds_of_the_engine(tiny_model: Path) -> None:
    options = ["--rounds", "2", "--rows", "8", "--set", "steps=6", "--set", "interval_steps=3", "--set", "num_seeds=2"]
    ran = CliRunner().invoke(
        recipes.main, [str(tiny_model), *options, "--set", "learning_rate=0.03"], catch_exceptions=False
    )
    assert ran.exit_code == 0, ran.output
    rows = re.findall(
        r"round (\d), (\d+) rows, .* trained at ([\d.]+); names ([\d.]+) at [\d.]+; sentences", ran.output
    )
    assert [(number, seen) for number, seen, _, _ in rows] == [("1", "48"), ("2", "96")]
    assert float(rows[1][2]) < float(rows[0][2]) < 7


def test_central_lora_and_scoring_run_by_plain_peft(tiny_model: Path) -> None:
    options = ["--rate", "1e-2", "--steps", "2", "--rows", "4", "--threads", "1", "--rank", "2"]
    ran = CliRunner().invoke(central_lora.main, [str(tiny_model), *options], catch_exceptions=False)
    assert re.search(r"rate 0.01, 2 steps, \d+ s: equality 0.000 on new names, 0.000 on new sentences", ran.output)
    scored = CliRunner().invoke(
        scoring.main, [str(tiny_model), "--rows", "3", "--threads", "1", "--wrong"], catch_exceptions=False
    )
    assert "new names: 0.000 of 3" in scored.output and "right {" in scored.output


def _data(row: data.Row) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row["completion"])["data"]
    return found


def _share(rows: list[data.Row], intent: str) -> float:
    return sum(f'"{intent}"' in row["completion"] for row in rows) / len(rows)


def test_golden_rows() -> None:
    rows = [data.home(2), data.new_names(), data.new_sentences(), data.calibration()]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "4fbd57c3a1c12057"
