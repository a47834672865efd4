# SPDX-License-Identifier: Apache-2.0
"""Adapters of the package `peft` that train whole, as a job names them: `peft = { type = "ia3", ... }`.

A type's keys are those of PEFT's own configuration, so that what a job says can be looked up there, and the adapter
that is exported says it in the same words. Which layers there are and what shapes an adapter has on them is PEFT's
affair: it is asked for them, in a worker, when the model is described."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from fedcore.errors import ConfigError

__all__ = [
    "IA3",
    "LORA",
    "Adapter",
    "AnyAdapter",
    "DoRA",
    "LayerAdapter",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "VeRA",
    "VirtualTokens",
    "ends_with",
]

_MOST_NAMES: Final = 256


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What all types have; abstract."""

    peft_type: ClassVar[str] = ""
    """As `adapter_config.json` says it."""
    learning_rate: ClassVar[float] = 1e-3
    """A method's default with it: what searches found for those that have been searched
    (docs/details/other-methods.md), LoRA's for the others."""

    @property
    def name(self) -> str:
        """As a job says it."""
        return str(self.__struct_config__.tag)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys, as PEFT's configuration takes them."""
        return {key: getattr(self, key) for key in self.__struct_fields__}

    @property
    def tokens(self) -> int:
        """How many stand before each text."""
        return 0

    @property
    def not_with_answers(self) -> str:
        """Why a model with it writes no answers here; empty where it does."""
        return ""


class LayerAdapter(Adapter, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """An adapter on linear layers; abstract."""

    target_modules: tuple[str, ...] = ()
    """Ends of layers' names, such as `query` or `attention.output.dense`; none for every target layer."""

    def __post_init__(self) -> None:
        _require_names("target_modules", self.target_modules)

    @property
    def settings(self) -> dict[str, Any]:
        """All keys but the layers', which differ between a model and a wrapped one."""
        return {key: getattr(self, key) for key in self.__struct_fields__ if key != "target_modules"}

    def takes(self, layer: str) -> bool:
        """Whether it is on a layer.

        Example:
            >>> IA3(target_modules=("query",)).takes("encoder.layer.0.attention.self.query")
            True
        """
        return not self.target_modules or ends_with(layer, self.target_modules)


class IA3(LayerAdapter, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="ia3"):
    """(IA)3 (Liu et al., arXiv 2205.05638): a factor on each number that goes out of a layer, one at first."""

    peft_type: ClassVar[str] = "IA3"
    learning_rate: ClassVar[float] = 3e-2

    feedforward_modules: tuple[str, ...] = ()
    """Ends of names of layers that have a factor on each number that goes in instead."""

    def __post_init__(self) -> None:
        LayerAdapter.__post_init__(self)
        _require_names("feedforward_modules", self.feedforward_modules)

    @property
    def settings(self) -> dict[str, Any]:
        """Which layers are the second kind's is said of each (`scales_input`)."""
        return {}

    def scales_input(self, layer: str) -> bool:
        """Whether a layer has factors on what goes in."""
        return ends_with(layer, self.feedforward_modules)


class VeRA(LayerAdapter, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="vera"):
    """VeRA (Kopiczko et al., arXiv 2310.11454): W + diag(b) B diag(d) A, with A and B drawn from the run's seed and
    shared by all layers; the vectors train."""

    peft_type: ClassVar[str] = "VERA"

    r: int = 256
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        LayerAdapter.__post_init__(self)
        _require(self, r=4096, d_initial=1e3)


class DoRA(LayerAdapter, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="dora"):
    """DoRA (Liu et al., arXiv 2402.09353): LoRA for the direction of each row of W, and the row's length apart."""

    peft_type: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: int = 16

    def __post_init__(self) -> None:
        LayerAdapter.__post_init__(self)
        _require(self, r=4096, lora_alpha=1e6)

    @property
    def settings(self) -> dict[str, Any]:
        """PEFT has it as a kind of LoRA."""
        return {**super().settings, "use_dora": True}


class VirtualTokens(Adapter, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Tokens that no text has, learned; abstract."""

    num_virtual_tokens: int = 20

    def __post_init__(self) -> None:
        _require(self, num_virtual_tokens=4096)

    @property
    def tokens(self) -> int:
        """The virtual ones."""
        return self.num_virtual_tokens

    @property
    def not_with_answers(self) -> str:
        """They stand before a text once, and a cache has room for the text."""
        return "its virtual tokens have no place in an answer's cache"


class PromptTuning(
    VirtualTokens, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="prompt"
):
    """Prompt tuning (Lester et al., arXiv 2104.08691): virtual tokens before each text."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    learning_rate: ClassVar[float] = 1e-1


class PrefixTuning(
    VirtualTokens, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="prefix"
):
    """Prefix tuning (Li and Liang, arXiv 2101.00190): virtual tokens before the keys and values of each layer."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    learning_rate: ClassVar[float] = 3e-2


class PTuning(VirtualTokens, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="p-tuning"):
    """P-tuning (Liu et al., arXiv 2103.10385): virtual tokens before each text, from a small network."""

    peft_type: ClassVar[str] = "P_TUNING"

    encoder_hidden_size: int = 128

    def __post_init__(self) -> None:
        VirtualTokens.__post_init__(self)
        _require(self, encoder_hidden_size=65_536)


class LORA(Adapter, frozen=True, kw_only=True, forbid_unknown_fields=False, tag_field="type", tag="lora"):
    """Refused: the project's own methods have it."""

    def __post_init__(self) -> None:
        raise ConfigError(
            "LoRA has methods of its own here", place="method.peft", remedy='write name = "fedit", or ffa-lora, rolora'
        )


AnyAdapter = IA3 | VeRA | DoRA | PromptTuning | PrefixTuning | PTuning | LORA


def ends_with(name: str, ends: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of those, or ends with one after a dot.

    Example:
        >>> ends_with("layer.0.output.dense", ("output.dense",)), ends_with("layer.0.output.dense", ("put.dense",))
        (True, False)
    """
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _require(adapter: Adapter, **most: float) -> None:
    for key, limit in most.items():
        value = getattr(adapter, key)
        if not 0 < value <= limit:
            raise ConfigError(f"{key} is {value}, outside 0 to {limit:,.0f}", place=f"method.peft.{key}")


def _require_names(key: str, names: tuple[str, ...]) -> None:
    if len(names) > _MOST_NAMES or not all(0 < len(name) <= _MOST_NAMES for name in names):
        raise ConfigError(
            f"{key} is no list of names",
            place=f"method.peft.{key}",
            remedy='write the ends of layers\' names: ["query"]',
        )
