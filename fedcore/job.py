# SPDX-License-Identifier: Apache-2.0
"""Sections of job and node files that both sides read."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["BrokerSection", "DataSection", "TaskSection"]


class TaskSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[task]`: what the model learns to do."""

    kind: Literal["text-classification", "pair-classification", "regression", "causal-lm"]
    labels: tuple[str, ...] | str = ()
    """The label set, in order; or `package.module:function` that returns it. Empty for regression and causal-lm."""
    max_length: int = 128
    """Tokens per example; longer ones are truncated (causal-lm: cut into pieces)."""
    min_length: int = 0
    """Tokens that a device with too little memory may cut its examples to; 0: no fewer than `max_length`."""


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[data]`: where a node's (or the evaluation's) text is, and which columns count."""

    source: str
    """A CSV, TSV or JSONL file, or `package.module:function`."""
    format: Literal["auto", "csv", "tsv", "jsonl"] = "auto"
    text: str = "text"
    """Column with the text (or first sentence)."""
    text_pair: str | None = None
    """Column with the second sentence."""
    label: str | None = "label"
    """Column with the label or score."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for `package.module:function`."""


class BrokerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[broker]`: where the MQTT broker is and who we are there."""

    url: str
    """`mqtt://host:1883`, or `mqtts://host:8883` for TLS."""
    username: str | None = None
    password: str | None = None
    password_file: str | None = None
    """File that holds the password alone; rather than `password`."""
    ca_file: str | None = None
    """Certificate authority that the broker's certificate must come from; the system's by default."""
    certificate_file: str | None = None
    key_file: str | None = None
