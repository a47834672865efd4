# SPDX-License-Identifier: Apache-2.0
"""A model folder's configuration, as a task needs it, and the architecture that it names, without weights.

What cannot be trained as it is meant is refused here by name, before a weight is read: a folder's own code, weights
that are quantised already, encoder-decoders, models of more than text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from edge_client.worker.architecture.pooled import PooledClassifier
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError

__all__ = ["auto_class", "empty_model", "read_config", "read_tokenizer", "said_of", "token_id"]

# Names of settings that make a forward pass in training another than in evaluation.
_RANDOM = ("dropout", "dropout_prob", "_pdrop", "layerdrop", "jitter_noise", "layer_dropout", "drop_path_rate")


def auto_class(task: TaskSection) -> Any:
    """The class of transformers that finds a task's architecture; where it has none for the head, its backbone."""
    if task.pooled is not None:
        return AutoModel
    return AutoModelForCausalLM if task_of(task).outputs() is None else AutoModelForSequenceClassification


def read_config(folder: Path, task: TaskSection, *, pad_token_id: int | None = None) -> Any:
    """The configuration for a task, with nothing random in it.

    Args:
        folder: With a `config.json`.
        task: Decides the head.
        pad_token_id: Used where the configuration names none.

    Raises:
        ModelError: transformers cannot read it, or it is of a kind that is refused.
    """
    place = str(folder / "config.json")
    said = said_of(folder)
    try:
        # Never the folder's own code, and no question on a terminal whether to run it.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        if "auto_map" in said:
            raise ModelError(
                f"{said.get('model_type', 'the model')} comes as code in its folder (auto_map), which is never run",
                place=place,
                remedy="use an architecture that transformers has itself",
            ) from None
        raise ModelError(f"transformers cannot read it: {_first_line(error)}", place=place) from None
    _refuse_quantised(said, place)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{config.model_type} is an encoder-decoder, whose decoder looks at a second text (cross-attention)",
            place=place,
            remedy="use a model that is an encoder or a decoder",
        )
    causal = task_of(task).outputs() is None
    if causal and hasattr(config, "add_cross_attention") and getattr(config, "is_decoder", None) is False:
        raise ModelError(
            f"{config.model_type} is an encoder (is_decoder is false): it sees the words that it is to foresee",
            place=place,
            remedy="use a decoder, or another task.kind",
        )
    if config.get_text_config(decoder=True) is not config:
        kinds = ", ".join(sorted(key for key, value in said.items() if key.endswith("_config") and value)) or "a part"
        raise ModelError(
            f"{config.model_type} is a model of more than text ({kinds})",
            place=place,
            remedy="use a folder with the text model alone",
        )
    for key in [key for key in vars(config) if key.endswith(_RANDOM)]:
        if isinstance(getattr(config, key), float):
            setattr(config, key, 0.0)
    if (outputs := task_of(task).outputs()) is not None:
        config.num_labels = outputs
    config.pad_token_id = token_id(config, "pad_token_id", pad_token_id)
    config.use_cache = False
    return config


def token_id(config: Any, name: str, otherwise: int | None = None) -> int | None:
    """A token of a configuration as one id; None where it names none, or several."""
    found = getattr(config, name, None)
    return found if isinstance(found, int) and found >= 0 else otherwise


def empty_model(folder: Path, task: TaskSection, *, pad_token_id: int | None = None, tied: bool | None = None) -> Any:
    """The task's architecture with parameters on the meta device and real buffers.

    Args:
        folder: With a `config.json`.
        task: Decides the head.
        pad_token_id: Used where the configuration names none.
        tied: Whether input and output embeddings are one; None as the configuration says.

    Raises:
        ModelError: The folder cannot serve.
    """
    config = read_config(folder, task, pad_token_id=pad_token_id)
    if task_of(task).outputs() is not None and config.pad_token_id is None:
        config.pad_token_id = token_id(config, "eos_token_id", 0)
    if tied is not None:
        config.tie_word_embeddings = tied
    try:
        with _parameters_on_meta():
            model = auto_class(task).from_config(
                config, dtype=torch.float32, trust_remote_code=False, experts_implementation="eager"
            )
            if (pooling := task.pooled) is not None:
                model = PooledClassifier(model, pooling, config.num_labels)
    except (ValueError, ImportError, AttributeError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"no {task.kind} model: {_first_line(error)}", place=str(folder)) from None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; its own code is never run.

    Raises:
        ModelError: There is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no tokenizer: {_first_line(error)}", place=str(folder), remedy="copy tokenizer.json into the model folder"
        ) from None


def said_of(folder: Path) -> dict[str, Any]:
    """The configuration as it is written; nothing where it cannot be read, which transformers says better."""
    try:
        said = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _refuse_quantised(said: dict[str, Any], place: str) -> None:
    about = said.get("quantization_config")
    if not isinstance(about, dict):
        return
    method = str(about.get("quant_method", "") or "an unknown method")
    if method == "bitsandbytes" or "load_in_8bit" in about:
        if about.get("load_in_8bit") and not about.get("load_in_4bit"):
            return
        method = f"bitsandbytes in 4 bit ({about.get('bnb_4bit_quant_type', 'fp4')})"
    raise ModelError(
        f"already quantised by {method}", place=place, remedy="use the original, in floating point: training needs it"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters registered inside become shapes without memory; buffers (rotary tables, position ids) stay real."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            # There are no numbers that transformers could begin with, and it takes long to see that.
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
