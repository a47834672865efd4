# SPDX-License-Identifier: Apache-2.0
"""How much a device that writes would have to ask, token by token: a decoder's first blocks on the device, all of them
at the coordinator.

    python -m benchmarks.asking.tokens --data DATA --model DECODER --blocks 10

In place of the blocks that follow, the device has one linear map from what its blocks make of a token to what the last
one would make of it, fitted by ridge regression from sums (no label, no gradient); then the model's own words. Text:
tinyshakespeare, the map from its beginning, what is measured from its last tenth. Each token is predicted from the
right ones before it; where the device's entropy, over ln(words), is beyond a threshold, the whole model's word counts.
What goes up with an asked token: the hidden states of all tokens that the coordinator does not have yet, 8 bits a
number and a scale; without those of the tokens before, its blocks could not go on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

_LENGTH = 128
_AT_ONCE = 4
_FIRST = 16
"""Tokens of a text before the first that is counted."""
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_PENALTY = 1e-3
"""Of the mean square of an input."""


@dataclass(frozen=True)
class Judged:
    """Of one model, (texts, tokens) each: nats of the right token, whether it was the likeliest, uncertainty 0 to 1."""

    losses: NDArray[np.float64]
    right: NDArray[np.bool_]
    u: NDArray[np.float64]
    words: NDArray[np.int64]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--model", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--blocks", default=10, show_default=True, help="On the device.")
@click.option("--fit", default=64, show_default=True, help="Texts of 128 tokens that the map is fitted to.")
@click.option("--texts", default=32, show_default=True, help="That are measured.")
def main(data: Path, folder: Path, blocks: int, fit: int, texts: int) -> None:
    """Print the curve of quality against the share of tokens that are asked."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    whole = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    border = len(whole) * 9 // 10
    seen, unseen = (_texts(tokenizer, part, count) for part, count in ((whole[:border], fit), (whole[border:], texts)))
    map_ = _fitted(model, blocks, seen)
    device, coordinator = _judged(model, blocks, map_, unseen)
    _print(device, coordinator, model.config.hidden_size)


def _texts(tokenizer: Any, text: str, count: int) -> Tensor:
    """Evenly over the text, (count, 128 + 1)."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = np.linspace(0, len(ids) - _LENGTH - 1, count).astype(int)
    return torch.tensor([ids[start : start + _LENGTH + 1] for start in starts])


def _states(model: Any, blocks: int, texts: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of a few texts at a time: tokens, what the first blocks make of each (their length taken out, and a one), and
    what the last one's norm gives."""
    for start in range(0, len(texts), _AT_ONCE):
        batch = texts[start : start + _AT_ONCE]
        with torch.inference_mode():
            states = model.model(batch[:, :-1], output_hidden_states=True, use_cache=False).hidden_states
        x, y = states[blocks].float(), states[-1].float()
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        yield batch, torch.cat([x, torch.ones_like(x[..., :1])], -1), y


def _fitted(model: Any, blocks: int, texts: Tensor) -> Tensor:
    """The ridge regression's map (n + 1, n), from sums in float64."""
    n = model.config.hidden_size
    squares, products = torch.zeros(n + 1, n + 1).double(), torch.zeros(n + 1, n).double()
    for _, x, y in _states(model, blocks, texts):
        flat = x.flatten(0, 1).double()
        squares += flat.T @ flat
        products += flat.T @ y.flatten(0, 1).double()
    penalty = _PENALTY * squares.diagonal().mean()
    solved: Tensor = torch.linalg.solve(squares + penalty * torch.eye(n + 1).double(), products)
    return solved.float()


def _judged(model: Any, blocks: int, map_: Tensor, texts: Tensor) -> tuple[Judged, Judged]:
    """What the device and the coordinator say of each token."""
    found: tuple[list[Judged], list[Judged]] = ([], [])
    for batch, x, y in _states(model, blocks, texts):
        for states, kept in ((x @ map_, found[0]), (y, found[1])):
            with torch.inference_mode():
                logs = model.lm_head(states[:, _FIRST:].bfloat16()).float().log_softmax(-1)
            wanted = batch[:, _FIRST + 1 :]
            losses = -logs.gather(-1, wanted[..., None])[..., 0]
            entropy = -(logs.exp() * logs).sum(-1) / math.log(logs.shape[-1])
            words = logs.argmax(-1)
            arrays = (losses.double(), words == wanted, entropy.double(), words)
            kept.append(Judged(*(one.numpy() for one in arrays)))
    joined = [[np.concatenate([getattr(j, f) for j in js]) for f in ("losses", "right", "u", "words")] for js in found]
    return Judged(*joined[0]), Judged(*joined[1])


def _print(device: Judged, coordinator: Judged, width: int) -> None:
    alike = float((device.words == coordinator.words).mean())
    print(f"{device.u.size:,} tokens; both say the same word of {alike:.1%}")
    print("| asked | threshold | the right word | as the whole model | perplexity | kB up a token |")
    print("|---|---|---|---|---|---|")
    order = np.sort(device.u.ravel())[::-1]
    for share in _SHARES:
        count = round(share * order.size)
        threshold = 1.0 if not count else float(order[count - 1])
        asked = device.u >= threshold if count else np.zeros_like(device.u, bool)
        right = np.where(asked, coordinator.right, device.right).mean()
        same = np.where(asked, True, device.words == coordinator.words).mean()
        loss = np.where(asked, coordinator.losses, device.losses).mean()
        sent = _sent_states(asked) * (width + 4) / asked.size / 1000
        print(
            f"| {asked.mean():.1%} | {threshold:.3f} | {right:.3f} | {same:.3f} | {math.exp(loss):.1f} | {sent:.2f} |",
            flush=True,
        )


def _sent_states(asked: NDArray[np.bool_]) -> int:
    """Tokens whose hidden states go up: in each text all up to the last that is asked, and those before the first that
    is counted."""
    count = asked.shape[1]
    last = np.where(asked.any(1), count - asked[:, ::-1].argmax(1), 0)
    return int((last + _FIRST * (last > 0)).sum())


if __name__ == "__main__":
    main()
