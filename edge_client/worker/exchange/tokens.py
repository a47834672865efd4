# SPDX-License-Identifier: Apache-2.0
"""A tokenizer out of a GGUF file, and into one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_client.worker.exchange.ggufile import GgufFile, Metadatum
from fedcore.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["TOKENIZER_FILE", "add_tokenizer", "keep_tokenizer", "read_tokenizer"]

TOKENIZER_FILE: Final = "tokenizer.gguf"
"""In an imported folder: the file's own words about its tokenizer, a GGUF file without tensors."""
_CONTRACTED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _CONTRACTED.replace("DIGITS", r"\p{N}{1,3}")
_QWEN2 = _CONTRACTED.replace("DIGITS", r"\p{N}")


def _bytes(*, splits: bool) -> dict[str, Any]:
    """Text as bytes, before that cut as GPT-2 did or not at all; in the words of the tokenizers library."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits}


def _cut_by(expression: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _bytes(splits=False)]}


_DIGIT_BY_DIGIT = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(splits=True)],
}
_CUTS: Final[dict[str, dict[str, Any]]] = {
    "gpt-2": _bytes(splits=True),
    "default": _bytes(splits=True),
    "smollm": _DIGIT_BY_DIGIT,
    "starcoder": _DIGIT_BY_DIGIT,
    "refact": _DIGIT_BY_DIGIT,
    "llama-bpe": _cut_by(_LLAMA3),
    "qwen2": _cut_by(_QWEN2),
    "deepseek-r1-qwen": _cut_by(_QWEN2),
}
"""How text is cut before its bytes are merged, by `tokenizer.ggml.pre`. Of equal ones a writer takes the first."""

_SPECIAL: Final = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(file: GgufFile) -> Any:
    """The file's tokenizer, as transformers has tokenizers, with its chat template.

    transformers knows not every way of cutting text (SmolLM's digits, one by one) and then cuts as GPT-2 did, without a
    word; so the way is set here, and an unknown one is refused.

    Raises:
        ModelError: Of a kind that nobody here can read.
    """
    from transformers import AutoTokenizer

    kind, cut = file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and cut not in _CUTS:
        raise ModelError(
            f"its tokenizer cuts text in a way that is not known here: {cut!r}",
            place=f"{file.path}: tokenizer.ggml.pre",
            remedy="take the original Hugging Face folder",
        )
    try:
        made = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    except (ValueError, KeyError, TypeError, OSError, AttributeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise ModelError(f"its tokenizer ({kind}) cannot be read: {first}", place=str(file.path)) from None
    if kind == "gpt2":
        made = _as_the_file_says(made, file, _CUTS[cut])
    made.chat_template = file.value("tokenizer.chat_template")
    return made


def _as_the_file_says(made: Any, file: GgufFile, cut: Mapping[str, Any]) -> Any:
    """A byte-level tokenizer with the file's way of cutting text, and no token that the file does not have.

    transformers gives each a token for the unknown, which has no row in the embedding where the file has none."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokens = file.value("tokenizer.ggml.tokens", [])
    whole = json.loads(made.backend_tokenizer.to_str())
    whole["pre_tokenizer"] = cut
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < len(tokens)]
    if whole["model"].get("unk_token") not in whole["model"]["vocab"]:
        whole["model"]["unk_token"] = None
    ids = {name: file.value(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)),
        **{name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)},
    )


def keep_tokenizer(file: GgufFile, path: Path) -> None:
    """Write what a file says of its tokenizer as a GGUF file without tensors, so that an export can say the same.

    Args:
        file: The imported one.
        path: Of the new file.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, file.architecture)
    for key, found in file.metadata.items():
        if key.startswith("tokenizer."):
            _add(writer, key, found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def add_tokenizer(writer: GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Say what a folder's tokenizer is.

    In the words of the file that the model once came from, if the tokens are still those; else in new ones, made of
    tokenizer.json.

    Args:
        writer: Of the GGUF file.
        folder: With tokenizer and chat template.
        vocabulary: Rows of the embedding.

    Raises:
        ModelError: Not a tokenizer that a GGUF file can have.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = _tokens(whole, vocabulary, folder)
    kept = folder / TOKENIZER_FILE
    old = GgufFile(kept) if kept.exists() else None
    if old is not None and old.value("tokenizer.ggml.tokens") == tokens:
        for key, found in old.metadata.items():
            if key.startswith("tokenizer.ggml."):
                _add(writer, key, found)
    else:
        _add_new(writer, tokenizer, whole, tokens, folder)
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)


def _add(writer: GGUFWriter, key: str, found: Metadatum) -> None:
    from gguf import GGUFValueType

    of_entries = None if found.of_entries is None else GGUFValueType(found.of_entries)
    writer.add_key_value(key, found.value, GGUFValueType(found.kind), of_entries)


def _tokens(whole: Mapping[str, Any], vocabulary: int, folder: Path) -> list[str]:
    """All tokens by id; ids that no token has are padding of the embedding."""
    tokens = [f"[PAD{index}]" for index in range(vocabulary)]
    found = dict(whole["model"].get("vocab", {})) if whole["model"]["type"] == "BPE" else {}
    found |= {token["content"]: token["id"] for token in whole["added_tokens"]}
    for token, index in found.items():
        if index >= vocabulary:
            raise ModelError(
                f"token {token!r} has the id {index}, the embedding has {vocabulary} rows", place=str(folder)
            )
        tokens[index] = token
    return tokens


def _add_new(writer: GGUFWriter, tokenizer: Any, whole: Mapping[str, Any], tokens: list[str], folder: Path) -> None:
    from gguf import TokenType

    model, added = whole["model"], {token["id"]: token["special"] for token in whole["added_tokens"]}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", ())]
    known = set(model.get("vocab", {}).values()) if model["type"] == "BPE" else set()
    types = [
        (TokenType.CONTROL if added[index] else TokenType.USER_DEFINED)
        if index in added
        else (TokenType.NORMAL if index in known else TokenType.UNUSED)
        for index in range(len(tokens))
    ]
    if model["type"] == "BPE" and model.get("byte_fallback"):
        # SentencePiece merges the pair whose token has the highest score: the order of merges.
        ranks = {pair.replace(" ", ""): rank for rank, pair in reversed(list(enumerate(merges)))}
        for index, token in enumerate(tokens):
            if len(token) == 6 and token.startswith("<0x"):
                types[index] = TokenType.BYTE
            elif token == model.get("unk_token"):
                types[index] = TokenType.UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix("Prepend" in json.dumps(whole["normalizer"]))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut_of(whole, folder))
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    )


def _cut_of(whole: Mapping[str, Any], folder: Path) -> str:
    """The name of a tokenizer's way of cutting text."""
    for name, words in _CUTS.items():
        if whole["model"]["type"] == "BPE" and _same(whole["pre_tokenizer"]) == _same(words):
            return name
    raise ModelError(
        "its tokenizer cuts text in a way that has no name in GGUF files here", place=f"{folder}: pre_tokenizer"
    )


def _same(words: Any) -> str:
    """Comparable: without what changes no token."""
    if not isinstance(words, dict):
        return json.dumps(words)
    return json.dumps(_plain(words), sort_keys=True)


def _plain(words: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in words.items() if key != "trim_offsets"}
    if "pretokenizers" in out:
        out["pretokenizers"] = [_plain(step) for step in out["pretokenizers"]]
    return out
