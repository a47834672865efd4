# SPDX-License-Identifier: Apache-2.0
"""What tiny runs share: a checkpoint of random weights, its schema, texts, and what a worker traces on its first
start."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from forked_workers import ForkedWorkers

__all__ = ["LABELS", "Workshop", "program"]

LABELS = ("left", "right")
_WORDS = (*LABELS, *(f"word{number}" for number in range(20)))


class Workshop:
    """What runs share: checkpoint, schema, texts, and the traces that a first start leaves in a node's folder.

    Args:
        folder: Kept from one use to the next.
        forked_workers: Where workers start from; None for ordinary starts.
    """

    def __init__(self, folder: Path, forked_workers: ForkedWorkers | None = None) -> None:
        self.folder, self.model, self.forked_workers = folder, folder / "model", forked_workers
        self.schema, self.traces = folder / "schema.json", folder / "traces"
        if not self.schema.exists():
            self._make()

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever starts workers."""
        return dict(os.environ) if self.forked_workers is None else {**os.environ, **self.forked_workers.environment}

    def texts(self, index: int) -> Path:
        """A home's own examples: which of two words a text has decides its label."""
        path = self.folder / f"texts-{index}.csv"
        if not path.exists():
            chance = random.Random(index)
            rows = []
            for number in range(24):
                label = LABELS[number % 2]
                rows.append(
                    f"{' '.join([*chance.sample(_WORDS[2:12], 3), label, *chance.sample(_WORDS[12:], 3)])},{label}"
                )
            path.write_text("\n".join(["text,label", *rows]) + "\n")
        return path

    def keep_traces(self, node_folder: Path) -> None:
        """Remember what a worker traced, so that other nodes need not trace the same model."""
        self.traces.mkdir(exist_ok=True)
        for path in (node_folder / "replica").glob("*.json"):
            shutil.copy(path, self.traces / path.name)

    def warm(self, node_folder: Path) -> None:
        """Give a fresh node those traces."""
        if self.traces.is_dir():
            shutil.copytree(self.traces, node_folder / "replica", dirs_exist_ok=True)

    def _make(self) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import BertConfig, PreTrainedTokenizerFast

        from edge_client.worker.trace.outline import Outline, write_random_checkpoint
        from fedcore.config.sections import TaskSection

        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        vocabulary = {word: index for index, word in enumerate([*special, *_WORDS])}
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            pad_token_id=0,
        )
        config.save_pretrained(self.model)
        outline = Outline(self.model, TaskSection(kind="text-classification", labels=LABELS))
        write_random_checkpoint(outline, self.model / "model.safetensors", 0)
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(self.model)
        command = [
            "model",
            "describe",
            self.model,
            "--task",
            "text-classification",
            "--labels",
            ",".join(LABELS),
            "--max-length",
            "16",
        ]
        said = subprocess.run(program(*command), check=True, stdout=subprocess.PIPE).stdout
        beside = self.schema.with_suffix(".part")
        beside.write_bytes(said)
        beside.replace(self.schema)


def program(*arguments: object) -> list[str]:
    """The command."""
    return [sys.executable, "-c", "from fedcore.command import main; main()", *map(str, arguments)]
