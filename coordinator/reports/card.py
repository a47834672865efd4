# SPDX-License-Identifier: Apache-2.0
"""A model card: what an exported model or adapter is, made of what the run's ledger knows and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

from jinja2 import Environment, PackageLoader

from coordinator.reports.lastmodel import LastModel
from coordinator.reports.summary import examples_of, model_named
from coordinator.store.folder import RunFolder
from coordinator.store.places import open_ledger
from coordinator.store.rows import PrivacySpent
from fedcore.config.models import read_source
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.fields.types import Pooled
from fedcore.weights.sentences import HEAD_FILE

__all__ = ["CARD_FILE", "card_of", "description_of"]

CARD_FILE: Final = "README.md"
_SHOWN_LABELS: Final = 12
_MODEL: Final = """\
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER")"""
_POOLED: Final = """\
{imports}

tokenizer = AutoTokenizer.from_pretrained("{base}")
model, head = {model}, load_file("FOLDER/{file}")
inputs = tokenizer(["a text"], padding=True, padding_side="right", return_tensors="pt")
hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
logits = {pooled} @ head["linear.weight"].T + head["linear.bias"]"""
_SENTENCES: Final = """\


# The same, with the library sentence-transformers: SentenceTransformer("FOLDER").encode(["a text"])"""
_WAYS: Final[dict[Pooled, str]] = {
    "first": "hidden[:, 0]",
    "mean": "((hidden * mask).sum(1) / mask.sum(1))",
    "last": "hidden[range(len(hidden)), mask.sum(1)[:, 0] - 1]",
    "max": "hidden.masked_fill(mask == 0, -1e9).amax(1)",
}
_ADAPTER: Final = """\
from peft import PeftModel
from transformers import {auto}

model = {auto}.from_pretrained("BASE MODEL"{new_head})
model = PeftModel.from_pretrained(model, "FOLDER")"""


def card_of(files: RunFolder, last: LastModel, *, adapter: bool = False) -> str:
    """The card of an exported round, as Markdown with the header that model hubs read.

    Args:
        files: The run's.
        last: What is exported.
        adapter: Whether what was learned is alone, and not in the model.
    """
    ledger = open_ledger(files)
    try:
        row = next(row for row in ledger.rounds() if row.round == last.round)
        examples = examples_of(ledger, row)
        digests = [one.digest for one in ledger.published_states() if one.version == last.round]
    finally:
        ledger.close()
    outputs = task_of(last.task).outputs()
    auto = "AutoModelForCausalLM" if outputs is None else "AutoModelForSequenceClassification"
    new_head = "" if outputs is None else f", num_labels={outputs}"
    source = read_source(last.base.checkpoint.folder)
    measured = {"accuracy": row.accuracy, "loss": row.loss} if row.accuracy is not None else {}
    environment = Environment(loader=PackageLoader("coordinator.reports"), autoescape=False, trim_blocks=False)  # noqa: S701
    environment.filters["cell"] = _cell
    return environment.get_template("card.md").render(
        library="peft" if adapter else "transformers",
        licence=source.licence if source is not None else "",
        run=last.job.run,
        round=last.round,
        what="A LoRA adapter: what was learned, without the base model." if adapter else "A model, fine-tuned whole.",
        version=version("fedkrso"),
        facts=list(_facts(last, examples, digests, row.privacy)),
        measured=[(name, value) for name, value in {**measured, **row.metrics}.items() if value is not None],
        on_nodes=row.nodes,
        code=_code(last.task, auto, new_head, adapter=adapter),
    )


def _code(task: TaskSection, auto: str, new_head: str, *, adapter: bool) -> str:
    """How it is loaded."""
    pooled = task.pooled
    if pooled is not None:
        imports = ["from safetensors.torch import load_file", "from transformers import AutoModel, AutoTokenizer"]
        base, model = "FOLDER", 'AutoModel.from_pretrained("FOLDER")'
        if adapter:
            imports.insert(0, "from peft import PeftModel")
            base, model = "BASE MODEL", 'PeftModel.from_pretrained(AutoModel.from_pretrained("BASE MODEL"), "FOLDER")'
        code = _POOLED.format(imports="\n".join(imports), base=base, model=model, file=HEAD_FILE, pooled=_WAYS[pooled])
        return code if adapter else code + _SENTENCES
    return (_ADAPTER if adapter else _MODEL).format(auto=auto, new_head=new_head)


def description_of(last: LastModel) -> str:
    """The same in a line, for a file that has room for one."""
    job = last.job
    return (
        f"fedkrso run {job.run}, round {last.round} of {job.round.rounds}, {job.method.described()}, from {_base(last)}"
    )


def _facts(
    last: LastModel, examples: list[int], digests: list[str], spent: PrivacySpent | None
) -> Iterator[tuple[str, str]]:
    job, task = last.job, last.task
    yield "run", job.run
    yield "base model", _base(last)
    yield "architecture", last.schema.architecture
    yield "held as", f"{job.model.base}, while it was trained"
    yield "task", task.kind
    if task.labels:
        more = ", ..." if len(task.labels) > _SHOWN_LABELS else ""
        yield "labels", f"{len(task.labels)}: {', '.join(task.labels[:_SHOWN_LABELS])}{more}"
    yield "method", job.method.described()
    yield "trained", f"{len(last.schema.layers)} layers, {len(last.schema.tensors)} tensors whole"
    yield "rounds", f"{last.round} of {job.round.rounds}"
    # How many, and not whose: the names of nodes are nobody's business who only has the model.
    sizes = ", ".join(map(str, sorted(examples, reverse=True)))
    nodes = "1 node" if len(examples) == 1 else f"{len(examples)} nodes"
    if any(examples):
        yield "data", f"{sum(examples)} examples on {nodes} in round {last.round} ({sizes}), as they said"
    else:
        yield "data", f"{nodes} in round {last.round}, whose updates, and numbers of examples, nobody has seen"
    if spent is not None:
        yield "privacy", spent.words()
    if digests:
        yield "digest", f"`{digests[0]}`, of base and published state"


def _base(last: LastModel) -> str:
    source = read_source(last.base.checkpoint.folder)
    if source is not None:
        known = f"{source.words}, SHA-256 `{source.sha256}`"
        return f"{source.name} ({known})" if source.name else known
    return model_named(last.job.model.folder)


def _cell(value: Any) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(str(value).replace("|", "\\|").split())
