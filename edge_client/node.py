# SPDX-License-Identifier: Apache-2.0
"""The node file: this device, its data, its budget, its broker."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from edge_client.fetching.section import ObjectsSection
from edge_client.owner.accepting import AcceptSection
from edge_client.owner.asking import AskSection
from edge_client.owner.policy import PolicySection
from edge_client.owner.serving import ServeSection
from fedcore.config.sections import BrokerSection, DataSection, PathText, TrustSection
from fedcore.errors import ConfigError
from fedcore.round.plan import Plan

__all__ = ["Node"]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A node file."""

    node: str
    """This node's id: its topics, its certificate's name."""
    run: str = ""
    """The run it takes part in."""
    model_folder: PathText = ""
    """The run's checkpoint on this device, or `package:folder` for one that a Python package carries."""
    fleet: str = ""
    """In place of a run: the fleet in whose runs it takes part, one at a time (docs/server.md)."""
    models: dict[str, PathText] = {}
    """Of a node of a fleet: checkpoints on this device, by the names that runs give them."""
    accept: AcceptSection = AcceptSection()
    """Of a node of a fleet: runs that its owner lets it take part in."""
    data: DataSection
    broker: BrokerSection
    trust: TrustSection = TrustSection()
    objects: ObjectsSection = ObjectsSection()
    """Servers that published states may be fetched from, beside the broker."""
    memory_budget: str = "auto"
    """Agent and worker together: `2.5 GiB`, `60%` of the device's memory, or `auto` (60 % of what is available)."""
    folder: PathText = "fedkrso-node"
    """Where the outbox and the replica live."""
    disk_limit: str = "2 GiB"
    """Most that a round's update, its finished intervals and fetched objects take of the disk."""
    disk_reserve: str = "100 MiB"
    """What stays free on the disk; with less, the node declines work and says so."""
    threads: int = 0
    """Processor threads for training; 0 for all."""
    micro_batch_size: int = 0
    """Examples at a time through the model; 0: as many as fit the budget."""
    checkpointing: bool | None = None
    """Recompute activations: less memory, more time. Left out: only if the budget asks for it."""
    mapped_weights: bool | None = None
    """Leave the weights on disk and map them. Left out: only if the budget asks for it."""
    dequantised_weights: bool | None = None
    """Keep the weights in float32 too, what was learned merged in: faster, 4 bytes a weight more. Left out: for
    language models, where the budget has room for it."""
    allocator: str = "auto"
    """`tuned` gives freed memory back at once; `default` is faster and larger; `auto`: the default one where the budget
    has room for it."""
    torch_device: str = "cpu"
    """Where to train: `cpu`, `cuda`, or `auto`: where it measures faster. The memory planner knows the processor
    only."""
    compute_dtype: str = "auto"
    """Of the large products: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where it measures faster in both
    directions."""
    keep_worker: bool = True
    """Keep the worker warm between rounds."""
    privacy: Literal["", "node", "example"] = ""
    """What a round must promise before anything of this node's text goes into it: `example`, that no text of it can be
    told from what leaves the device; `node`, that or that none can be told from what is published. Empty: nothing."""
    policy: PolicySection = PolicySection()
    """When it may work."""
    serve: ServeSection = ServeSection()
    """How it answers, where `fedkrso client serve` runs beside it."""
    ask: AskSection = AskSection()
    """How it answers with the coordinator's larger model behind it (`fedkrso client ask`)."""

    @property
    def rows(self) -> dict[str, DataSection]:
        """What is read of this node's own, by what it is."""
        found = {"data": self.data}
        if self.data.held_out is not None:
            found["held-out rows"] = msgspec.structs.replace(self.data, source=self.data.held_out, held_out=None)
        return found

    def promised(self, plan: Plan) -> Plan:
        """A plan that promises what this node's owner wants.

        Raises:
            ConfigError: It does not: whoever asks is not worked for.
        """
        said = "" if plan.training.privacy is None else plan.training.privacy.level
        if self.privacy and said not in (self.privacy, "example"):
            raise ConfigError(
                f"its rounds promise {f'privacy.{said}' if said else 'no privacy'}, and this node wants "
                f"privacy.{self.privacy}",
                place=f"run {self.run}",
                remedy="ask whoever leads it for another job, or change privacy in the node file",
            )
        return plan

    def __post_init__(self) -> None:
        for key in ("run", "model_folder") if not self.fleet else ("models",) if not self.run else ():
            if not getattr(self, key):
                remedy = 'add it, or name a fleet: fleet = "NAME"' if key == "run" else "add it"
                raise ConfigError(f"{key!r} is missing", place=key, remedy=remedy)
        for key in ("node", "run", "fleet"):
            name = getattr(self, key)
            if (name or key == "node") and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ConfigError(
                    f"{name!r} cannot be a name",
                    place=key,
                    remedy="letters, digits, '.', '_' and '-', at most 64",
                )
        if self.mapped_weights and self.dequantised_weights:
            raise ConfigError(
                "weights on disk are not kept in float32",
                place="dequantised_weights",
                remedy="leave out it or mapped_weights",
            )
        if self.allocator not in ("auto", "tuned", "default"):
            raise ConfigError(f"no allocator {self.allocator!r}", place="allocator", remedy="auto, tuned or default")
        if self.torch_device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"no device {self.torch_device!r}", place="torch_device", remedy="auto, cpu or cuda")
        if self.compute_dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(
                f"no dtype {self.compute_dtype!r}", place="compute_dtype", remedy="auto, float32, bfloat16 or float16"
            )
