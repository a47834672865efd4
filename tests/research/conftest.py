# SPDX-License-Identifier: Apache-2.0
"""A data folder and tiny random models with tokenizers of their own; everything is written by the tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOOD, BAD = ("good", "fine", "lovely", "warm"), ("bad", "dull", "awful", "cold")
OTHERS = ("film", "plot", "scene", "music", "actor", "story", "voice", "light", "the", "a", "and", "was")
NAMES = ("ANNA", "BOB", "CARL", "DORA", "EVE", "FRED")


def sentence(chance: random.Random, label: int) -> str:
    words = [*chance.sample(OTHERS, 4), *chance.sample((BAD, GOOD)[label], 2)]
    chance.shuffle(words)
    return " ".join(words)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 and STS-B in GLUE's layout, and a play."""
    folder, chance = tmp_path_factory.mktemp("data"), random.Random(0)

    def write(place: str, header: str, rows: list[str]) -> None:
        path = folder / place
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")

    for name, count in (("train", 210), ("dev", 30)):
        labels = [chance.randrange(2) for _ in range(count)]
        write(f"SST-2/{name}.tsv", "sentence\tlabel", [f"{sentence(chance, label)}\t{label}" for label in labels])
        scores = [chance.randrange(6) for _ in range(count)]
        rows = [f"{sentence(chance, 1)}\t{sentence(chance, int(score > 2))}\t{score + 0.25}" for score in scores]
        write(f"STS-B/{name}.tsv", "sentence1\tsentence2\tscore", rows)
    speeches = [f"{chance.choice(NAMES)}:\n{sentence(chance, 1)},\n{sentence(chance, 0)}." for _ in range(150)]
    (folder / "tinyshakespeare").mkdir()
    (folder / "tinyshakespeare" / "input.txt").write_text("\n\n".join(speeches) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a tiny random `bert`, `roberta` or `llama`, as `from_pretrained` would find it."""
    folder = tmp_path_factory.mktemp("models")

    def make(kind: str) -> Path:
        own = folder / kind
        if not own.exists():
            {"bert": _bert, "roberta": _roberta, "llama": _llama}[kind](own)
        return own

    return make


SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def _write(folder: Path, config: Any) -> None:
    from edge_client.worker.trace.outline import Outline, write_random_checkpoint
    from fedcore.config.sections import TaskSection

    config.save_pretrained(folder)
    kind = "causal-lm" if config.model_type == "llama" else "text-classification"
    outline = Outline(folder, TaskSection(kind=kind, labels=("0", "1") if kind != "causal-lm" else ()))  # type: ignore[arg-type]
    write_random_checkpoint(outline, folder / "model.safetensors", 0)


def _words(special: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = (*special, *GOOD, *BAD, *OTHERS, ",", ".")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _bert(folder: Path) -> None:
    from tokenizers import processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    tokenizer = _words(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    _write(
        folder, BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=32, pad_token_id=0, **SIZES)
    )


def _roberta(folder: Path) -> None:
    """With RoBERTa's own tokenizer: bytes, pair encoding, no token types, positions that begin after the padding's."""
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaTokenizer

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*special, *letters, "oo", "ar", "th", "the"))}
    RobertaTokenizer(vocab=vocabulary, merges=[("o", "o"), ("a", "r"), ("t", "h"), ("th", "e")]).save_pretrained(folder)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    _write(
        folder, RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=66, type_vocab_size=1, **ids, **SIZES)
    )


def _llama(folder: Path) -> None:
    """Without a padding token, as most are."""
    from tokenizers import processors
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = _words(("<s>", "<unk>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}
    _write(
        folder,
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, num_key_value_heads=2, **ids, **SIZES
        ),
    )
