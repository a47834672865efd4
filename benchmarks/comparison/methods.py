# SPDX-License-Identifier: Apache-2.0
"""Which methods are compared, each with its own search: three learning rates in steps of about three, and more while
the best is at an end, chosen on rows that nothing else sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fedcore.fields.types import HeadBegin
from research.runs.methods import Named, Usual, parse_methods
from research.runs.presets import Preset

__all__ = ["COMPARED", "FROZEN", "FULL", "Compared", "compared"]

FROZEN: Final = "frozen features"
FULL: Final = "full fine-tuning"
_MANY_LABELS: Final = 10
_ALL_ROUNDS: Final = 1000
"""More than a run has: one head after all rounds of the method."""


@dataclass(frozen=True)
class Compared:
    """A method of the comparison.

    Attributes:
        name: In tables.
        method: As `fedkrso bench paper --methods` has it.
        few: Learning rates that are tried for tasks with few labels, as factors on the method's default.
        many: The same for tasks with ten labels or more, where larger ones are right (docs/methods.md).
        head_rate: Learning rate of the head and of all else that is trained whole, as a multiple of the method's.
        head: What the head begins with.
        rounds: Of a run; 0 for the preset's.
        steps: Of a round, as a multiple of the preset's, where a step is another thing than that of others.
        turns: Rounds that are as many steps as one of others', where nodes train one after the other.
    """

    name: str
    method: str
    few: tuple[float, ...]
    many: tuple[float, ...]
    head_rate: float = 2.0
    head: HeadBegin = "ridge"
    rounds: int = 0
    steps: float = 1.0
    turns: int = 1

    def sized(self, preset: Preset) -> Preset:
        """The preset with its steps and turns; the head's round stays one."""
        decay = float(f"{preset.common['learning_rate_decay'] ** (1 / self.turns):.3g}")
        return replace(
            preset.changed(steps=round(preset.common["steps"] * self.steps), learning_rate_decay=decay),
            rounds=1 + (preset.rounds - 1) * self.turns,
            tune_rounds=1 + (preset.tune_rounds - 1) * self.turns,
            measure_every=preset.measure_every * self.turns,
        )

    @property
    def has_rounds(self) -> bool:
        """Whether rounds follow on a head from sums, so that another one can end them."""
        return self.head == "ridge" and self.name != FROZEN

    def named(self, ends: bool = False) -> Named:
        """For the runner.

        Args:
            ends: Whether a head from sums ends its run, where one begins it.
        """
        again = _ALL_ROUNDS if ends and self.has_rounds else 0
        usual = Usual(head=self.head, pooling="mean", head_rate=self.head_rate, again=again)
        (named,) = parse_methods(self.method, usual)
        return named

    def grid(self, labels: int) -> tuple[float, ...]:
        """For a task with so many labels; 0 of a regression."""
        return self.many if labels >= _MANY_LABELS else self.few


_LORA_FEW, _LORA_MANY = (0.3, 1.0, 3.0), (1.0, 3.0, 10.0)
# A factor's rate is three to ten times that of a subspace or a weight; the head's must not be.
_LORA_HEAD = 0.2
_KRSO_FEW, _KRSO_MANY = (0.1, 0.3, 1.0), (0.3, 1.0, 3.0)
_FULL = (0.03, 0.1, 0.3), (0.1, 0.3, 1.0)

COMPARED: Final = {
    one.name: one
    for one in (
        Compared(FROZEN, "fed3r", (1.0,), (1.0,), rounds=1),
        Compared("FedKRSO", "fedkrso", _KRSO_FEW, _KRSO_MANY),
        Compared(FULL, "fedavg[trained=*]", *_FULL, head_rate=1.0),
        Compared("FedIT", "fedit", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared("FFA-LoRA", "ffa-lora", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared("FLoRA", "flora", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared("FedEx-LoRA", "fedex-lora", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared("RoLoRA", "rolora", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        # Its head is each node's own: there is none that all sums could lead to.
        Compared("FedSA-LoRA, own rows", "fedsa-lora", _LORA_FEW, _LORA_MANY, 1.0, head="random"),
        # A step is two passes forward, where the others' is one forward and one, twice as dear, backward.
        Compared("FedKSeed", "fedkseed", _LORA_FEW, _LORA_FEW, _LORA_HEAD, steps=1.5),
        # Plain SGD in the round and a third of what is rebuilt, as in the authors' code; SGD's rates may lie anywhere.
        Compared(
            "Ferret",
            "ferret[optimiser=sgd,server_learning_rate=0.33,tensor_learning_rate=2e-4]",
            (1.0, 10.0, 100.0),
            (1.0, 10.0, 100.0),
        ),
        # Beside the table: what is looked at one by one.
        Compared("FedKRSO, random head", "fedkrso[head=random]", _KRSO_MANY, _KRSO_MANY, head="random"),
        Compared("FedKRSO, moments by rows", "fedkrso[moments=rows]", _KRSO_FEW, _KRSO_MANY),
        Compared("FedKRSO, head at a tenth", "fedkrso[head_rate=0.2]", _KRSO_FEW, _KRSO_MANY, head_rate=0.2),
        Compared("FedKRSO, head held", "fedkrso[head_rate=0.001]", _KRSO_FEW, _KRSO_MANY, head_rate=0.001),
        # Heads from sums again: each method beside itself without them.
        Compared("FedKRSO, heads again", "fedkrso[again=4]", _KRSO_FEW, _KRSO_MANY),
        Compared(f"{FULL}, heads again", "fedavg[trained=*,again=4]", *_FULL, head_rate=1.0),
        Compared("FFA-LoRA, heads again", "ffa-lora[again=4]", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared("FedIT, heads again", "fedit[again=4]", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared("FedKRSO, server momentum", "fedkrso[server_momentum=0.5]", _KRSO_FEW, _KRSO_MANY),
        Compared("FedKRSO, norms and biases", "fedkrso[trained=*LayerNorm*+*.bias]", _KRSO_FEW, _KRSO_MANY),
        Compared("FedKRSO, rank 32", "fedkrso[rank=32]", _KRSO_FEW, _KRSO_MANY),
        Compared(f"{FULL}, frozen embeddings", "fedavg[trained=*LayerNorm*+*.bias]", *_FULL, head_rate=1.0),
        Compared("FFA-LoRA, coordinate A", "ffa-lora[projection=coordinate]", _LORA_FEW, _LORA_MANY, _LORA_HEAD),
        Compared(f"{FULL}, random head", "fedavg[trained=*,head=random]", _KRSO_FEW, _KRSO_FEW, 1.0, head="random"),
    )
}


def compared(name: str) -> Compared:
    """One of them; KeyError where there is none."""
    return COMPARED[name]
