# SPDX-License-Identifier: Apache-2.0
"""Measuring by answers: what is asked of a row, what is answered, and what it comes to in exact sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import edge_client.worker.train.measuring as measuring
from edge_client.process.measuring import Request
from edge_client.worker.data.chat import prompt_ids
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Scores, encoded_rows
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.trace.answers import sketch_answers
from edge_client.worker.trace.trace import LiveBytes, fake_model
from edge_client.worker.train.answered import Asked, answered, questions_of
from edge_client.worker.train.evaluate import evaluate, metrics_by_name, sums_of
from edge_client.worker.train.measuring import HeldOut, Measurer, held_out_of
from edge_client.worker.train.replica import Replica
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import DataError
from fedcore.numbers.texts import rouge_l
from fedcore.registry import METRICS, register_metric
from fedcore.round.measurement import UNIT, NodeEvaluation, Sum
from tests.causal_models import byte_tokenizer, random_model

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TASK = TaskSection(kind="instruction", max_length=60, template_text=TEMPLATE, too_long="cut")
CAUSAL = TaskSection(kind="causal-lm", max_length=24)
NEW = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row(asked: str, said: str) -> Example:
    return Example("", None, None, ({"role": "user", "content": asked}, {"role": "assistant", "content": said}))


SAID = ((3, "yes"), (14, "no"), (80, "cut"), (7, '{"a": 1}'), (9, "x" * 70))
ROWS = [row("a" * length, said) for length, said in SAID]


@pytest.fixture
def registered() -> Iterator[None]:
    """Metrics of somebody else's, as a package that is installed beside registers them."""

    @register_metric("letters", compares="texts", each=True, better="lower")
    def letters(answers: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
        return np.array([abs(len(a) - len(b)) for a, b in zip(answers, right, strict=True)], np.float64)

    @register_metric("distinct", compares="texts")
    def distinct(answers: Sequence[str], right: Sequence[str]) -> float:
        return len(set(answers)) / len(right)

    @register_metric("worst_losses", each=True)
    def worst_losses(losses: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return losses / tokens

    yield
    for name in METRICS._entries.keys() & {"letters", "distinct", "worst_losses", "mine"}:
        del METRICS._entries[name], METRICS._places[name]


def test_the_prompt_is_what_the_model_learned_to_answer_after() -> None:
    tokenizer = byte_tokenizer()
    rows = encoded_rows(ROWS, TASK, tokenizer)
    # The last row's answer alone does not fit; the third lost the beginning of its prompt.
    assert (len(rows.encoded), rows.cut, rows.left_out) == (4, 1, 1)
    asked = questions_of(rows.firsts, TASK, tokenizer, NEW)
    for example, question in zip((ROWS[0], ROWS[1], ROWS[3]), (*asked.questions[:2], asked.questions[3]), strict=True):
        assert question.prompt == prompt_ids(example.messages[:-1], tokenizer, TEMPLATE)
        assert tokenizer.decode(question.answer) == example.messages[-1]["content"] + "<end>" and question.whole
    long = prompt_ids(ROWS[2].messages[:-1], tokenizer, TEMPLATE)
    assert asked.longest_prompt == 60 - 4 and asked.questions[2].prompt == long[-56:]


def test_a_text_goes_on_after_its_first_half_and_its_pieces_are_one_question() -> None:
    tokenizer = byte_tokenizer()
    rows = encoded_rows([Example("abcdefgh" * 5, None, None), Example("xyz", None, None)], CAUSAL, tokenizer)
    assert len(rows.encoded) == 3
    first, second = questions_of(rows.firsts, CAUSAL, tokenizer, NEW).questions
    assert tokenizer.decode(first.prompt + first.answer) == "abcdefgh" * 3 and len(first.prompt) == 12
    assert (tokenizer.decode(second.prompt), tokenizer.decode(second.answer), second.whole) == ("x", "yz", False)


def test_a_task_that_writes_nothing_has_no_questions() -> None:
    task = TaskSection(kind="text-classification", labels=("a", "b"))
    rows = encoded_rows([Example("text", None, 0)], task, byte_tokenizer())
    with pytest.raises(DataError, match="text-classification writes none"):
        questions_of(rows.firsts, task, byte_tokenizer(), NEW)


def asked_of(rows: Sequence[Example] = ROWS, task: TaskSection = TASK) -> Asked:
    tokenizer = byte_tokenizer()
    return questions_of(encoded_rows(rows, task, tokenizer).firsts, task, tokenizer, NEW)


def test_answers_are_transformers_own_however_many_at_a_time_and_after_an_allocation_that_failed() -> None:
    model, asked = random_model("llama"), asked_of()
    expected = []
    for question in asked.questions:
        ids = torch.tensor([question.prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
        answer = out[0, ids.shape[1] :].tolist()
        expected.append(byte_tokenizer().decode(answer[: answer.index(299)] if 299 in answer else answer))
    for at_once in (1, 3, 99):
        said, right = answered(BuiltModel(model), asked, at_once=at_once, compiled=False)
        assert said == expected
    assert right == ["yes", "no", "cut", '{"a": 1}'] and len(set(said)) == 4
    tries: list[int] = []

    def failing() -> None:
        tries.append(1)
        if len(tries) in (2, 4):
            raise MemoryError("no room")

    assert answered(BuiltModel(model), asked, at_once=4, compiled=False, wanted=failing)[0] == expected

    def never() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        answered(BuiltModel(model), asked, at_once=4, compiled=False, wanted=never)


def plan_of(folder: Path, **changes: Any) -> Any:
    memory = MemoryPlan(micro_batch_size=2)
    request = Request(model_folder="", task=TASK, batch_size=2, length=TASK.max_length, memory=memory, rank=4, pool=2)
    return msgspec.structs.replace(local_plan(folder, TASK, request), evaluation=NodeEvaluation(**changes))


NAMES = ("token_accuracy", "json_equality", "exact_match", "rouge_l", "letters", "distinct", "worst_losses")


def test_nodes_and_coordinator_come_to_the_same_numbers_in_exact_sums(
    make_llama: Any, tmp_path: Path, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tokenizer = make_llama(vocabulary=300), byte_tokenizer()
    plan = plan_of(folder, metrics=NAMES, max_new_tokens=NEW)
    replica = Replica(plan, folder, tmp_path / "own", CPU, torch.float32)
    held = held_out_of(plan, ROWS, [], TASK, tokenizer)
    measurer = Measurer(replica, held, tmp_path / "measured", "r", "n", 0, CPU)
    # A random model says nothing right: two of its answers are made so.
    right = ["no", '{"a":1.0}']

    def corrected(*args: Any, **options: Any) -> Any:
        said, wanted = answered(*args, **options)
        return [said[0], right[0], said[2], right[1]], wanted

    monkeypatch.setattr(measuring, "answered", corrected)
    found = measurer.measure(plan, MemoryPlan(micro_batch_size=2), answers_at_once=3)
    assert found is not None and found.examples == 5
    assert found.sums["json_equality"] == Sum(1 * UNIT, 4) and found.sums["exact_match"] == Sum(1 * UNIT, 4)
    assert found.sums["distinct"] == Sum(4 * UNIT, 4)
    tokens = sum(one.weight for one in held.encoded)
    assert found.sums["token_accuracy"].count == tokens and found.sums["token_accuracy"].total % UNIT == 0
    texts = corrected(replica.model, held.asked)
    assert found.sums["rouge_l"] == Sum(sum(round(value * UNIT) for value in rouge_l(*texts)), 4)
    assert found.sums["letters"].total == UNIT * sum(abs(len(a) - len(b)) for a, b in zip(*texts, strict=True))
    _, _, metrics = evaluate(
        replica.model,
        held.encoded,
        TASK,
        0,
        CPU,
        metrics_by_name(NAMES[1:]),
        lambda: corrected(replica.model, held.asked),
    )
    assert {name: found.sums[name].mean for name in NAMES} == pytest.approx({name: metrics[name] for name in NAMES})
    # What was measured lies on the disk: a worker that starts again answers nothing twice.
    monkeypatch.setattr(measuring, "answered", None)
    again = Measurer(replica, held, tmp_path / "measured", "r", "n", 0, CPU)
    assert again.measure(plan, MemoryPlan(micro_batch_size=2)) == found


def test_rows_bound_what_is_answered_and_a_smaller_sample_is_part_of_a_larger_one(make_llama: Any) -> None:
    folder = make_llama(vocabulary=300)

    def held(**changes: Any) -> HeldOut:
        return held_out_of(plan_of(folder, **changes), ROWS[:4], [], TASK, byte_tokenizer())

    whole, part, none = held(metrics=("exact_match",)), held(metrics=("exact_match",), rows=2), held()
    assert len(part.asked.questions) == len(part.encoded) == 2 and len(whole.asked.questions) == 4
    assert set(part.asked.questions) <= set(whole.asked.questions)
    assert none.asked.questions == () and len(none.encoded) == 4


@pytest.mark.parametrize(
    ("numbers", "each", "words"),
    [
        ([1.0] * 3, False, r"gives numbers \(3,\), not one number$"),
        ([1.0] * 3, True, "not one number of each of 2 examples"),
        ([1.0, float("inf")], True, "gives inf"),
        (float("nan"), False, "gives nan"),
        ("much", False, "ValueError"),
    ],
)
def test_a_metric_that_does_not_do_is_named(numbers: Any, each: bool, words: str, registered: None) -> None:
    def mine(answers: Sequence[str], right: Sequence[str]) -> Any:
        return numbers

    register_metric("mine", compares="texts", each=each)(mine)
    rows = encoded_rows(ROWS[:2], TASK, byte_tokenizer()).encoded
    scores = Scores(np.ones(2), np.ones(2, np.int64), np.zeros((2, 1), np.float32))
    with pytest.raises(DataError, match=f"'mine'.*{words}"):
        sums_of(scores, rows, TASK, {"mine": mine}, lambda: (["a", "b"], ["c", "d"]))


@pytest.mark.parametrize("shape", ["llama", "mistral window"])
def test_answers_take_no_more_memory_than_is_foreseen(shape: str) -> None:
    rows = [row("a" * length, "yes") for length in (1, 5, 22, 30, 38, 20)]
    asked, most = asked_of(rows), 4
    counter, model = LiveBytes(), BuiltModel(random_model(shape))
    counter.know(model.held())
    with counter:
        counter.phase = "answers"
        said, _ = answered(model, asked, at_once=most, compiled=False)
    assert len(said) == len(rows)
    fake = BuiltModel(random_model(shape))
    found = sketch_answers(fake, fake_model(fake), asked.longest_prompt, NEW)
    foreseen, needed = found.needed_bytes(most), counter.peak.total()
    assert needed <= foreseen < 2.5 * needed, (found, needed)
