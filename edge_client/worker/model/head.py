# SPDX-License-Identifier: Apache-2.0
"""What a language model makes of its last hidden states: logits.

    logits = cap tanh(multiplier (W h + bias) / cap)       or, without a cap,  multiplier (W h + bias)

The loss never makes the logits whole (`edge_client.worker.model.loss`), so it cannot call the model for them. What the
model does there is therefore found out once, by asking its own forward pass about numbers of ours: whatever it does
beside a multiplier and a soft cap shows, and is refused.

Legend: v words, n numbers a hidden state.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_client.worker.model.weights import FloatWeight
from fedcore.errors import ModelError

__all__ = ["OutputHead", "Shaping", "shaping_of"]


@dataclass(frozen=True)
class Shaping:
    """What happens to logits after the output embedding.

    Attributes:
        multiplier: Cohere's `logit_scale`, one over Granite's `logits_scaling`.
        cap: Gemma 2's soft cap; 0 for none.

    Example:
        >>> float(Shaping(cap=30.0).of(torch.tensor(1e6)))
        30.0
    """

    multiplier: float = 1.0
    cap: float = 0.0

    def of(self, products: Tensor) -> Tensor:
        """Logits of products W h + bias, float32."""
        scaled = products * self.multiplier if self.multiplier != 1.0 else products
        return (scaled / self.cap).tanh() * self.cap if self.cap else scaled

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logit / d product, of logits as `of` gives them."""
        return self.multiplier * (1.0 - (logits / self.cap).square()) if self.cap else self.multiplier


class OutputHead(FloatWeight):
    """From hidden states to logits: the output embedding's W, and all that a model does beside its product.

    Args:
        weight: W (v, n), any floating dtype; frozen.
        bias: (v,), frozen, or None.
        shaping: What happens to products.
        mapping: Where W is mapped from disk.

    Example:
        >>> head = OutputHead(torch.eye(2), torch.tensor([0.0, 1.0]), Shaping(multiplier=0.5))
        >>> head.logits(torch.tensor([2.0, 4.0]))
        tensor([1.0000, 2.5000])
    """

    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        shaping: Shaping = Shaping(),
        mapping: mmap.mmap | None = None,
    ) -> None:
        super().__init__(weight, mapping)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.shaping = shaping

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states (..., n) the logits (..., v), float32; whole, so for a few states only."""
        weight = self.weight.to(torch.float32)
        bias = None if self.bias is None else self.bias.to(torch.float32)
        said = self.shaping.of(nn.functional.linear(hidden.to(torch.float32), weight, bias))
        self.release()
        return said


class _Outputs:
    """Hidden states, as a backbone's outputs, and None for whatever else a model looks for in them."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


_PRODUCTS = (-1e6, -40.0, -3.0, -0.25, -0.01, 0.0, 0.01, 0.5, 2.0, 25.0, 500.0, 1e6)


def shaping_of(model: Any) -> Shaping:
    """What a model does with the products of its output embedding, and with hidden states before it.

    Args:
        model: A language model of transformers; its weights are not looked at.

    Raises:
        ModelError: More than a multiplier and a soft cap.
    """
    output = model.get_output_embeddings()
    if output is None:
        raise ModelError(f"{type(model).__name__} has no output embedding", remedy="use a language model")
    features = int(output.in_features) if hasattr(output, "in_features") else int(output.weight.shape[1])
    products = torch.tensor(_PRODUCTS)
    # A hidden state whose first number alone is not zero, and a word that reads it alone.
    hidden = torch.zeros(1, len(products), features)
    hidden[0, :, 0] = products
    words = torch.zeros(2, features)
    words[0, 0], words[1, 0] = 1.0, -1.0
    try:
        said = _logits_of(model, output, hidden, words)[0].to(torch.float32)
    except (AttributeError, TypeError, RuntimeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
        raise _not_understood(
            model, f"{_between(model, output)} is between hidden states and words ({error})"
        ) from None
    if said.is_meta:
        raise _not_understood(model, f"{_between(model, output)} is between hidden states and words")
    if said.shape != (len(products), 2):
        raise _not_understood(model, f"{tuple(said.shape)} numbers of {len(products)} states and 2 words")
    found = _fitted(said[:, 0], products)
    expected = torch.stack([found.of(products), found.of(-products)], dim=1)
    if not torch.allclose(said, expected, rtol=1e-4, atol=1e-6):
        worst = int((said - expected).abs().max(dim=1).values.argmax())
        raise _not_understood(
            model,
            f"{float(said[worst, 0]):.6g} of a product of {_PRODUCTS[worst]:g}, not {float(expected[worst, 0]):.6g}",
        )
    return found


def _fitted(said: Tensor, products: Tensor) -> Shaping:
    small = _PRODUCTS.index(0.01)
    multiplier = float(said[small] / products[small])
    multiplier = 1.0 if abs(multiplier - 1.0) < 1e-5 else multiplier
    largest = float(said[-1])
    capped = abs(largest - multiplier * _PRODUCTS[-1]) > 1e-3 * abs(multiplier * _PRODUCTS[-1])
    return Shaping(multiplier, float(torch.tensor(largest)) if capped else 0.0)


def _not_understood(model: Any, what: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} makes logits in a way that is not understood: {what}",
        remedy="its output head may have a multiplier and a soft cap, nothing else",
    )


def _between(model: Any, output: nn.Module) -> str:
    """The first layer of a model's that is neither of its backbone nor the output embedding."""
    prefix = f"{model.base_model_prefix}."
    own = {id(parameter) for parameter in output.parameters()}
    names = (name for name, one in model.named_parameters() if not name.startswith(prefix) and id(one) not in own)
    return repr(next(names, "something").rpartition(".")[0] or "something")


def _logits_of(model: Any, output: nn.Module, hidden: Tensor, words: Tensor) -> Tensor:
    """What the model's own forward pass says where its backbone gives `hidden` (1, t, n), with `words` (w, n) for an
    output embedding."""
    probe = nn.Linear(words.shape[1], words.shape[0], bias=False)
    probe.weight = nn.Parameter(words, requires_grad=False)
    with _in_place(model, output, probe), _answering(getattr(model, model.base_model_prefix), hidden):
        ids = torch.ones(hidden.shape[:2], dtype=torch.long)
        with torch.no_grad():
            said: Tensor = model(input_ids=ids).logits
    return said


@contextmanager
def _in_place(model: nn.Module, module: nn.Module, other: nn.Module) -> Iterator[None]:
    places = [name for name, one in model.named_modules() if one is module]
    for place in places:
        parent, _, last = place.rpartition(".")
        setattr(model.get_submodule(parent), last, other)
    try:
        yield
    finally:
        for place in places:
            parent, _, last = place.rpartition(".")
            setattr(model.get_submodule(parent), last, module)


@contextmanager
def _answering(backbone: nn.Module, hidden: Tensor) -> Iterator[None]:
    """A backbone that says `hidden` of everything; so does one inside it, which OPT's head calls."""
    inside = [one for one in backbone.children() if hasattr(one, "base_model_prefix")]
    for one in (backbone, *inside):
        one.forward = lambda *_, **__: _Outputs(hidden)
    try:
        yield
    finally:
        for one in (backbone, *inside):
            del one.forward
