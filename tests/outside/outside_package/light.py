# SPDX-License-Identifier: Apache-2.0
"""What agents import: neither NumPy nor torch."""

from __future__ import annotations

from typing import Any, ClassVar

from devices.base import Device, Facts, Host
from devices.kinds.simulated import Simulated
from fedcore.config.tasks import Task, label_index, register_task
from fedcore.numbers.coding import Coding
from fedcore.registry import register_device
from fedcore.round.methods import register_method
from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema


@register_method(
    "sign-average",
    settings="outside_package.server:SignAverageSettings",
    server_half="outside_package.server:SignAverage",
    client_half="outside_package.client:of_plan",
)
class SignTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="sign-average"):
    """Whole layers train; of each change its sign travels, with one scale for each row."""

    learned: ClassVar[str] = "fedcore.model.learned:DenseLearned"

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Every number of a layer."""
        return {layer.name: (layer.rows, layer.columns) for layer in schema.layers}

    def coding(self, name: str) -> Coding:
        """A bit each."""
        return Coding("signs", 4)


@register_task("many-labels")
class ManyLabels(Task):
    """Any labels of a set for each text, separated by `+`."""

    worker = "outside_package.worker:ManyLabelsAtWork"

    def outputs(self) -> int:
        """A logit for each label."""
        return len(self.section.labels)

    def target(self, raw: Any, place: str) -> tuple[float, ...]:
        """1 for each label that the text has."""
        chosen = {label_index(word, self.section, place) for word in str(raw).split("+")}
        return tuple(float(index in chosen) for index in range(len(self.section.labels)))

    def head_config(self) -> dict[str, Any]:
        """As transformers has it."""
        labels = dict(enumerate(self.section.labels))
        return {
            "problem_type": "multi_label_classification",
            "id2label": {str(index): label for index, label in labels.items()},
            "label2id": {label: index for index, label in labels.items()},
        }


@register_device("test-bench")
def detect(host: Host) -> Device | None:
    """A machine with a file that says so."""
    return Simulated((), Facts(kind="test-bench", name="bench 1")) if (host.root / "test-bench").exists() else None
