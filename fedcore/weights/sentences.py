# SPDX-License-Identifier: Apache-2.0
"""Folders of sentence models, as the library sentence-transformers writes them: `modules.json` names what comes one
after the other, and each has its settings in a folder of its own.

Read: how the model was trained to make one vector of a text's hidden states. Written: a model with a task head on such
a vector, for which transformers has no class of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fedcore.errors import ModelError
from fedcore.fields.types import POOLED, Pooled

__all__ = ["FILES", "HEAD_FILE", "HEAD_NAMES", "SentenceModel", "read_sentence_model", "write_sentence_model"]

_MODULES: Final = "modules.json"
_TRANSFORMER: Final = "sentence_bert_config.json"
FILES: Final = (_MODULES, _TRANSFORMER, "config_sentence_transformers.json")
"""In the folder itself: what the library says of the model as it was trained."""
_HEAD: Final = "2_Dense"
HEAD_FILE: Final = f"{_HEAD}/model.safetensors"
"""Of a folder that `write_sentence_model` wrote: the head's tensors."""
HEAD_NAMES: Final = {"classifier.weight": "linear.weight", "classifier.bias": "linear.bias"}
"""What a head's tensors are called there."""
_IDENTITY: Final = "torch.nn.modules.linear.Identity"
# What the library called them before a model could name only one.
_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_OURS: Final[dict[str, Pooled]] = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
_THEIRS: Final = {ours: theirs for theirs, ours in _OURS.items()}


@dataclass(frozen=True)
class SentenceModel:
    """What a folder says.

    Attributes:
        pooling: How one vector is made of a text's hidden states.
        normalised: Whether vectors are brought to length one afterwards.
        outputs: Of a head on them, as an export of this package has one; 0 for none.
    """

    pooling: Pooled
    normalised: bool = False
    outputs: int = 0


def read_sentence_model(folder: Path) -> SentenceModel | None:
    """How a sentence model pools; None for a folder of another kind, and for a classifier as transformers' own classes
    have it, whatever lies beside it.

    Raises:
        ModelError: A module or a way of pooling that is not understood; it is named.
    """
    modules, config = _decoded(folder / _MODULES), _decoded(folder / "config.json")
    config = config if isinstance(config, dict) else {}
    classes = map(str, config.get("architectures") or ())
    if modules is None or any(name.endswith("ForSequenceClassification") for name in classes):
        return None
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise _refused(folder, "it is no list of modules")
    # The last part: the library has moved its classes.
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in modules]
    head = kinds.index("Dense") if "Dense" in kinds else len(kinds)
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:head]) - {"Normalize"} or kinds[head + 1 :]:
        raise _refused(folder, f"{', '.join(kinds) or 'nothing'} is not Transformer, Pooling, Normalize")
    outputs = 0
    if head < len(kinds):
        dense, names = _settings(folder, modules[head]), config.get("id2label")
        outputs = dense.get("out_features", 0)
        if dense.get("activation_function") != _IDENTITY or not isinstance(names, dict) or len(names) != outputs:
            raise _refused(folder, "a Dense layer after Pooling, which is no head of labels that config.json names")
    pooling = _pooling(folder, _settings(folder, modules[1]))
    return SentenceModel(pooling, "Normalize" in kinds, int(outputs or 0))


def _pooling(folder: Path, settings: dict[str, Any]) -> Pooled:
    found = settings.get("pooling_mode", [name for key, name in _FLAGS.items() if settings.get(key)] or "mean")
    modes = [found] if isinstance(found, str) else found if isinstance(found, list) else [str(found)]
    if len(modes) != 1 or modes[0] not in _OURS:
        raise _refused(folder, f"it pools by {' and '.join(map(str, modes))}")
    return _OURS[modes[0]]


def _settings(folder: Path, module: dict[str, Any]) -> dict[str, Any]:
    path = PurePosixPath(str(module.get("path", "")))
    found = None if path.is_absolute() or ".." in path.parts else _decoded(folder / path / "config.json")
    if not isinstance(found, dict):
        raise _refused(folder, f"it names {str(path)!r}, and there is no {path}/config.json")
    return found


def _decoded(path: Path) -> Any:
    """A file's JSON; None where there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read: {error}", place=str(path)) from None


def _refused(folder: Path, what: str) -> ModelError:
    return ModelError(
        f"how this sentence model makes one vector of a text is not understood: {what}",
        place=str(folder / _MODULES),
        remedy=f"set task.pooling to {', '.join(map(repr, POOLED))} or 'model'",
    )


def write_sentence_model(folder: Path, pooling: Pooled, features: int, outputs: int, *, max_length: int) -> None:
    """Write what makes a folder with a backbone and `HEAD_FILE` a model that sentence-transformers loads, and whose
    sentence vector is the head's logits.

    Args:
        folder: With the backbone's files.
        pooling: What the head looks at.
        features: Numbers in a hidden state.
        outputs: The head's.
        max_length: Tokens that a text is cut to.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling", _HEAD: "Dense"}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    # Both the keys that all versions know, and none that an older one does not.
    pooled = {"word_embedding_dimension": features, **{key: name == _THEIRS[pooling] for key, name in _FLAGS.items()}}
    dense = {"in_features": features, "out_features": outputs, "bias": True, "activation_function": _IDENTITY}
    for name, said in (
        (_MODULES, modules),
        (_TRANSFORMER, {"max_seq_length": max_length, "do_lower_case": False}),
        ("1_Pooling/config.json", pooled),
        (f"{_HEAD}/config.json", dense),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
