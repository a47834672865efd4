# SPDX-License-Identifier: Apache-2.0
"""A classifier of random weights as a device and a coordinator have it: the first blocks with a head, and all."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from coordinator.offsite.emulator import write_emulator

__all__ = ["BLOCKS", "TEXTS", "two_parts"]

BLOCKS = 2
WORDS = ["left", "right", *(f"word{number}" for number in range(20))]
TEXTS = ["left word1", "right", "word2 word3 word4 word5 left", *(f"word{n} right word{n + 1}" for n in range(9, 15))]


def two_parts(kind: str, folder: Path) -> tuple[Path, Path]:
    """Folders of the small model and of the large one, of four blocks; `bert` or `llama`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    sizes = {"vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0}
    labels = {"id2label": {0: "off", 1: "on"}, "label2id": {"off": 0, "on": 1}}
    torch.manual_seed(11)
    config = (hf.BertConfig if kind == "bert" else hf.LlamaConfig)(**sizes, **labels)
    model = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Such that answers differ from text to text.
            parameter.mul_(15 if kind == "bert" else 4) if parameter.ndim == 2 else None
    model.save_pretrained(folder / "large")
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder / "large")
    # The large one's own head on its second block: no good one, but one.
    write_emulator(folder / "large", folder / "small", first=BLOCKS, last=0, middle=0)
    small = hf.AutoModelForSequenceClassification.from_pretrained(folder / "small")
    head = {name: value for name, value in model.state_dict().items() if name.startswith(("score.", "classifier."))}
    small.load_state_dict(head, strict=False)
    small.save_pretrained(folder / "small")
    return folder / "small", folder / "large"
