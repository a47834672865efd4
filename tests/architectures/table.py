# SPDX-License-Identifier: Apache-2.0
"""What becomes of each architecture: the rows of docs/details/architectures.md, made by training one step of each.

`PYTHONPATH=. python tests/architectures/table.py` writes the page anew; `test_table.py` holds it to what comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers
from tiny_models import CAUSAL, LABELS, save_tiny, step, tiny_config

from fedcore.errors import ModelError

__all__ = ["CAUSAL_LMS", "CLASSIFIERS", "PAGE", "main", "row"]

PAGE = Path(__file__).parents[2] / "docs" / "details" / "architectures.md"

# Not twice what is one class under two names.
CAUSAL_LMS = [
    "afmoe",
    "apertus",
    "arcee",
    "bert",
    "bert-generation",
    "biogpt",
    "bitnet",
    "bloom",
    "codegen",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cpmant",
    "ctrl",
    "deepseek_v4",
    "diffllama",
    "doge",
    "electra",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "falcon",
    "falcon_mamba",
    "flex_olmo",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "jamba",
    "jetmoe",
    "lfm2",
    "llama",
    "mamba",
    "minimax",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "mpt",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo_hybrid",
    "olmoe",
    "openai-gpt",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "roberta",
    "rwkv",
    "smollm3",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
    "xlnet",
    "xlstm",
]
CLASSIFIERS = [
    "albert",
    "bert",
    "big_bird",
    "camembert",
    "canine",
    "convbert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "eurobert",
    "fnet",
    "funnel",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "gte",
    "ibert",
    "llama",
    "longformer",
    "megatron-bert",
    "mobilebert",
    "modernbert",
    "mpnet",
    "mpt",
    "mra",
    "nomic_bert",
    "nystromformer",
    "opt",
    "phi",
    "qwen3",
    "rembert",
    "roberta",
    "roformer",
    "squeezebert",
    "t5",
    "xlm-roberta",
    "xlnet",
    "yoso",
]

_HEAD = """# Architectures

{trained} of {rows} architectures train here as transformers has them; the others are refused before a run, with one line. No
third kind: the table is made by `PYTHONPATH=. python tests/architectures/table.py`, and a test holds it to what comes out
(transformers {version}).

A row is a tiny random model, made from the architecture's configuration class (32 features, two layers) and saved by
transformers. It trains if, on the same weights in float32, texts of two lengths in one micro-batch, with padding
computed and left out, give the logits, the loss and the gradients of plain transformers on one text at a time; and if
one step's gradient of every layer's factor B is transformers' dW P^T. Largest differences: 2e-4 of the largest logit,
1e-3 of the largest gradient; seen are 1e-6.

The same comparison runs on the real folder before a run (`fedkrso model describe`, and when a coordinator starts), if
there are 4.4 bytes of memory for each number of the model; so an architecture that is not here trains, or is refused
with the numbers.

| architecture | task | what becomes of it |
|---|---|---|
"""

_TAIL = """
## What decides

- **Names of tensors** are found by transformers' own conversions at load: `LayerNorm.gamma`, prefixes, experts that
  lie one by one in the file and are one tensor in the model. A parameter without numbers in the file is refused, unless
  it is a new head.
- **Tied embeddings**: where the file has two that differ, there are two, as in transformers. Untied, and no output
  embedding in the file: refused.
- **The output head** may have a bias, a multiplier (Cohere, Granite) and a soft cap (Gemma 2); they are found by asking
  the model about numbers of ours. Whatever else it does is refused.
- **GPT-2's `Conv1D`** lies transposed in the file; each layer trains, and is exported as it lay. **Experts** train each
  as a layer of its own, also where they lie in one tensor of three dimensions; what routes tokens to them stays frozen.
- **A layer whose `weight` is looked at** (Mamba) trains: a stand-in multiplies by 8-bit numbers and side path.
- **Encoder-decoders and models of more than text** are refused, and encoders as `causal-lm`; so is a model of which
  most weights are in layers of another kind, with the kind's name.
- **Quantised already**: bitsandbytes' 8-bit numbers are used as they are in target layers, and made float elsewhere;
  anything else (4 bit, GPTQ, AWQ) is refused: use the original.
- **Code in the folder** (`auto_map`) is never run, and nobody is asked.
- **No padding token** (or a list of ends, as in Llama 3): a token that the tokenizer puts into no text is taken, and
  written into the export's configuration.
- **A head that was tuned before**: with the job's labels in the same order it is trained on from what it is; with other
  labels a new one takes its place, and `describe` says so; the same labels in another order are refused. A norm in a
  new head starts at 1.
- **Blocks that cannot be recomputed** (ALBERT, MPNet): no memory plan with checkpointing is considered.
"""


def row(kind: str, model_type: str) -> str:
    """An architecture's line of the table."""
    task = CAUSAL if kind == "causal-lm" else LABELS
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder), task, tiny_config(model_type))
        try:
            found = step(Path(folder), task)
        except ModelError as error:
            # Numbers of a difference are this machine's.
            said = error.message.replace(folder, "").partition(" (Tensor on")[0]
            said = said.partition("transformers': ")[0] + ("transformers'" if "transformers': " in said else "")
            return f"| {model_type} | {kind} | refused: {said} |"
    assert found.gradients < 1e-3, f"{model_type}: gradients {found.gradients:.1e} apart"
    return f"| {model_type} | {kind} | trains, {found.layers} layers |"


def main() -> None:
    """Write the page."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows = [row("causal-lm", one) for one in CAUSAL_LMS] + [row("text-classification", one) for one in CLASSIFIERS]
    trained = sum("| trains, " in one for one in rows)
    head = _HEAD.format(trained=trained, rows=len(rows), version=transformers.__version__)
    PAGE.write_text(head + "\n".join(rows) + "\n" + _TAIL, encoding="utf-8")


if __name__ == "__main__":
    main()
